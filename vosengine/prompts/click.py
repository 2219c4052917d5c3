"""Masks from prompts by the click network."""

from __future__ import annotations

from functools import cache
from threading import Lock

import cv2
import numpy as np
import torch

from ..ambient import own_settings
from ..runtime.network import prepare_network
from .crop import GREY, Crop, marked_box, square_around
from .hints import BACKGROUND, OBJECT, Hints, Pixels
from .network import PLANES, ClickNet, Seen
from .weights import load_shipped

_loading = Lock()


class ClickModel:
    """A click network for inference, on the CPU in float32; thread-safe.

    The backbone's features of the last crop are cached: a further click in the same crop runs only
    the decoder.
    """

    def __init__(self, network: ClickNet) -> None:
        """network: in evaluation mode; it is modified and must not be used otherwise."""
        self.config = network.config
        self._network = prepare_network(network, torch.device("cpu"), torch.float32)
        self._last: tuple[np.ndarray, Seen] | None = None

    @own_settings()
    def mask(self, frame: np.ndarray, hints: Hints) -> Pixels:
        """Mask uint8 [H, W], 0 or 1, for a frame uint8 [H, W, 3] RGB."""
        crop, size = square_around(marked_box(hints), hints.size), self.config.size
        seen = self._seen(crop.cut(frame, size, GREY))
        planes = torch.from_numpy(planes_of(hints, crop, size, self.config.radius))[None]
        logits = self._network(seen, planes)[0].numpy()
        return np.asarray(crop.paste(logits, outside=-1.0) > 0, np.uint8)

    def _seen(self, pixels: np.ndarray) -> Seen:
        """The backbone's features of a crop uint8 [size, size, 3]."""
        last = self._last  # a single read: another thread may replace it
        if last is not None and np.array_equal(last[0], pixels):
            return last[1]
        mean, std = torch.tensor(self.config.mean), torch.tensor(self.config.std)
        normal = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(2, 0, 1)[None]
        seen = self._network.encode(normal)  # already channels last
        self._last = pixels, seen
        return seen


def planes_of(hints: Hints, crop: Crop, size: int, radius: int) -> np.ndarray:
    """The hints as network input: float32 [PLANES, size, size] of 0 and 1; radius: of a click's
    disc in pixels."""
    planes = np.zeros((PLANES, size, size), np.float32)
    if hints.previous is not None:
        planes[0] = crop.cut(hints.previous * np.uint8(255), size, 0) >= 128
    if hints.scribbles is not None:
        for plane, value in ((1, OBJECT), (2, BACKGROUND)):
            marked = np.where(hints.scribbles == value, np.uint8(255), np.uint8(0))
            planes[plane] = crop.cut(marked, size, 0) > 0
    for x, y, positive in hints.points:
        cv2.circle(planes[1 if positive else 2], crop.place(x, y, size), radius, 1.0, cv2.FILLED)
    if hints.box is not None:
        x, y, wide, high = hints.box
        scale = size / crop.side
        left, right = (round((edge - crop.x) * scale) for edge in (x, x + wide))
        top, bottom = (round((edge - crop.y) * scale) for edge in (y, y + high))
        planes[3, top : max(bottom, top + 1), left : max(right, left + 1)] = 1
    return planes


@cache
def _shipped() -> ClickModel:
    return ClickModel(load_shipped()[0])


def click(frame: np.ndarray, hints: Hints) -> Pixels:
    """Mask uint8 [H, W] by the weights that ship, loaded at the first call. Raises WeightsError."""
    with _loading:
        model = _shipped()
    return model.mask(frame, hints)
