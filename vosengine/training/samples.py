"""Training samples: annotated clips, sources of clips, and batches."""

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
    """One annotated clip. An object may be absent in some frames, but not in all."""

    frames: NDArray[np.uint8]  # [T, H, W, 3] RGB
    masks: NDArray[np.uint8]  # [T, H, W] object ids 1..N without gaps, 0 is background
    origin: str  # name used in messages: "synthetic clip 17", "bear, frames 3 7 12"
    framed: bool = False  # drawn at the training size; augmentation does not crop it


class Source(Protocol):
    """Deterministic source of clips: index and progress determine the clip, in any process and
    order, so that a run resumes exactly."""

    def sample(self, index: int, progress: float) -> Sample:
        """Clip number `index`, 0 or more, at training progress 0..1."""


class Batch(NamedTuple):
    """Batch of B clips of T frames."""

    frames: torch.Tensor  # [B, T, H, W, 3] uint8 RGB
    masks: torch.Tensor  # [B, T, H, W] uint8, object ids 1..counts[b], 0 is background
    counts: tuple[int, ...]  # number of objects per clip
    origins: tuple[str, ...]  # Sample.origin per clip


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack clips of equal shape to a batch. Raises InputError if shapes differ."""
    shapes = {sample.masks.shape for sample in samples}
    if len(shapes) != 1:
        raise InputError(f"samples: wanted clips of one shape [T, H, W], given {sorted(shapes)}")
    return Batch(
        torch.from_numpy(np.stack([sample.frames for sample in samples])),
        torch.from_numpy(np.stack([sample.masks for sample in samples])),
        tuple(int(sample.masks.max()) for sample in samples),
        tuple(sample.origin for sample in samples),
    )
