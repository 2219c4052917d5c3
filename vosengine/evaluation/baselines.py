"""What a network has to beat: answers that need none."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .measure import Labels

Frame = NDArray[np.uint8]  # [H, W, 3] RGB


class FirstMask:
    """The first mask, for every frame."""

    def __init__(self, frame: Frame, mask: Labels) -> None:
        self._mask = mask

    def step(self, frame: Frame) -> Labels:
        """The answer for the next frame."""
        return self._mask


class WarpedMask:
    """The first mask carried from frame to frame by optical flow (DIS, OpenCV's medium preset).

    Every object's plane, 1 inside and 0 outside, is sampled bilinearly where the flow from this
    frame to the one before points, and stays soft from frame to frame: rounded each time, slow
    motion would be lost. A pixel shows its greatest object, where that is more than what the
    objects leave to the background.
    """

    def __init__(self, frame: Frame, mask: Labels) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        self._ids = np.unique(np.append(mask, 0)).astype(np.uint8)  # the background first
        self._planes = [(mask == i).astype(np.float32) for i in self._ids[1:]]
        rows, columns = np.indices(mask.shape, dtype=np.float32)
        self._grid = np.stack([columns, rows], axis=-1)

    def step(self, frame: Frame) -> Labels:
        """The answer for the next frame."""
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        backward = self._flow.calc(grey, self._grey, None)  # type: ignore[call-overload]
        places = self._grid + backward
        self._planes = [
            cv2.remap(plane, places, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]
            for plane in self._planes
        ]
        self._grey = grey
        background = 1 - np.sum(self._planes, axis=0)
        labels: Labels = self._ids[np.argmax([background, *self._planes], axis=0)]
        return labels


def centred_ellipse(height: int, width: int, share: float = 0.15) -> Labels:
    """Object 1 as an ellipse of the frame's aspect in its middle, with that share of its area."""
    scale = math.sqrt(share / math.pi)
    y = (np.arange(height) + 0.5 - height / 2) / (scale * height)
    x = (np.arange(width) + 0.5 - width / 2) / (scale * width)
    return (y[:, None] ** 2 + x[None] ** 2 <= 1).astype(np.uint8)
