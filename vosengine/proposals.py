"""Object proposals: what a detector says of a frame, and how masks and boxes are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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


def check_proposals(proposals: Proposals, size: Size) -> None:
    """Raise InputError unless these are proposals for a frame of that size."""
    count = proposals.masks.shape[0] if proposals.masks.ndim else 0
    wanted = {
        "boxes": [count, 4],
        "masks": [count, *size],
        "scores": [count],
    }
    for name, shape in wanted.items():
        tensor = getattr(proposals, name)
        if list(tensor.shape) != shape:
            raise InputError(f"proposals: {name}: wanted {shape}, given {list(tensor.shape)}")
    if proposals.masks.dtype != torch.bool:
        raise InputError(f"proposals: masks: wanted bool, given {proposals.masks.dtype}")
    vectors = proposals.embeddings
    if vectors is not None and (vectors.ndim != 2 or len(vectors) != count):
        raise InputError(f"proposals: embeddings: wanted [{count}, E], given {list(vectors.shape)}")


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
    for there in (masks.any(dim=1), masks.any(dim=2)):  # [N, W], [N, H]
        place = torch.arange(there.shape[1], device=masks.device).expand(there.shape)
        low = place.masked_fill(~there, there.shape[1]).amin(dim=1)
        high = place.masked_fill(~there, -1).amax(dim=1) + 1
        sides.append((low, high))
    (left, right), (top, bottom) = sides
    boxes = torch.stack((left, top, right, bottom), dim=1)
    return boxes.masked_fill((right == 0)[:, None], 0).float()


def overlaps(masks: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every mask with every other: [N, H, W] and [M, H, W] bool ->
    [N, M] float32; 0 where both are empty."""
    a, b = masks.flatten(1).float(), others.flatten(1).float()
    shared = a @ b.T
    union = a.sum(dim=1)[:, None] + b.sum(dim=1) - shared
    return shared / union.clamp(min=1)
