"""`pool_regions`: see the docstring of its reference."""

from ..dispatch import Op
from . import reference

pool_regions = Op(reference.pool_regions, reference.contract)
