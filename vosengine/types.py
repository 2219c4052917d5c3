"""Data types shared by the parts of the engine: Geometry, Prompt, Scores, Masks, Result."""

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
A = TypeVar("A")  # torch.Tensor, or np.ndarray with onnxruntime


@dataclass(frozen=True)
class Geometry:
    """Mapping from the caller's frame to the network's input: resized, then padded with black.

    frame    (H, W) of the caller's frames
    resized  (height, width) of the frame inside the network's input; equal to `frame` if native
    padding  (left, right, top, bottom) in pixels
    """

    frame: Size
    resized: Size
    padding: tuple[int, int, int, int]

    @classmethod
    def fit(cls, frame: Size, *, size: Size | int | None, multiple: int) -> Geometry:
        """Resize, then pad symmetrically to a `multiple`.

        frame     (H, W) of the frame
        size      int: length of the short side, aspect ratio kept; (height, width): stretch;
                  None: the frame's own size
        multiple  divisor of the padded sides

        An odd remainder is padded on the right and bottom, as in STM's released evaluation.
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
        """(h, w) of the feature grid at a stride that divides the padded size."""
        return self.network[0] // stride, self.network[1] // stride

    def region(self, stride: int) -> tuple[float, float, float, float]:
        """(top, left, height, width) of the frame on the feature grid at a stride, in cells."""
        left, _, top, _ = self.padding
        return top / stride, left / stride, self.resized[0] / stride, self.resized[1] / stride


@dataclass(frozen=True)
class Prompt(Generic[A]):
    """A checked mask prompt.

    labels  [H, W] uint8 object ids at frame size, 0 unlabelled
    ids     the object ids present, ascending
    """

    labels: A
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """Output of `segment` for a frame.

    logits  [O, h, w] foreground minus background, on the network's grid: one row per slot, then
            one per object discovered in this frame, best first
    stride  pixels per grid cell
    aux     auxiliary output for `remember`; opaque to the engine
    """

    logits: torch.Tensor
    stride: int
    aux: Any = None


@dataclass(frozen=True)
class Masks:
    """Input of `remember`: the masks of one frame, to be written to memory.

    probabilities  [1 + O, H, W] at the network's padded size, row 0 the background, then one row
                   per slot; 0 in the padding
    prompted       slots whose mask was given by the caller in this frame
    aux            auxiliary output of `segment` for this frame, or None
    streams        [O] int64, stream index of each object in a batch of streams; None: one stream
    """

    probabilities: torch.Tensor
    prompted: tuple[int, ...] = ()
    aux: Any = None
    streams: torch.Tensor | None = None

    @property
    def object_count(self) -> int:
        return self.probabilities.shape[0] - 1

    def others(self) -> torch.Tensor:
        """[O, H, W] in 0..1: for each object the sum of all other objects of its stream."""
        own = self.probabilities[1:]
        if self.streams is None:
            total = own.sum(dim=0, keepdim=True)
        else:
            # Sized by objects: the number of streams is known on the device only.
            total = own.new_zeros(own.shape).index_add(0, self.streams, own)[self.streams]
        return (total - own).clamp(0, 1)


@dataclass(frozen=True)
class Result(Generic[A]):
    """Segmentation result for one frame.

    labels       [H, W] uint8, object id of every pixel, 0 for background; a tensor on the engine's
                 device, or a numpy array from an OnnxSegmenter
    ids          ids of the objects alive after this frame, ascending
    frame_index  index of the frame, from 0; it lags behind `step` by the model's latency

    May be copied and pickled. A pickle includes the probabilities, 4 bytes per row and pixel; it
    is loaded on its original device, or on the CPU if that device does not exist.
    """

    labels: A
    ids: tuple[int, ...]
    frame_index: int
    _probabilities: Callable[[], A] = field(repr=False)

    @property
    def probabilities(self) -> A:
        """[1 + O, H, W] float32 in 0..1 at frame size: background, then objects by ascending id.

        Computed on each access.
        """
        return self._probabilities()

    def numpy(self) -> np.ndarray:
        """The labels as a numpy array [H, W] uint8; synchronises with the device."""
        if isinstance(self.labels, np.ndarray):
            return self.labels
        labels: Any = self.labels
        array: np.ndarray = labels.cpu().numpy()
        return array

    def rle(self, object_id: int) -> dict[str, Any]:
        """An object's mask as COCO RLE: {"size": [H, W], "counts": compressed text}.

        Compatible with pycocotools. Empty for an object not visible in this frame. Synchronises
        with the device.

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
        """Copies the labels; the probabilities are computed on each access."""
        return replace(self, labels=deepcopy(self.labels, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        labels: Any = self.labels
        device = None if isinstance(labels, np.ndarray) else str(labels.device)
        probabilities: Any = self.probabilities
        if device is not None:
            probabilities = probabilities.cpu().numpy()
        return _unpickled, (self.numpy(), self.ids, self.frame_index, probabilities, device)


def _unpickled(
    labels: np.ndarray,
    ids: tuple[int, ...],
    frame_index: int,
    probabilities: np.ndarray,
    device: str | None,
) -> Result[Any]:
    """Rebuild a pickled Result; device: that of its tensors, or None for numpy arrays."""
    if device is None:
        return Result(labels, ids, frame_index, probabilities.copy)
    import torch

    target = torch.device(device)
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        target = torch.device("cpu")
    saved = torch.tensor(probabilities, device=target)
    return Result(torch.tensor(labels, device=target), ids, frame_index, saved.clone)
