"""`deform_conv`: see the docstring of its reference."""

from ..dispatch import Op
from . import reference

deform_conv = Op(reference.deform_conv, reference.contract)
