"""Proposals of a detector: type, checks and selection, independent of the array library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import InputError
from ..types import A, Size

P = TypeVar("P", bound="ObjectsSeen[Any]")


@dataclass(frozen=True)
class ObjectsSeen(Generic[A]):
    """P detections in one frame, best first; they may overlap.

    boxes       [P, 4] float32: left, top, right, bottom in pixels, the last two exclusive
    masks       [P, H, W] bool at frame size
    scores      [P] float32 in 0..1
    embeddings  [P, E] float32 unit vectors of the segmentation model's ReID network; None: computed
                by that model
    """

    boxes: A
    masks: A
    scores: A
    embeddings: A | None = None

    def __len__(self) -> int:
        masks: Any = self.masks
        return len(masks)

    def chosen(self: P, numbers: list[int]) -> P:
        """The proposals at these indices, in this order."""
        arrays = [self.boxes, self.masks, self.scores, self.embeddings]
        return type(self)(*(None if array is None else array[numbers] for array in arrays))


def check_arrays(
    proposals: object, size: Size, kind: type[ObjectsSeen[A]], array: type[A], called: str
) -> None:
    """Raise InputError unless `proposals` is a `kind` with valid types, shapes and dtypes.

    size    (H, W) of the frame
    kind    Proposals, or its counterpart without torch
    array   type of the fields; `called` is its name in messages
    """
    if not isinstance(proposals, kind):
        raise InputError(f"proposals: wanted {kind.__name__}, given {type(proposals).__name__}")
    fields: dict[str, Any] = dict(vars(proposals))
    if proposals.embeddings is None:
        del fields["embeddings"]
    for name, value in fields.items():
        if not isinstance(value, array):
            raise InputError(f"proposals: {name}: wanted {called}, given {type(value).__name__}")
    count = fields["masks"].shape[0] if fields["masks"].ndim else 0
    shapes: dict[str, list[Any]] = {"boxes": [count, 4], "masks": [count, *size]}
    for name, value in fields.items():
        wanted, shape = shapes.get(name, [count]), list(value.shape)
        if name == "embeddings":
            wanted = [count, shape[1] if len(shape) == 2 else "E"]
        if shape != wanted:
            sides = f"[{count}, E]" if name == "embeddings" else wanted
            raise InputError(f"proposals: {name}: wanted {sides}, given {shape}")
        dtype = "bool" if name == "masks" else "float32"
        if str(value.dtype).removeprefix("torch.") != dtype:
            raise InputError(f"proposals: {name}: wanted {dtype}, given {value.dtype}")


def check_numbers(boxes: np.ndarray, scores: np.ndarray, lengths: np.ndarray) -> None:
    """Raise InputError unless the values are valid.

    boxes    [P, 4] finite, left <= right, top <= bottom; may extend beyond the frame
    scores   [P] finite
    lengths  [P] finite norms of the embeddings
    """
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)
    for what, array, good in (
        ("boxes: wanted finite numbers", boxes, np.isfinite(boxes).all(axis=1)),
        ("boxes: wanted left <= right and top <= bottom", boxes, ordered),
        ("scores: wanted finite numbers", scores, np.isfinite(scores)),
        ("embeddings: wanted vectors of finite length", lengths, np.isfinite(lengths)),
    ):
        if not good.all():
            worst = int(np.flatnonzero(~good)[0])
            raise InputError(f"proposals: {what}, given {array[worst].tolist()} (number {worst})")


@dataclass(frozen=True)
class Candidates:
    """Boxes, scores and validity of a frame's proposals, on the host.

    boxes   [P, 4] float32
    tight   [P, 4] float32, bounding boxes of the masks
    scores  [P] float32, finite
    shown   [P] bool, whether the mask has enough pixels
    size    (H, W) of the frame
    """

    boxes: np.ndarray
    tight: np.ndarray
    scores: np.ndarray
    shown: np.ndarray
    size: Size

    @property
    def usable(self) -> np.ndarray:
        """bool [P]: the mask has enough pixels, and the box has an area inside the frame."""
        height, width = self.size
        boxes = self.boxes.astype(np.float64)
        inside = _areas(np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], (width, height)))
        usable: np.ndarray = self.shown & (inside > 0)
        return usable

    @property
    def order(self) -> np.ndarray:
        """Indices [P] by descending score; stable for equal scores."""
        return np.argsort(-self.scores, kind="stable")

    def distinct(self, same: Callable[[int, int], bool]) -> list[int]:
        """Indices of the usable proposals without duplicate masks, ascending.

        Of duplicates the one with the highest score is kept, the first among equal scores.

        same  returns whether two masks with equal bounding boxes are equal
        """
        usable = self.usable
        alike: dict[bytes, list[int]] = {}
        for number in self.order.tolist():
            others = alike.setdefault(self.tight[number].tobytes(), [])
            if usable[number] and not any(same(number, other) for other in others):
                others.append(number)
        return sorted(number for others in alike.values() for number in others)

    def best(self, overlap: float, limit: int) -> list[int]:
        """Box non-maximum suppression: up to `limit` indices of usable proposals, best first.

        A box is suppressed if its intersection over union with a kept, better one exceeds
        `overlap`.
        """
        order = self.order
        boxes, alive = self.boxes[order].astype(np.float64), self.usable[order]
        areas = _areas(boxes[:, :2], boxes[:, 2:])
        kept: list[int] = []
        while alive.any() and len(kept) < limit:
            first = int(alive.argmax())
            low, high = np.split(boxes[first], 2)
            shared = _areas(np.maximum(low, boxes[:, :2]), np.minimum(high, boxes[:, 2:]))
            alive &= shared <= overlap * (areas[first] + areas - shared)
            alive[first] = False
            kept.append(int(order[first]))
        return kept


def _areas(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Areas of boxes from their corners [..., 2]; 0 if a side is negative."""
    sides = np.maximum(high - low, 0)
    areas: np.ndarray = sides[..., 0] * sides[..., 1]
    return areas
