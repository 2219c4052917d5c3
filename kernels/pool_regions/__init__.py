"""`pool_regions`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, cuda_kernel, reference

pool_regions = Op(reference.pool_regions, reference.contract, cuda=cuda_kernel, cpu=cpu_kernel)
