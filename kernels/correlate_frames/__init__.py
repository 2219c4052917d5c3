"""`correlate_frames`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, reference, triton_kernel

correlate_frames = Op(
    reference.correlate_frames, reference.contract, triton=triton_kernel, cpu=cpu_kernel
)
