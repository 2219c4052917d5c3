"""Networks and clips shared by the training tests of the unsupervised models."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from conftest import tiny_config

from vosengine.models.imcnet import IMCNet
from vosengine.models.target_aware.network import TargetAware
from vosengine.training.samples import Batch
from vosengine.zoo.registry import build

Array = np.ndarray[Any, Any]
HEIGHT, WIDTH = 64, 96


def imcnet(**changes: Any) -> IMCNet:
    config = tiny_config("imcnet", **{"norm": "group", "alignments": 1, **changes})
    return cast(IMCNet, build("imcnet", config, seed=1).train().requires_grad_(True))


def target_aware(**changes: Any) -> TargetAware:
    config = tiny_config("target_aware", **{"norm": "group", **changes})
    return cast(TargetAware, build("target_aware", config, seed=1).train().requires_grad_(True))


def clips(count: int = 2, length: int = 3) -> Batch:
    """Discs that move over noise: object 1 in all clips, object 2 in the first one."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    masks = np.zeros((count, length, HEIGHT, WIDTH), np.uint8)
    for clip in range(count):
        for t in range(length):
            masks[clip, t][np.hypot(y - 26 - 4 * t, x - 28 - 5 * t) < 14] = 1
    for t in range(length):
        masks[0, t][np.hypot(y - 40, x - 80 + 3 * t) < 9] = 2
    frames = random.integers(0, 90, (count, 1, HEIGHT, WIDTH, 3)).repeat(length, axis=1)
    for value in (1, 2):
        colour = random.integers(60, 255, (count, 1, 1, 1, 3))
        frames = np.where(masks[..., None] == value, colour, frames)
    tensors = torch.from_numpy(frames.astype(np.uint8)), torch.from_numpy(masks)
    return Batch(*tensors, (2, *[1] * (count - 1)), ("",) * count)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def numpy(x: torch.Tensor) -> Array:
    return x.detach().double().numpy()


def bce(p: Array, target: Array) -> float:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).mean())


def iou(p: Array, target: Array) -> float:
    shared = np.minimum(p, target).sum(axis=(1, 2)) + 1
    return float((1 - shared / (np.maximum(p, target).sum(axis=(1, 2)) + 1)).mean())


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))
