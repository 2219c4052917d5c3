"""`group_centres`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, reference

group_centres = Op(reference.group_centres, reference.contract, cpu=cpu_kernel)
