"""`match_proposals`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, reference

match_proposals = Op(reference.match_proposals, reference.contract, cpu=cpu_kernel)
