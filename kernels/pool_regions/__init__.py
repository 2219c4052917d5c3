"""`pool_regions`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, reference

pool_regions = Op(reference.pool_regions, reference.contract, cpu=cpu_kernel)
