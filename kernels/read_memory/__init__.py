"""`read_memory`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, reference, triton_kernel

read_memory = Op(reference.read_memory, reference.contract, cpu=cpu_kernel, triton=triton_kernel)
