"""What both engines decide alike, without torch: which frames are kept, where objects are put."""
