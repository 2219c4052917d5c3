"""Object proposals: what a detector says of a frame, and how masks and boxes are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch.nn import functional

from .errors import InputError
from .types import Geometry, Size


@dataclass(frozen=True)
class Proposals:
    """P objects that a detector sees in one frame, best first; they may overlap.

    boxes       [P, 4] float32: left, top, right, bottom in pixels, the last two exclusive
    masks       [P, H, W] bool, of the frame's size
    scores      [P] float32 in 0..1
    embeddings  [P, E] float32 of length 1, from the ReID network of the model that will read them;
                None lets that model compute them
    """

    boxes: torch.Tensor
    masks: torch.Tensor
    scores: torch.Tensor
    embeddings: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.masks)


class ProposalSource(Protocol):
    """Where proposals come from: any callable, asked once for every frame of a stream, in order."""

    def __call__(self, frame: torch.Tensor, frame_index: int) -> Proposals:
        """Proposals for a frame [H, W, 3] RGB, uint8 or float32 in 0..1, on the engine's device."""
        ...


@runtime_checkable
class StatefulSource(ProposalSource, Protocol):
    """A source that remembers earlier frames: what it remembers is saved with the stream."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that the source needs to go on elsewhere."""
        ...

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave; StateError, before anything has changed, where it is not
        this source's."""
        ...


def check_proposals(proposals: Proposals | None, size: Size) -> None:
    """Raise InputError unless these are proposals for a frame of that size.

    Boxes may reach beyond the frame; nothing is clipped.
    """
    if not isinstance(proposals, Proposals):
        raise InputError(f"proposals: wanted Proposals, given {type(proposals).__name__}")
    vectors = proposals.embeddings
    names = ("boxes", "masks", "scores", *(() if vectors is None else ("embeddings",)))
    for name in names:
        if not isinstance(getattr(proposals, name), torch.Tensor):
            given = type(getattr(proposals, name)).__name__
            raise InputError(f"proposals: {name}: wanted a torch tensor, given {given}")
    count = proposals.masks.shape[0] if proposals.masks.ndim else 0
    wanted = {
        "boxes": ([count, 4], torch.float32),
        "masks": ([count, *size], torch.bool),
        "scores": ([count], torch.float32),
    }
    for name, (shape, dtype) in wanted.items():
        tensor = getattr(proposals, name)
        if list(tensor.shape) != shape:
            raise InputError(f"proposals: {name}: wanted {shape}, given {list(tensor.shape)}")
        if tensor.dtype != dtype:
            name_of = str(dtype).removeprefix("torch.")
            raise InputError(f"proposals: {name}: wanted {name_of}, given {tensor.dtype}")
    if vectors is not None and (vectors.ndim != 2 or len(vectors) != count):
        raise InputError(f"proposals: embeddings: wanted [{count}, E], given {list(vectors.shape)}")
    if vectors is not None and vectors.dtype != torch.float32:
        raise InputError(f"proposals: embeddings: wanted float32, given {vectors.dtype}")
    boxes, scores = proposals.boxes, proposals.scores
    lengths = scores if vectors is None else vectors.norm(dim=1).to(scores.device)
    # Brought over together: each number that Python reads off a GPU waits for it.
    checks = boxes.isfinite().all(dim=1), _ordered(boxes), scores.isfinite(), lengths.isfinite()
    good = torch.stack(checks).cpu()
    faults = (
        ("boxes: wanted finite numbers", boxes),
        ("boxes: wanted left <= right and top <= bottom", boxes),
        ("scores: wanted finite numbers", scores),
        ("embeddings: wanted vectors of finite length", lengths),
    )
    for (what, tensor), row in zip(faults, good, strict=True):
        if not row.all():
            worst = int(row.logical_not().nonzero()[0])
            raise InputError(f"proposals: {what}, given {tensor[worst].tolist()} (number {worst})")


def _ordered(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2:] >= boxes[:, :2]).all(dim=1)


def clean(proposals: Proposals, smallest: int = 1) -> Proposals:
    """The proposals that something can be matched with, each once, in the order that they had.

    Left out are masks of fewer than `smallest` pixels, boxes without area inside the frame, and
    exact doubles of a mask: of these the one of the best score stays, of equal scores the first.
    Detectors give all of them, and whatever looks at proposals would take them for objects.
    """
    usable = _usable(proposals, smallest)
    masks, scores = proposals.masks, proposals.scores
    # Only masks of equal boxes are compared; all numbers are brought over together.
    boxes = boxes_of(masks)
    rows = torch.cat((boxes, scores[:, None], usable[:, None]), dim=1).tolist()
    alike: dict[tuple[float, ...], list[int]] = {}
    for number in sorted(range(len(rows)), key=lambda number: -rows[number][4]):
        *box, _, is_usable = rows[number]
        same = alike.setdefault(tuple(box), [])
        if is_usable and not any(torch.equal(masks[number], masks[other]) for other in same):
            same.append(number)
    kept = sorted(number for same in alike.values() for number in same)
    return proposals if len(kept) == len(rows) else _chosen(proposals, kept)


def _usable(proposals: Proposals, smallest: int) -> torch.Tensor:
    """bool [P]: a mask of that many pixels, and a box that has an area inside the frame."""
    boxes, (height, width) = proposals.boxes.double(), proposals.masks.shape[1:]
    inside = _sides(boxes, boxes.new_tensor((0, 0)), boxes.new_tensor((width, height)))
    shown = _any(proposals.masks.flatten(1), 1)
    if smallest > 1 and len(proposals):  # one by one: 8 ms, not 68, for 100 of 256 x 456 (CPU)
        shown = torch.stack([mask.count_nonzero() for mask in proposals.masks]) >= smallest
    return shown & (inside > 0).all(dim=1)


def _chosen(proposals: Proposals, numbers: list[int]) -> Proposals:
    rows = torch.tensor(numbers, dtype=torch.long, device=proposals.masks.device)
    vectors = proposals.embeddings
    return Proposals(
        proposals.boxes[rows],
        proposals.masks[rows],
        proposals.scores[rows],
        None if vectors is None else vectors[rows],
    )


def best_of(proposals: Proposals, *, overlap: float = 0.4, limit: int = 30) -> Proposals:
    """The best proposals that do not say the same twice: non-maximum suppression of boxes by
    falling score, then the first `limit`.

    A box whose intersection over union with a better one that stays is above `overlap` goes; of
    equal scores the earlier is the better. Left out before all that are proposals with an empty
    mask, or with a box that has no area inside the frame: detectors give such, and nothing can be
    matched with them.
    """
    order = proposals.scores.argsort(descending=True, stable=True)
    boxes = proposals.boxes[order].double()
    usable = _usable(proposals, 1)[order]
    areas = _sides(boxes).prod(dim=1)
    shared = _sides(boxes[:, None], boxes[:, :2], boxes[:, 2:]).prod(dim=2)
    close = shared > overlap * (areas[:, None] + areas - shared)
    table = torch.cat((usable[:, None], close), dim=1).cpu().numpy()
    alive, close_to, places = table[:, 0], table[:, 1:], order.tolist()
    kept: list[int] = []
    for index in range(len(alive)):
        if len(kept) == limit:
            break
        if alive[index]:
            kept.append(index)
            alive &= ~close_to[index]
    return _chosen(proposals, [places[index] for index in kept])


def _sides(
    boxes: torch.Tensor, least: torch.Tensor | None = None, most: torch.Tensor | None = None
) -> torch.Tensor:
    """Width and height [..., 2] of the part of boxes [..., 4] between two corners."""
    low = boxes[..., :2] if least is None else boxes[..., :2].maximum(least)
    high = boxes[..., 2:] if most is None else boxes[..., 2:].minimum(most)
    return (high - low).clamp(min=0)


def to_network(proposals: Proposals, geometry: Geometry, device: torch.device) -> Proposals:
    """Proposals for the caller's frame as proposals for the network's padded input."""
    masks = resize_masks(proposals.masks.to(device), geometry.resized)
    left, _, top, _ = geometry.padding
    (height, width), (new_height, new_width) = geometry.frame, geometry.resized
    scale = proposals.boxes.new_tensor([new_width / width, new_height / height] * 2)
    boxes = proposals.boxes * scale + proposals.boxes.new_tensor([left, top] * 2)
    vectors = proposals.embeddings
    return Proposals(
        boxes.to(device),
        functional.pad(masks, geometry.padding),
        proposals.scores.to(device),
        None if vectors is None else vectors.to(device),
    )


def resize_masks(masks: torch.Tensor, size: Size) -> torch.Tensor:
    """Masks [N, H, W] bool at another size, each pixel that of the nearest centre."""
    if tuple(masks.shape[1:]) == size:
        return masks
    planes = masks[:, None].to(torch.uint8)
    return functional.interpolate(planes, size, mode="nearest-exact")[:, 0].bool()


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    """The tightest boxes [N, 4] (left, top, right, bottom; float32) around masks [N, H, W] bool;
    zeros where a mask is empty. Does not wait for the device."""
    sides = []
    for there in (_any(masks, 1), _any(masks, 2)):  # [N, W], [N, H]
        place = torch.arange(there.shape[1], device=masks.device).expand(there.shape)
        low = place.masked_fill(~there, there.shape[1]).amin(dim=1)
        high = place.masked_fill(~there, -1).amax(dim=1) + 1
        sides.append((low, high))
    (left, right), (top, bottom) = sides
    boxes = torch.stack((left, top, right, bottom), dim=1)
    return boxes.masked_fill((right == 0)[:, None], 0).float()


def _any(masks: torch.Tensor, dim: int) -> torch.Tensor:
    """masks.any(dim), by the greatest byte: 22 ms, not 280, for 500 masks of 480 x 854 (CPU)."""
    return masks.view(torch.uint8).amax(dim=dim).bool()


def overlaps(masks: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every mask with every other: [N, H, W] and [M, H, W] bool ->
    [N, M] float32; 0 where both are empty."""
    a, b = masks.flatten(1).float(), others.flatten(1).float()
    shared = a @ b.T
    union = a.sum(dim=1)[:, None] + b.sum(dim=1) - shared
    return shared / union.clamp(min=1)
