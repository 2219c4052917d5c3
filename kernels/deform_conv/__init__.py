"""`deform_conv`: see the docstring of its reference."""

from ..dispatch import Op
from . import cpu_kernel, cuda_kernel, reference, triton_kernel

deform_conv = Op(
    reference.deform_conv,
    reference.contract,
    cuda=cuda_kernel,
    triton=triton_kernel,
    cpu=cpu_kernel,
)
