"""`deform_conv`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, reference

deform_conv = Op(reference.deform_conv, reference.contract, cpu=cpu_kernel)
