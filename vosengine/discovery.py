"""D-Net by itself: object proposals frame by frame, for any program and for any model."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from .config import TargetAwareConfig
from .frames import Array, check_frame, crop, prepare
from .models.target_aware import TargetAware
from .proposals import Proposals, boxes_of, resize_masks
from .segmenter import choose_device
from .types import Geometry
from .weights import load


class DNetSource:
    """A ProposalSource: what the discovery network of target_aware sees, each frame guided by the
    one before it.

        source = DNetSource()
        proposals = source(frame, 0)      # boxes, masks, scores, embeddings, in the frame's pixels

    Ask it for the frames of one stream, in order: an index that does not follow the last one starts
    without guidance, as a first frame does. Give every stream a source of its own; what it knows of
    the frame before is not part of a saved stream.

    weights, config  of target_aware, as in Segmenter
    device           "auto", "cpu", "cuda"...
    """

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        device: str = "auto",
        config: TargetAwareConfig | None = None,
    ) -> None:
        self.device = choose_device(device)
        method, self.card = load("target_aware", weights, config)
        self.config = method.config
        self.size = method.size
        network = cast(TargetAware, method).to(self.device)
        self.dnet, self.reid = network.dnet, network.reid
        self._guidance: torch.Tensor | None = None
        self._next = 0

    @torch.no_grad()
    def __call__(self, frame: Array, frame_index: int) -> Proposals:
        """Proposals for a frame [H, W, 3] RGB, uint8 or float32 in 0..1; by falling heat, none that
        overlap, with embeddings of target_aware's ReID network. Raises InputError."""
        image = check_frame(frame).to(self.device)
        geometry = Geometry.fit((image.shape[0], image.shape[1]), size=self.size, multiple=16)
        mean, std = self.config.mean, self.config.std
        prepared = prepare(image, geometry, mean, std, torch.float32)[None]
        known = self._guidance if frame_index == self._next else None
        if known is not None and known.shape[2:] != geometry.cells(16):
            known = None
        maps = self.dnet(self.dnet.encode(prepared), known)
        found = self.dnet.proposals(maps, geometry.padding)
        self._guidance = self.dnet.guide(prepared, torch.sigmoid(maps.saliency))
        self._next = frame_index + 1
        masks = resize_masks(crop(found.masks, geometry), geometry.frame)
        return Proposals(boxes_of(masks), masks, found.scores, self.reid(prepared, found.boxes))
