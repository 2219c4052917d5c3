"""`prepare_frame`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, cuda_kernel, reference

prepare_frame = Op(reference.prepare_frame, reference.contract, cuda=cuda_kernel, cpu=cpu_kernel)
