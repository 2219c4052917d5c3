"""`finish_masks`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, cuda_kernel, reference

finish_masks = Op(reference.finish_masks, reference.contract, cuda=cuda_kernel, cpu=cpu_kernel)
