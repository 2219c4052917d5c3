"""Baselines without a network."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .measure import Labels

Frame = NDArray[np.uint8]  # [H, W, 3] RGB


class FirstMask:
    """Baseline that returns the first mask for every frame."""

    def __init__(self, frame: Frame, mask: Labels) -> None:
        self._mask = mask

    def step(self, frame: Frame) -> Labels:
        """Return the labels of the next frame."""
        return self._mask


class WarpedMask:
    """Baseline that warps the first mask by optical flow (DIS, OpenCV's medium preset).

    Each object's mask, 1 inside and 0 outside, is sampled bilinearly along the flow from the
    current frame to the previous one. It is not rounded between frames, since that would lose
    slow motion. The label of a pixel is the argmax over the objects and the background, which is
    1 minus the sum of the objects.
    """

    def __init__(self, frame: Frame, mask: Labels) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        self._ids = np.unique(np.append(mask, 0)).astype(np.uint8)  # the background first
        self._planes = [(mask == i).astype(np.float32) for i in self._ids[1:]]
        rows, columns = np.indices(mask.shape, dtype=np.float32)
        self._grid = np.stack([columns, rows], axis=-1)

    def step(self, frame: Frame) -> Labels:
        """Return the labels of the next frame."""
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
    """Labels of a centred ellipse with the frame's aspect ratio; `share` is its share of the area.

    Returns uint8 [height, width], 1 inside.
    """
    scale = math.sqrt(share / math.pi)
    y = (np.arange(height) + 0.5 - height / 2) / (scale * height)
    x = (np.arange(width) + 0.5 - width / 2) / (scale * width)
    return (y[:, None] ** 2 + x[None] ** 2 <= 1).astype(np.uint8)
