"""`group_centres`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, cuda_kernel, reference

group_centres = Op(reference.group_centres, reference.contract, cuda=cuda_kernel, cpu=cpu_kernel)
