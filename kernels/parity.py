"""Parity rule: how far the outputs of a backend may be from those of the reference.

    error of the backend <= 2 * error of the reference in the same dtype + floor

Both errors are the maximum absolute difference from the reference in float64. The floor is
FLOOR_ULPS * eps(dtype) * max(1, maximum magnitude of the output). Integer outputs must be equal,
except where the op's `cases.undecided(arguments, float64 outputs)` marks elements that rounding may
decide: it returns one mask for all integer outputs, or a tuple with a mask or None per output. A
NaN fails. The tests, the benchmark and `vosengine doctor` apply this rule to every backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from .cases import Case, map_tensors
from .dispatch import Op, use_backend

FLOOR_ULPS = 16


@dataclass(frozen=True)
class Parity:
    """Verdict on one call.

    fault    None if the call passes, else a description of the failure
    error    maximum absolute error of the worst floating output
    allowed  the error that the rule allows there
    """

    fault: str | None
    error: float
    allowed: float


def cases_of(op: Op) -> tuple[Case, ...]:
    """Return the cases of an op, from kernels/<op>/cases.py."""
    cases: tuple[Case, ...] = import_module(f"{__package__}.{op.name}.cases").CASES
    return cases


def check_parity(
    op: Op,
    case: Case,
    backend: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Parity:
    """Run one case on one backend and compare it with the reference.

    dtype   of all floating arguments
    Raises  UnsupportedBackend if the backend does not support the case.
    """
    arguments = case.arguments(device, dtype)
    with use_backend(backend):
        outputs = _as_tuple(op(**arguments))
    plain = _as_tuple(op.reference(**arguments))
    exact = _as_tuple(op.reference(**widened(arguments)))
    open_masks = _undecided(op, arguments, exact)
    worst = Parity(None, 0.0, 0.0)
    compared = enumerate(zip(outputs, plain, exact, open_masks, strict=True))
    for index, (got, near, truth, open_mask) in compared:
        where = f"output {index}: " if len(outputs) > 1 else ""
        if (got is None) != (near is None):
            return Parity(f"{where}is None on one side only", 0.0, 0.0)
        if got is None:
            continue
        if got.shape != near.shape or got.dtype != near.dtype:
            form = f"{tuple(got.shape)} {got.dtype}"
            return Parity(f"{where}{form}, wanted {tuple(near.shape)} {near.dtype}", 0.0, 0.0)
        verdict = (
            _check_floats(got, near, truth)
            if got.is_floating_point()
            else _check_integers(got, truth, open_mask)
        )
        if verdict.fault is not None:
            return Parity(where + verdict.fault, verdict.error, verdict.allowed)
        worst = max(worst, verdict, key=lambda parity: parity.error)
    return worst


def widened(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the same call in float64; a `dtype` argument becomes float64."""
    wide: dict[str, Any] = map_tensors(
        lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, arguments
    )
    return {name: torch.float64 if name == "dtype" else value for name, value in wide.items()}


def _undecided(
    op: Op, arguments: dict[str, Any], exact: tuple[Any, ...]
) -> tuple[torch.Tensor | None, ...]:
    """Return, for every output, the mask of elements that rounding may decide, or None."""
    undecided = getattr(import_module(f"{__package__}.{op.name}.cases"), "undecided", None)
    masks = None if undecided is None else undecided(arguments, exact)
    return masks if isinstance(masks, tuple) else (masks,) * len(exact)


def _as_tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _check_floats(got: torch.Tensor, near: torch.Tensor, truth: torch.Tensor) -> Parity:
    if got.numel() == 0:
        return Parity(None, 0.0, 0.0)
    magnitude = max(1.0, float(truth.abs().max()))
    floor = FLOOR_ULPS * torch.finfo(got.dtype).eps * magnitude
    error = float((got.double() - truth).abs().max())
    allowed = 2 * float((near.double() - truth).abs().max()) + floor
    if error <= allowed:
        return Parity(None, error, allowed)
    return Parity(f"error {error:.3g}, allowed {allowed:.3g}", error, allowed)  # NaN included


def _check_integers(
    got: torch.Tensor, truth: torch.Tensor, undecided: torch.Tensor | None
) -> Parity:
    wrong = got != truth
    if undecided is not None:
        wrong &= ~undecided
    count = int(wrong.sum())
    return Parity(f"{count} of {got.numel()} integers differ" if count else None, 0.0, 0.0)
