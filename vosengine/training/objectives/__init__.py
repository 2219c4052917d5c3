"""Training objectives; the registry names the one of each model."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from ...models.method import Method
from ...zoo.registry import entry
from .appearance import Appearance
from .discovery import Discovery
from .following import FollowingLosses, for_clips
from .objective import Objective
from .target_aware import PARTS

if TYPE_CHECKING:
    from ..recipe import Recipe

__all__ = [
    "PARTS",
    "Appearance",
    "Discovery",
    "FollowingLosses",
    "Objective",
    "for_clips",
    "objective_class",
    "objective_for",
]


def objective_class(model: str) -> type[Objective[Any]]:
    """Objective class of a model, from the registry."""
    objective: type[Objective[Any]] = resolve_name(entry(model).objective)
    return objective


def objective_for(model: str, method: Method[Any, Any], recipe: Recipe) -> Objective[Any]:
    """Objective of a network of that model, configured by the recipe."""
    return objective_class(model).of(method, recipe)
