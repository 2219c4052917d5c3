"""Target-aware U-VOS: discovery, appearance, re-identification, and the method over them."""
