"""Object proposals of a detector: types, checks, selection, mask and box overlaps."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch.nn import functional

from .policies.proposals import Candidates, ObjectsSeen, check_arrays, check_numbers
from .types import Geometry, Size


class Proposals(ObjectsSeen[torch.Tensor]):
    """P detections in one frame, best first, as torch tensors (see ObjectsSeen); may overlap."""


class ProposalSource(Protocol):
    """A callable that returns proposals; called once per frame of a stream, in order."""

    def __call__(self, frame: torch.Tensor, frame_index: int) -> Proposals:
        """Proposals for a frame [H, W, 3] RGB, uint8 or float32 in 0..1, on the engine's device."""
        ...


@runtime_checkable
class StatefulSource(ProposalSource, Protocol):
    """A source whose output depends on earlier frames; its state is saved with the stream."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The source's state, by name."""
        ...

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load the state that `tensors` returned. Raises StateError, before any change, for
        another source's state."""
        ...


def check_proposals(proposals: Proposals | None, size: Size) -> None:
    """Raise InputError unless these are valid proposals for a frame of size (H, W).

    Boxes may extend beyond the frame; they are not clipped.
    """
    check_arrays(proposals, size, Proposals, torch.Tensor, "a torch tensor")
    assert proposals is not None
    boxes, scores, vectors = proposals.boxes, proposals.scores, proposals.embeddings
    lengths = scores if vectors is None else vectors.norm(dim=1).to(scores.device)
    # One transfer: each read from a GPU synchronises.
    table = torch.cat((boxes, scores[:, None], lengths[:, None]), dim=1).cpu().numpy()
    check_numbers(table[:, :4], table[:, 4], table[:, 5])


def clean(proposals: Proposals, smallest: int = 1) -> Proposals:
    """Drop unusable and duplicate proposals; the order is kept.

    Dropped are masks of fewer than `smallest` pixels, boxes without area inside the frame, and
    duplicates of a mask: the one with the highest score stays, the first among equal scores.
    Detectors return all of these, and they would be treated as objects.
    """
    masks = proposals.masks
    kept = _candidates(proposals, smallest).distinct(
        lambda one, other: torch.equal(masks[one], masks[other])
    )
    return proposals if len(kept) == len(masks) else proposals.chosen(kept)


def best_of(proposals: Proposals, *, overlap: float = 0.4, limit: int = 30) -> Proposals:
    """Box non-maximum suppression by descending score, then the first `limit` proposals.

    A box is suppressed if its intersection over union with a kept, better one exceeds `overlap`;
    among equal scores the earlier is better. Proposals with an empty mask, or a box without area
    inside the frame, are dropped first: detectors return them, and they cannot be matched.
    """
    return proposals.chosen(_candidates(proposals).best(overlap, limit))


def _candidates(proposals: Proposals, smallest: int = 1) -> Candidates:
    """Boxes, scores and validity on the host, in one transfer; smallest: pixels of a valid mask."""
    masks, scores, tight = proposals.masks, proposals.scores, boxes_of(proposals.masks)
    valid = tight[:, 2] > 0
    if smallest > 1 and len(masks):  # one by one: 8 ms, not 68, for 100 of 256 x 456 (CPU)
        valid = torch.stack([mask.count_nonzero() for mask in masks]) >= smallest
    columns = proposals.boxes, tight, scores[:, None], valid[:, None]
    table = torch.cat(columns, dim=1).cpu().numpy()
    size = masks.shape[1], masks.shape[2]
    return Candidates(table[:, :4], table[:, 4:8], table[:, 8], table[:, 9] > 0, size)


def to_network(proposals: Proposals, geometry: Geometry, device: torch.device) -> Proposals:
    """Map proposals from the caller's frame to the network's padded input, on `device`."""
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
    """Resize masks [N, H, W] bool by nearest neighbour (pixel centres, "nearest-exact")."""
    if tuple(masks.shape[1:]) == size:
        return masks
    planes = masks[:, None].to(torch.uint8)
    return functional.interpolate(planes, size, mode="nearest-exact")[:, 0].bool()


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    """Bounding boxes [N, 4] float32 (left, top, right, bottom) of masks [N, H, W] bool.

    Zeros for an empty mask. Does not synchronise with the device.
    """
    sides = []
    for occupied in (_any(masks, 1), _any(masks, 2)):  # [N, W], [N, H]
        place = torch.arange(occupied.shape[1], device=masks.device).expand(occupied.shape)
        low = place.masked_fill(~occupied, occupied.shape[1]).amin(dim=1)
        high = place.masked_fill(~occupied, -1).amax(dim=1) + 1
        sides.append((low, high))
    (left, right), (top, bottom) = sides
    boxes = torch.stack((left, top, right, bottom), dim=1)
    return boxes.masked_fill((right == 0)[:, None], 0).float()


def _any(masks: torch.Tensor, dim: int) -> torch.Tensor:
    """masks.any(dim) as a maximum of bytes: 22 ms, not 280, for 500 masks of 480 x 854 (CPU)."""
    return masks.view(torch.uint8).amax(dim=dim).bool()


def overlaps(masks: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Pairwise intersection over union: masks [N, H, W] and [M, H, W] bool -> [N, M] float32.

    0 where both masks are empty.
    """
    a, b = masks.flatten(1).float(), others.flatten(1).float()
    shared = a @ b.T
    union = a.sum(dim=1)[:, None] + b.sum(dim=1) - shared
    return shared / union.clamp(min=1)
