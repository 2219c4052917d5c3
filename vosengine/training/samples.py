"""What training is fed: short clips with their masks, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError


@dataclass(frozen=True)
class Sample:
    """One clip. Any object may be missing in any frame; none is missing in all of them."""

    frames: NDArray[np.uint8]  # [T, H, W, 3] RGB
    masks: NDArray[np.uint8]  # [T, H, W] object ids 1..N without gaps, 0 is background
    origin: str  # for messages: "synthetic clip 17", "bear, frames 3 7 12"
    framed: bool = False  # seen by a camera of its own: no crop is taken of it


class Source(Protocol):
    """Clips by number. The same number and progress give the same clip in any process and in any
    order: that is what makes a run resume exactly."""

    def sample(self, index: int, progress: float) -> Sample:
        """Clip number `index`, 0 or more; progress 0..1 is how far the training is."""


class Batch(NamedTuple):
    """B clips of T frames."""

    frames: torch.Tensor  # [B, T, H, W, 3] uint8 RGB
    masks: torch.Tensor  # [B, T, H, W] uint8, object ids 1..counts[b], 0 is background
    counts: tuple[int, ...]
    origins: tuple[str, ...]


def collate(samples: Sequence[Sample]) -> Batch:
    """Clips of one size and length as a batch. Raises InputError where they differ."""
    shapes = {sample.masks.shape for sample in samples}
    if len(shapes) != 1:
        raise InputError(f"samples: wanted clips of one shape [T, H, W], given {sorted(shapes)}")
    return Batch(
        torch.from_numpy(np.stack([sample.frames for sample in samples])),
        torch.from_numpy(np.stack([sample.masks for sample in samples])),
        tuple(int(sample.masks.max()) for sample in samples),
        tuple(sample.origin for sample in samples),
    )
