"""`match_proposals`: see the docstring of its reference."""

from ..dispatch import Op
from . import reference

match_proposals = Op(reference.match_proposals, reference.contract)
