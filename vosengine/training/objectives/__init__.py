"""How each model is trained: one objective per way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...models.imcnet import IMCNet
from ...models.method import Method
from ...models.target_aware import TargetAware
from .following import PUBLISHED, FollowingLosses, FollowingObjective, for_clips
from .foreground import IMCNetObjective
from .objective import Objective
from .target_aware import PARTS, TargetAwareObjective

__all__ = [
    "PARTS",
    "PUBLISHED",
    "FollowingLosses",
    "FollowingObjective",
    "IMCNetObjective",
    "Objective",
    "TargetAwareObjective",
    "for_clips",
    "objective_for",
]


def objective_for(
    method: Method[Any, Any], losses: FollowingLosses, parts: Sequence[str] = PARTS
) -> Objective[Any]:
    """The objective of a model.

    losses  of those that follow masks
    parts   of target_aware that are trained
    """
    if isinstance(method, IMCNet):
        return IMCNetObjective(method)
    if isinstance(method, TargetAware):
        return TargetAwareObjective(method, parts)
    return FollowingObjective(method, losses)
