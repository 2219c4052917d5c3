"""Target-aware U-VOS: discovery (D-Net), appearance models (T-Net), ReID, and the method."""
