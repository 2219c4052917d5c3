"""Packing step shared by the Triton kernels that compute cosine similarities; not an op."""
