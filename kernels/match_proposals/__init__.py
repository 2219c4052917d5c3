"""`match_proposals`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, cuda_kernel, reference

match_proposals = Op(
    reference.match_proposals, reference.contract, cuda=cuda_kernel, cpu=cpu_kernel
)
