"""How each model is trained: one objective per way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...models.imcnet import IMCNet
from ...models.method import Method
from ...models.target_aware import TargetAware
from .appearance import Appearance
from .discovery import Discovery
from .following import PUBLISHED, FollowingLosses, FollowingObjective, for_clips
from .foreground import IMCNetObjective
from .objective import Objective
from .target_aware import PARTS, TargetAwareObjective

__all__ = [
    "PARTS",
    "PUBLISHED",
    "Appearance",
    "Discovery",
    "FollowingLosses",
    "FollowingObjective",
    "IMCNetObjective",
    "Objective",
    "TargetAwareObjective",
    "for_clips",
    "objective_for",
]


def objective_for(
    method: Method[Any, Any],
    losses: FollowingLosses,
    parts: Sequence[str] = PARTS,
    *,
    discovery: Discovery | None = None,
    appearance: Appearance | None = None,
) -> Objective[Any]:
    """The objective of a model.

    losses                 of those that follow masks
    parts                  of target_aware that are trained
    discovery, appearance  how its D-Net and its T-Net are; None: as usual
    """
    if isinstance(method, IMCNet):
        return IMCNetObjective(method)
    if isinstance(method, TargetAware):
        return TargetAwareObjective(method, parts, discovery=discovery, appearance=appearance)
    return FollowingObjective(method, losses)
