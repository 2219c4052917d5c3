"""`match_proposals` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from ..shapes import check, check_dtype

ANSWERS = ("final", "dmm")
EQUAL = 1e-5  # of answer "dmm": what is that near to a row's maximum is the maximum too


def contract(
    similarity: torch.Tensor,
    *,
    steps: int = 40,
    inner: int = 5,
    rate: float = 0.1,
    answer: str = "final",
) -> None:
    check({"similarity": (similarity, "O M")})
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    check_dtype("similarity", similarity, *floats)
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
    """Which proposal is which object: linear assignment, relaxed, by projected gradient descent.

        X = argmin <C, X>,  C = -similarity,  over  X >= 0,  X 1 = 1 (rows),  X' 1 <= 1 (columns)

        `steps` times:           X <- X - rate * C
            then `inner` times:  X <- X + P[i] projected on set i, P[i] <- what that took away,
                                 for i = entries, columns, rows (Dykstra); P is kept between steps

    similarity  [O, M]  of every object to every proposal, finite, any strides
    steps       1 or more, of the gradient
    inner       1 or more, rounds of projection in each
    rate        positive, the length of a step
    answer      "final": X after the last projection; "dmm": the mean of the start and of every X
                before its projection, of which each row keeps its maximum (what is within 1e-5 of
                it counts as equal and stays too) and is 0 elsewhere: all 0 if it is no proposal's
    returns     [O, M]  new, contiguous, dtype of similarity

    If M <= O, columns of similarity 0 are added up to O + 1, for objects that no proposal shows,
    and cut off at the end: such an object's row sums to less than 1. X starts at one 1 in every
    row: each column keeps its least cost (the first row's, if equal), the others become max C, and
    the row's least (the first, if equal) is its 1.

    Rows are projected last, so that those of "final" (with the columns that were added) sum to 1;
    X >= 0 and column sums <= 1 hold as far as the last round brings them: with the defaults and
    similarities in -1..1 to 0.05. P of the rows is not kept: from an affine set it drops out of
    the result, and in float32 it grows until its rounding shows.

    A NaN in similarity makes the whole answer NaN ("dmm": from two steps on).

    Dtype   float16, bfloat16, float32 or float64; all arithmetic in float32 or wider.
    Device  any; no synchronisation with the host.
    Empty   O = 0 or M = 0 returns [O, M].
    Error   at most twice that of this function in the same dtype, against itself in float64.
    Raises  ShapeError, naming argument, wanted shape and given shape; ValueError for an option.
    Source  DMM-Net (Zeng et al., ICCV 2019), the matching layer of DMN-AOA, section 3.1. DMM stops
            once |X o C| repeats exactly; not here: with 30 proposals it never does, and with 2 it
            does at step 9 in float32 but 24 in float64, so that rounding would decide "dmm".
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
