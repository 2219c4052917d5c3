"""Benchmark cases that are heavy on a CPU: timed on a GPU, or with --all-cases.

TARGETS are the cases, here and in cases.py, that have a performance target; they are timed first,
and compiled peers are timed on them.
"""

from __future__ import annotations

from typing import Any

import torch

from vosengine.kernels.cases import Case, Make

FRAME = 1620  # positions of a 480p frame at stride 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _memory(groups: int, frames: int, lengths: tuple[int, ...] | None = None) -> Make:
    """Keys of 128 channels and values of 512. No lengths by default, which favours the peers: they
    would have to copy them to the host, or mask."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        made: dict[str, Any] = {
            "query_key": torch.randn(FRAME, 128, generator=generator),
            "memory_key": torch.randn(groups, frames * FRAME, 128, generator=generator),
            "memory_value": torch.randn(groups, frames * FRAME, 512, generator=generator),
            "scale": 128**-0.5,
        }
        if lengths is not None:
            ends = [FRAME * frame for frame in lengths]
            made["length"] = torch.tensor(ends, dtype=torch.int32)
        return made

    return make


def _aligned(images: int) -> Make:
    """IMCNet's alignment of neighbouring frames, 480 x 480."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        return {
            "x": torch.randn(images, 64, 120, 120, generator=generator),
            "offset": 2 * torch.randn(images, 144, 120, 120, generator=generator),
            "weight": torch.randn(64, 64, 3, 3, generator=generator) / 24,
            "bias": torch.randn(64, generator=generator),
            "padding": 1,
        }

    return make


def _frame(generator: torch.Generator) -> dict[str, Any]:
    """A 1080p frame without resizing, padded to a multiple of 16."""
    frame = torch.randint(0, 256, (1080, 1920, 3), generator=generator, dtype=torch.uint8)
    return {
        "frame": frame,
        "size": (1080, 1920),
        "padding": (0, 0, 4, 4),
        "mean": MEAN,
        "std": STD,
        "dtype": torch.float32,
    }


def _masks(probabilities: bool) -> Make:
    """Ten objects at 1080p from a grid at stride 4, 4 rows of padding above and below."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        return {
            "logits": 4 * torch.randn(10, 272, 480, generator=generator),
            "ids": torch.arange(1, 11, dtype=torch.uint8),
            "size": (1080, 1920),
            "region": (1.0, 0.0, 270.0, 480.0),
            "probabilities": probabilities,
        }

    return make


GPU_CASES: dict[str, tuple[Case, ...]] = {
    "prepare_frame": (Case("1080p", _frame, bench=True),),
    "read_memory": (
        Case("480p, three objects, 20 frames", _memory(3, 20), bench=True),
        Case("480p, three objects, 5 frames", _memory(3, 5), bench=True),
        Case("480p, three objects, 1 frame", _memory(3, 1), bench=True),
        Case(
            "480p, three objects, up to 20 frames", _memory(3, 20, lengths=(20, 12, 3)), bench=True
        ),
    ),
    "deform_conv": (Case("IMCNet, 480 square, two frames", _aligned(2), bench=True),),
    "finish_masks": (
        Case("1080p, 10 objects", _masks(probabilities=False), bench=True),
        Case("1080p, 10 objects, probabilities", _masks(probabilities=True), bench=True),
    ),
}

TARGETS: dict[str, tuple[str, ...]] = {
    "prepare_frame": ("1080p",),
    "correlate_frames": ("480p",),
    "read_memory": tuple(case.name for case in GPU_CASES["read_memory"][:3]),
    "deform_conv": ("IMCNet, 480 square, two frames",),
    "match_proposals": ("3 objects, 30 proposals",),
    "finish_masks": ("1080p, 10 objects",),
}
