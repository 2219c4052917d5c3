"""`fit_target`, see the docstring of its reference; with `reduce_labels` and `objective`."""

from ..dispatch import Op
from . import cpu_kernel, reference
from .labels import reduce_labels
from .reference import objective

fit_target = Op(reference.fit_target, reference.contract, cpu=cpu_kernel)

__all__ = ["fit_target", "objective", "reduce_labels"]
