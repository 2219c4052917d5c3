"""The nouns that pass between the parts of the engine."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from .errors import InputError
from .rle import encode

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]  # (height, width) in pixels
A = TypeVar("A")  # torch.Tensor, or np.ndarray where onnxruntime computed


@dataclass(frozen=True)
class Geometry:
    """How the caller's frame lies in the network's input: resized, then padded with black.

    frame    (H, W) of the caller's frames
    resized  (height, width) of the frame inside the network's input; equal to `frame` when native
    padding  (left, right, top, bottom) black pixels around it
    """

    frame: Size
    resized: Size
    padding: tuple[int, int, int, int]

    @classmethod
    def fit(cls, frame: Size, *, size: Size | int | None, multiple: int) -> Geometry:
        """Resize, then pad symmetrically to a `multiple`.

        size  an int is the short side, the aspect kept; a (height, width) stretches the frame to
              it; None is the frame's own size

        An odd rest goes to the right and to the bottom, as in STM's released evaluation.
        """
        resized = frame
        if isinstance(size, tuple):
            resized = size
        elif size is not None and size != min(frame):
            scale = size / min(frame)
            resized = (max(1, round(frame[0] * scale)), max(1, round(frame[1] * scale)))
        rest_y, rest_x = (-side % multiple for side in resized)
        left, top = rest_x // 2, rest_y // 2
        return cls(frame, resized, (left, rest_x - left, top, rest_y - top))

    @property
    def network(self) -> Size:
        """(height, width) of the network's input."""
        left, right, top, bottom = self.padding
        return self.resized[0] + top + bottom, self.resized[1] + left + right

    def cells(self, stride: int) -> Size:
        """(h, w) of the network's grid at a stride that divides the padded size."""
        return self.network[0] // stride, self.network[1] // stride

    def region(self, stride: int) -> tuple[float, float, float, float]:
        """(top, left, height, width) of the frame on the grid at that stride, in cells."""
        left, _, top, _ = self.padding
        return top / stride, left / stride, self.resized[0] / stride, self.resized[1] / stride


@dataclass(frozen=True)
class Prompt(Generic[A]):
    """What a caller's mask shows; found out once, where it comes in.

    labels  [H, W] uint8 object ids at frame size, 0 where it says nothing
    ids     those that it names, ascending
    """

    labels: A
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """What `segment` says of a frame.

    logits    [O, h, w] foreground minus background, on the network's grid, `stride` pixels a cell:
              one row per slot, then one per object that was discovered in this frame, best first
    aux  what else `remember` will want to know of this frame; the engine passes it on unseen
    """

    logits: torch.Tensor
    stride: int
    aux: Any = None


@dataclass(frozen=True)
class Masks:
    """What `remember` is given: the masks of one frame as the memory is to see them.

    probabilities  [1 + O, H, W] at the network's padded size, row 0 the background, then one row
                   per slot; 0 in the padding
    prompted       the slots whose mask was given by the caller in this frame
    aux       what `segment` noted of this frame; None where it was not asked
    streams        [O] int64, of which stream every object is, where those of several are seen
                   together; None: all of one
    """

    probabilities: torch.Tensor
    prompted: tuple[int, ...] = ()
    aux: Any = None
    streams: torch.Tensor | None = None

    @property
    def object_count(self) -> int:
        return self.probabilities.shape[0] - 1

    def others(self) -> torch.Tensor:
        """[O, H, W] in 0..1: of every object the sum of all others of its stream."""
        own = self.probabilities[1:]
        if self.streams is None:
            total = own.sum(dim=0, keepdim=True)
        else:
            # No more streams than objects; how many, only the device knows.
            total = own.new_zeros(own.shape).index_add(0, self.streams, own)[self.streams]
        return (total - own).clamp(0, 1)


@dataclass(frozen=True)
class Result(Generic[A]):
    """The answer for one frame.

    labels       [H, W] uint8, object id of every pixel, 0 for background; a tensor on the engine's
                 device, or from an OnnxSegmenter a numpy array
    ids          the objects alive after this frame, ascending
    frame_index  the frame answered for, counted from 0; it lags behind `step` by the latency

    It may be copied and pickled. A pickle holds the probabilities too, 4 bytes a row and pixel,
    and comes back on the device that it was on, or on the CPU where there is no such device.
    """

    labels: A
    ids: tuple[int, ...]
    frame_index: int
    _probabilities: Callable[[], A] = field(repr=False)

    @property
    def probabilities(self) -> A:
        """[1 + O, H, W] float32 at frame size, row 0 the background, then the objects by id."""
        return self._probabilities()

    def numpy(self) -> np.ndarray:
        """The labels as a numpy array [H, W] uint8; waits for the device."""
        if isinstance(self.labels, np.ndarray):
            return self.labels
        labels: Any = self.labels
        array: np.ndarray = labels.cpu().numpy()
        return array

    def rle(self, object_id: int) -> dict[str, Any]:
        """One object's mask as COCO's JSON has it: {"size": [H, W], "counts": the runs down the
        columns, as the compressed text that pycocotools reads and writes}. An object that is not
        seen in this frame has an empty mask. Waits for the device.

        Raises  InputError for an object that is not among `ids`.
        """
        if object_id not in self.ids:
            alive = ", ".join(map(str, self.ids)) or "none"
            raise InputError(f"rle: no object {object_id}; those of this frame: {alive}")
        mask = self.numpy() == object_id
        return {"size": list(mask.shape), "counts": encode(mask)}

    def __copy__(self) -> Result[A]:
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Result[A]:
        """Labels of its own; probabilities are made anew whenever they are asked for."""
        return replace(self, labels=deepcopy(self.labels, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        labels: Any = self.labels
        device = None if isinstance(labels, np.ndarray) else str(labels.device)
        probabilities: Any = self.probabilities
        if device is not None:
            probabilities = probabilities.cpu().numpy()
        given = self.numpy(), self.ids, self.frame_index, probabilities, device
        return _unpickled, given


def _unpickled(
    labels: np.ndarray,
    ids: tuple[int, ...],
    frame_index: int,
    probabilities: np.ndarray,
    device: str | None,
) -> Result[Any]:
    """The Result that was pickled; device: where its tensors were, None where it had arrays."""
    if device is None:
        return Result(labels, ids, frame_index, probabilities.copy)
    import torch

    home = torch.device(device)
    if home.type == "cuda" and (home.index or 0) >= torch.cuda.device_count():
        home = torch.device("cpu")
    held = torch.tensor(probabilities, device=home)
    return Result(torch.tensor(labels, device=home), ids, frame_index, held.clone)
