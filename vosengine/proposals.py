"""Object proposals: what a detector says of a frame, and how masks and boxes are compared."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch.nn import functional

from .policies.proposals import Candidates, ObjectsSeen, check_arrays, check_numbers
from .types import Geometry, Size


class Proposals(ObjectsSeen[torch.Tensor]):
    """P objects that a detector sees in one frame, best first, as ObjectsSeen; they may overlap."""


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
    check_arrays(proposals, size, Proposals, torch.Tensor, "a torch tensor")
    assert proposals is not None
    boxes, scores, vectors = proposals.boxes, proposals.scores, proposals.embeddings
    lengths = scores if vectors is None else vectors.norm(dim=1).to(scores.device)
    # Brought over together: each number that Python reads off a GPU waits for it.
    table = torch.cat((boxes, scores[:, None], lengths[:, None]), dim=1).cpu().numpy()
    check_numbers(table[:, :4], table[:, 4], table[:, 5])


def clean(proposals: Proposals, smallest: int = 1) -> Proposals:
    """The proposals that something can be matched with, each once, in the order that they had.

    Left out are masks of fewer than `smallest` pixels, boxes without area inside the frame, and
    exact doubles of a mask: of these the one of the best score stays, of equal scores the first.
    Detectors give all of them, and whatever looks at proposals would take them for objects.
    """
    masks = proposals.masks
    kept = _candidates(proposals, smallest).distinct(
        lambda one, other: torch.equal(masks[one], masks[other])
    )
    return proposals if len(kept) == len(masks) else proposals.chosen(kept)


def best_of(proposals: Proposals, *, overlap: float = 0.4, limit: int = 30) -> Proposals:
    """The best proposals that do not say the same twice: non-maximum suppression of boxes by
    falling score, then the first `limit`.

    A box whose intersection over union with a better one that stays is above `overlap` goes; of
    equal scores the earlier is the better. Left out before all that are proposals with an empty
    mask, or with a box that has no area inside the frame: detectors give such, and nothing can be
    matched with them.
    """
    return proposals.chosen(_candidates(proposals).best(overlap, limit))


def _candidates(proposals: Proposals, smallest: int = 1) -> Candidates:
    """What is decided by, brought over together; smallest: pixels that show an object."""
    masks, scores, tight = proposals.masks, proposals.scores, boxes_of(proposals.masks)
    shown = tight[:, 2] > 0
    if smallest > 1 and len(masks):  # one by one: 8 ms, not 68, for 100 of 256 x 456 (CPU)
        shown = torch.stack([mask.count_nonzero() for mask in masks]) >= smallest
    columns = proposals.boxes, tight, scores[:, None], shown[:, None]
    table = torch.cat(columns, dim=1).cpu().numpy()
    size = masks.shape[1], masks.shape[2]
    return Candidates(table[:, :4], table[:, 4:8], table[:, 8], table[:, 9] > 0, size)


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
