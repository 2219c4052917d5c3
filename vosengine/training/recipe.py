"""Recipes: how long, how fast and with which losses a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..config.checks import check
from ..errors import ConfigError
from ..zoo.registry import entry
from .objectives import PARTS, Appearance, Discovery, FollowingLosses


@dataclass(frozen=True)
class Recipe:
    """What makes a run what it is: two runs with the same recipe, data and seed are the same.

    steps          optimiser steps, batch clips each
    frames, size   of a clip: T, and (height, width) in pixels, multiples of 16
    rate           AdamW's greatest learning rate; it rises for `warm_up` steps and falls along a
                   cosine to a hundredth
    weight_decay   AdamW's
    clip           greatest norm of the gradient
    ema            decay of the averaged weights, which are what is scored and exported; in the
                   first steps (1 + n) / (10 + n), where that is less
    precision      "fp32", or "bf16": autocast
    backbone_rate  share of the rate with which pretrained backbones are trained; 0: not at all
    losses         of the models that follow masks
    parts          of target_aware that are trained: dnet, reid, tnet
    discovery, appearance  how its D-Net and its T-Net are trained
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
        for name in ("steps", "batch"):
            check(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        check(self.frames >= 1, "frames", "1 or more", self.frames)
        fits = len(self.size) == 2 and all(side > 0 and side % 16 == 0 for side in self.size)
        check(fits, "size", "two multiples of 16", self.size)
        check(0 < self.rate < 1, "rate", "0..1", self.rate)
        check(0 <= self.ema < 1, "ema", "0..1", self.ema)
        check(0 <= self.backbone_rate <= 1, "backbone_rate", "0..1", self.backbone_rate)
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision: wanted fp32 or bf16, given {self.precision!r}")


# From scratch, on a CPU: hard pixels and whole masks count, and the memory is taught what to read.
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
    """The recipe of a model's configuration: "lite", over a pretrained backbone; "small", from
    scratch; or its "paper"'s. What differs from model to model, the registry says.

    Of the last the losses are the papers', and MUNet's rate and decay [P section 3.5]; the rest
    is ours: the papers' lengths and sizes differ, and not all are stated. (ours)
    """
    recipe, changes = RECIPES[config], entry(model).recipes.get(config, {})
    parts = {
        n: replace(getattr(recipe, n), **v) for n, v in changes.items() if isinstance(v, Mapping)
    }
    return replace(recipe, **{**changes, **parts})
