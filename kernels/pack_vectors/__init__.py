"""The first step that Triton kernels share which compare by cosine; no op of its own."""
