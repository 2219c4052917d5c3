"""Many clips: which they are, how one is done, and the processes that do them."""
