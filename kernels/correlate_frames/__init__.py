"""`correlate_frames`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, reference

correlate_frames = Op(reference.correlate_frames, reference.contract, cpu=cpu_kernel)
