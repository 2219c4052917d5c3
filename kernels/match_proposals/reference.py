"""`match_proposals` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from ..shapes import FLOATS, check, check_dtype

ANSWERS = ("final", "dmm")
EQUAL = 1e-5  # answer "dmm": values this close to a row's maximum are kept as well


def contract(
    similarity: torch.Tensor,
    *,
    steps: int = 40,
    inner: int = 5,
    rate: float = 0.1,
    answer: str = "final",
) -> None:
    check({"similarity": (similarity, "O M")})
    check_dtype("similarity", similarity, *FLOATS)
    for name, count in (("steps", steps), ("inner", inner)):
        if count < 1:
            raise ValueError(f"{name}: wanted 1 or more, given {count}")
    if not 0 < rate < math.inf:
        raise ValueError(f"rate: wanted a positive number, given {rate}")
    if answer not in ANSWERS:
        raise ValueError(f"answer: wanted one of {', '.join(ANSWERS)}, given {answer!r}")


def match_proposals(
    similarity: torch.Tensor,
    *,
    steps: int = 40,
    inner: int = 5,
    rate: float = 0.1,
    answer: str = "final",
) -> torch.Tensor:
    """Assign proposals to objects: relaxed linear assignment by projected gradient descent.

        X = argmin <C, X>,  C = -similarity,  over  X >= 0,  X 1 = 1 (rows),  X' 1 <= 1 (columns)

        `steps` times:           X <- X - rate * C
            then `inner` times:  X <- projection of X + P[i] on set i, P[i] <- what it removed,
                                 for i = entries, columns, rows (Dykstra); P is kept between steps

    similarity  [O, M]  of every object to every proposal, finite, any strides
    steps       1 or more gradient steps
    inner       1 or more rounds of projection per step
    rate        positive step size
    answer      "final": X after the last projection; "dmm": the mean of the initial X and of every
                X before its projection, of which each row keeps its maximum (values within 1e-5 of
                it included) and is 0 elsewhere: all 0 if the maximum is in an added column
    returns     [O, M]  new, contiguous, dtype of similarity

    If M <= O, columns of similarity 0 are added up to O + 1, for objects without a proposal, and
    removed at the end: such an object's row sums to less than 1. X starts with a single 1 per row:
    each column keeps its least cost (the first row's, if equal), the others become max C, and the
    row's least (the first, if equal) is its 1.

    Rows are projected last, so that those of "final" (with the added columns) sum to 1; X >= 0 and
    column sums <= 1 hold as far as the last round converges: within 0.05 for the defaults and
    similarities in -1..1. P of the rows is not kept: for an affine set it cancels in the result,
    and in float32 it grows until its rounding error shows.

    A NaN in similarity makes the whole result NaN ("dmm": from two steps on).

    Dtype   float16, bfloat16, float32 or float64; all arithmetic in float32 or wider.
    Device  any; no synchronisation with the host.
    Empty   O = 0 or M = 0 returns [O, M].
    Error   at most twice that of this function in the same dtype, against itself in float64.
    Raises  ShapeError, naming argument, wanted shape and given shape; ValueError for an option.
    Source  DMM-Net (Zeng et al., ICCV 2019), the matching layer of DMN-AOA, section 3.1. DMM stops
            once |X o C| repeats exactly; this op does not: with 30 proposals it never repeats, and
            with 2 at step 9 in float32 but 24 in float64, so that rounding would decide "dmm".
    """
    objects, proposals = similarity.shape
    if similarity.numel() == 0:
        return similarity.new_zeros(objects, proposals)
    wide = similarity.to(torch.promote_types(similarity.dtype, torch.float32))
    cost = -functional.pad(wide, (0, max(0, objects + 1 - proposals)))
    x = total = _start(cost)
    corrections = [torch.zeros_like(cost)] * 2
    for _ in range(steps):
        x = x - rate * cost
        total = total + x
        for _ in range(inner):
            for i, project in enumerate((_project_entries, _project_columns)):
                corrected = x + corrections[i]
                x = project(corrected)
                corrections[i] = corrected - x
            x = _project_rows(x)
    if answer == "dmm":
        mean = total / (steps + 1)
        x = mean.masked_fill(mean < mean.amax(dim=1, keepdim=True) - EQUAL, 0)
    return x[:, :proposals].to(similarity.dtype).contiguous()


def _start(cost: torch.Tensor) -> torch.Tensor:
    rows, columns = (torch.arange(n, device=cost.device) for n in cost.shape)
    least = rows[:, None] == cost.argmin(dim=0)
    kept = torch.where(least, cost, cost.max())
    return (columns == kept.argmin(dim=1)[:, None]).to(cost.dtype)


def _project_entries(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0)


def _project_columns(x: torch.Tensor) -> torch.Tensor:
    return x - (x.sum(dim=0, keepdim=True) - 1).clamp(min=0) / x.shape[0]


def _project_rows(x: torch.Tensor) -> torch.Tensor:
    return x - (x.sum(dim=1, keepdim=True) - 1) / x.shape[1]
