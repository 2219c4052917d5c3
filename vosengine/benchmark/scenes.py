"""Inputs of the benchmark: frames of a size, and prompts for a number of objects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..proposals import Proposals, boxes_of
from ..training.synthetic import ClipConfig, iterate_clip
from ..types import Size
from ..video import open_source

DIFFERENT = 8  # distinct frames; a longer stream plays them forwards and backwards
SEED = 7
FALSE = 3  # false proposals


@dataclass(frozen=True)
class Scene:
    """Frames [H, W, 3] uint8 RGB, and a description of their source."""

    frames: tuple[NDArray[np.uint8], ...]
    origin: str

    @property
    def size(self) -> Size:
        height, width = self.frames[0].shape[:2]
        return height, width

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Return frame `index` of an endless stream that plays forwards and backwards."""
        last = len(self.frames) - 1
        if last == 0:
            return self.frames[0]
        turn = index % (2 * last)
        return self.frames[turn if turn <= last else 2 * last - turn]

    def prompt(self, objects: int) -> NDArray[np.uint8]:
        """Return a mask [H, W] uint8 with that many ellipses side by side, in total a fifth of the
        frame.

        The cost of a step depends on the number of objects, not on position or appearance.
        """
        height, width = self.size
        columns = math.ceil(math.sqrt(objects))
        rows = math.ceil(objects / columns)
        mask = np.zeros((height, width), np.uint8)
        for each in range(objects):
            row, column = divmod(each, columns)
            centre = int((column + 0.5) * width / columns), int((row + 0.5) * height / rows)
            axes = max(2, width // (4 * columns)), max(2, height // (4 * rows))
            cv2.ellipse(mask, centre, axes, 0, 0, 360, each + 1, -1)
        return mask


def drawn_scene(size: Size) -> Scene:
    """Return procedural frames of that size."""
    config = ClipConfig(frames=DIFFERENT, height=size[0], width=size[1])
    frames = tuple(frame for frame, _ in iterate_clip(config, SEED))
    return Scene(frames, f"procedural frames, seed {SEED}")


def real_scene(path: str | Path, size: Size) -> Scene:
    """Return the first frames of a video or a folder, resized.

    Raises  InputError or SourceError if there are no frames, or they cannot be read.
    """
    with open_source(str(path)) as source:
        images = [frame.image for frame in islice(source, DIFFERENT)]
    if not images:
        raise InputError(f"{path}: holds no frames; wanted at least one")
    frames = tuple(
        np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
        for image in images
    )
    return Scene(frames, "real frames")


class GivenProposals:
    """Detector without cost: proposals of the prompt's objects, and FALSE others."""

    def __init__(self, prompt: NDArray[np.uint8], device: torch.device) -> None:
        objects = int(prompt.max())
        masks = [prompt == each for each in range(1, objects + 1)]
        shift = prompt.shape[1] // 7
        masks += [np.roll(masks[i % objects], shift * (i + 1), 1) for i in range(FALSE)]
        planes = torch.from_numpy(np.stack(masks)).to(device)
        scores = torch.linspace(0.9, 0.5, len(masks), device=device)
        self._found = Proposals(boxes_of(planes), planes, scores)

    def __call__(self, frame: object, frame_index: int) -> Proposals:
        return self._found
