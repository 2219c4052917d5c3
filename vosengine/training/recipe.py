"""Training recipes: schedule, data shape, optimiser and loss settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..config.checks import check, check_choice, check_positive
from ..zoo.registry import entry
from .objectives import PARTS, Appearance, Discovery, FollowingLosses


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run; runs with the same recipe, data and seed are identical.

    steps          optimiser steps of `batch` clips each
    frames, size   clip length T, and (height, width) in pixels, multiples of 16
    rate           peak learning rate of AdamW; linear warm-up over `warm_up` steps, then cosine
                   decay to a hundredth
    weight_decay   of AdamW
    clip           maximum gradient norm
    ema            decay of the averaged weights, which are scored and exported; at step n at most
                   (1 + n) / (10 + n)
    precision      "fp32", or "bf16" (autocast)
    backbone_rate  learning rate of pretrained backbones, relative to `rate`; 0: frozen
    losses         losses of models that propagate masks
    parts          networks of target_aware to train: dnet, reid, tnet
    discovery, appearance  objectives of target_aware's D-Net and T-Net
    """

    steps: int = 4000
    batch: int = 4
    frames: int = 3
    size: tuple[int, int] = (112, 192)
    rate: float = 8e-4
    warm_up: int = 100
    weight_decay: float = 0.02
    clip: float = 2.0
    ema: float = 0.998
    precision: str = "fp32"
    seed: int = 0
    backbone_rate: float = 1.0
    losses: FollowingLosses = field(default_factory=FollowingLosses)
    parts: tuple[str, ...] = PARTS
    discovery: Discovery = field(default_factory=Discovery)
    appearance: Appearance = field(default_factory=Appearance)

    def __post_init__(self) -> None:
        check_positive(self, "steps", "batch", "frames")
        check_choice(self, precision=("fp32", "bf16"))
        fits = len(self.size) == 2 and all(side > 0 and side % 16 == 0 for side in self.size)
        check(fits, "size", "two multiples of 16", self.size)
        check(0 < self.rate < 1, "rate", "0..1", self.rate)
        check(0 <= self.ema < 1, "ema", "0..1", self.ema)
        check(0 <= self.backbone_rate <= 1, "backbone_rate", "0..1", self.backbone_rate)


# For training from scratch: bootstrapped and IoU losses, and supervision of the memory read.
FROM_SCRATCH = FollowingLosses(share=0.3, iou=1.0, saliency=1.0, readout=0.3, objects=2, spoilt=0.4)


RECIPES = {
    "lite": Recipe(
        frames=4,
        size=(160, 288),
        rate=1e-3,
        warm_up=50,
        ema=0.997,
        backbone_rate=0.0,
        losses=replace(FROM_SCRATCH, mean=1.0),
    ),
    "small": Recipe(losses=FROM_SCRATCH),
    "paper": Recipe(steps=100_000, batch=4, frames=4, size=(384, 384), rate=2e-5, weight_decay=0.0),
}


def recipe_for(model: str, config: str) -> Recipe:
    """Recipe of a model's configuration, with the changes in the model's registry entry.

    config  "lite" (pretrained backbone), "small" (from scratch) or "paper"

    "paper" has the papers' losses, and MUNet's rate and decay (its section 3.5). (ours) Its other
    values: the papers' schedules and sizes differ, and not all are stated.
    """
    recipe, changes = RECIPES[config], entry(model).recipes.get(config, {})
    parts = {
        n: replace(getattr(recipe, n), **v) for n, v in changes.items() if isinstance(v, Mapping)
    }
    return replace(recipe, **{**changes, **parts})
