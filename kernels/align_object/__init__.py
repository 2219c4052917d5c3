"""`align_object`: see the docstring of its reference."""

from ..dispatch import Op
from . import reference, triton_kernel

align_object = Op(reference.align_object, reference.contract, triton=triton_kernel)
