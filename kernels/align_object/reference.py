"""`align_object` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from ..shapes import FLOATS, ShapeError, check, check_dtype

SCORES = ("mean", "flat")


def contract(
    template: torch.Tensor,
    proposal: torch.Tensor,
    *,
    alpha: float = 100.0,
    score: str = "mean",
    translate: bool = False,
) -> None:
    check({"template": (template, "O P C"), "proposal": (proposal, "M Q C")})
    check_dtype("template", template, *FLOATS)
    check_dtype("proposal", proposal, template.dtype)
    for name, tensor in (("template", template), ("proposal", proposal)):
        if min(tensor.shape[1:]) < 1:
            raise ShapeError(
                f"{name}: wanted at least one position and one channel, given {list(tensor.shape)}"
            )
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha: wanted a finite number, 0 or more, given {alpha}")
    if score not in SCORES:
        raise ValueError(f"score: wanted one of {', '.join(SCORES)}, given {score!r}")


def align_object(
    template: torch.Tensor,
    proposal: torch.Tensor,
    *,
    alpha: float = 100.0,
    score: str = "mean",
    translate: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Align the positions of each proposal with each template, and score their similarity.

        S[i, j]       = softmax_j(alpha * cos(template[i], proposal[j]))
        translated[i] = sum over j of S[i, j] * proposal[j]
        score         = mean over i of cos(template[i], translated[i])   ("mean")
                      = cos(template, translated), each as one vector    ("flat")

    template    [O, P, C]  projected features of every object's template, any strides
    proposal    [M, Q, C]  projected features of every proposal, any strides
    alpha       0 or more: inverse temperature of the softmax (0: uniform weights)
    score       "mean" or "flat"
    translate   whether to return the aligned proposals
    returns     score       [O, M], in -1..1, dtype of template
                translated  [O, M, P, C], dtype of template, or None; both new and contiguous

    A norm counts as at least 1e-12: the cosine with a zero vector is 0.

    Dtype   float16, bfloat16, float32 or float64, one for both; all arithmetic in float32 or wider.
    Device  one for both; no synchronisation with the host. One template is aligned at a time, with
            M * P * (2 Q + 2 C) elements of scratch.
    Empty   O = 0 or M = 0 returns [O, M] and [O, M, P, C]; P, Q and C are at least 1.
    Error   at most twice that of this function in the same dtype, against itself in float64.
    Raises  ShapeError, naming argument, wanted shape and given shape; ValueError for an option.
    Source  DMN-AOA, section 3.3, equations 2 and 3. The final matching is "between the feature
            maps": read here as the mean of cosines ("mean"); "flat" is the alternative.
            alpha is not in the text; CoCosNet, which it follows, uses 100.
    """
    wide = torch.promote_types(template.dtype, torch.float32)
    values = proposal.to(wide)
    keys = functional.normalize(values, dim=2, eps=1e-12)
    scores = values.new_empty(len(template), len(values))
    translated = template.new_empty(*scores.shape, *template.shape[1:]) if translate else None
    for i, one in enumerate(template.to(wide)):
        query = alpha * functional.normalize(one, dim=1, eps=1e-12)
        moved = torch.softmax(query @ keys.mT, dim=2) @ values  # [M, P, C]
        pair = (one, moved) if score == "mean" else (one.flatten(), moved.flatten(1))
        cosine = functional.cosine_similarity(*pair, dim=-1, eps=1e-12)
        scores[i] = cosine.mean(dim=1) if score == "mean" else cosine
        if translated is not None:
            translated[i] = moved
    return scores.to(template.dtype), translated
