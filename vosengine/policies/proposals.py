"""A detector's proposals, with torch and without: what is refused, and which are looked at."""

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
    """P objects that a detector sees in one frame, best first; they may overlap.

    boxes       [P, 4] float32: left, top, right, bottom in pixels, the last two exclusive
    masks       [P, H, W] bool, of the frame's size
    scores      [P] float32 in 0..1
    embeddings  [P, E] float32 of length 1, from the ReID network of the model that will read them;
                None lets that model compute them
    """

    boxes: A
    masks: A
    scores: A
    embeddings: A | None = None

    def __len__(self) -> int:
        masks: Any = self.masks
        return len(masks)

    def chosen(self: P, numbers: list[int]) -> P:
        """Those with these numbers, in this order."""
        arrays = [self.boxes, self.masks, self.scores, self.embeddings]
        return type(self)(*(None if each is None else each[numbers] for each in arrays))


def check_arrays(
    given: object, size: Size, kind: type[ObjectsSeen[A]], array: type[A], called: str
) -> None:
    """Raise InputError unless `given` is a `kind`, its fields arrays of that type, which errors
    call so, of the shapes and dtypes of proposals for a frame of that size."""
    if not isinstance(given, kind):
        raise InputError(f"proposals: wanted {kind.__name__}, given {type(given).__name__}")
    names = [name for name in vars(given) if name != "embeddings" or given.embeddings is not None]
    arrays: dict[str, Any] = {name: getattr(given, name) for name in names}
    for name, found in arrays.items():
        if not isinstance(found, array):
            raise InputError(f"proposals: {name}: wanted {called}, given {type(found).__name__}")
    count = arrays["masks"].shape[0] if arrays["masks"].ndim else 0
    shapes: dict[str, list[Any]] = {"boxes": [count, 4], "masks": [count, *size]}
    for name, found in arrays.items():
        wanted, shape = shapes.get(name, [count]), list(found.shape)
        if name == "embeddings":
            wanted = [count, shape[1] if len(shape) == 2 else "E"]
        if shape != wanted:
            sides = f"[{count}, E]" if name == "embeddings" else wanted
            raise InputError(f"proposals: {name}: wanted {sides}, given {shape}")
        dtype = "bool" if name == "masks" else "float32"
        if str(found.dtype).removeprefix("torch.") != dtype:
            raise InputError(f"proposals: {name}: wanted {dtype}, given {found.dtype}")


def check_numbers(boxes: np.ndarray, scores: np.ndarray, lengths: np.ndarray) -> None:
    """Raise InputError unless boxes [P, 4] are finite and their sides in order, and scores [P] and
    the lengths of embeddings [P] finite. Boxes may reach beyond the frame; nothing is clipped."""
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
    """What is decided by of proposals for a frame of that size.

    boxes   [P, 4] float32
    tight   [P, 4] float32, the tightest boxes around the masks
    scores  [P] float32, finite
    shown   [P] bool, whether the mask is large enough to be an object's
    """

    boxes: np.ndarray
    tight: np.ndarray
    scores: np.ndarray
    shown: np.ndarray
    size: Size

    @property
    def usable(self) -> np.ndarray:
        """bool [P]: something can be matched with it. Its mask shows an object, and its box has an
        area inside the frame."""
        height, width = self.size
        boxes = self.boxes.astype(np.float64)
        inside = _areas(np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], (width, height)))
        usable: np.ndarray = self.shown & (inside > 0)
        return usable

    @property
    def order(self) -> np.ndarray:
        """[P]: by falling score, of equal ones the earlier first."""
        return np.argsort(-self.scores, kind="stable")

    def distinct(self, same: Callable[[int, int], bool]) -> list[int]:
        """Those that are usable, each once, in the order that they have: of exact doubles of a
        mask the one of the best score stays, of equal scores the first.

        same  whether two masks of equal tightest boxes are the same
        """
        usable = self.usable
        alike: dict[bytes, list[int]] = {}
        for number in self.order.tolist():
            others = alike.setdefault(self.tight[number].tobytes(), [])
            if usable[number] and not any(same(number, other) for other in others):
                others.append(number)
        return sorted(number for others in alike.values() for number in others)

    def best(self, overlap: float, limit: int) -> list[int]:
        """Those that are usable and do not say the same twice, best first: non-maximum suppression
        of boxes by falling score, then the first `limit`. A box whose intersection over union with
        a better one that stays is above `overlap` goes."""
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
    """Of boxes between two corners [..., 2]; 0 where these are in the wrong order."""
    sides = np.maximum(high - low, 0)
    areas: np.ndarray = sides[..., 0] * sides[..., 1]
    return areas
