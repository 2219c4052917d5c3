"""D-Net by itself: object proposals frame by frame, for any program and for any model."""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import cast

import torch

from ..ambient import own_settings
from ..config import TargetAwareConfig
from ..device import choose_device
from ..errors import StateError
from ..frames import Array, check_frame, crop, prepare
from ..models.target_aware.network import TargetAware
from ..proposals import Proposals, boxes_of, resize_masks
from ..runtime import Precision, in_layout, prepare_network
from ..types import Geometry
from ..zoo.registry import config_to_json
from ..zoo.weights import load


class DNetSource:
    """A StatefulSource: what the discovery network of target_aware sees, each frame guided by the
    one before it.

        source = DNetSource()
        proposals = source(frame, 0)      # boxes, masks, scores, embeddings, in the frame's pixels

    Ask it for the frames of one stream, in order. Asked again for the frame that it was asked for
    last, it answers as it did the first time, so that a step that failed may be tried again; any
    other index that does not follow starts without guidance, as a first frame does. Give every
    stream a source of its own.

    weights, config  of target_aware, as in Segmenter
    device           "auto", "cpu", "cuda"...
    embed            False leaves out the ReID embeddings: only target_aware reads them
    engine           as in Segmenter
    """

    @own_settings()
    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        device: str = "auto",
        config: TargetAwareConfig | None = None,
        embed: bool = True,
        engine: str = "fast",
    ) -> None:
        self.device = choose_device(device)
        self.engine = engine
        method, self.card = load("target_aware", weights, config)
        self.config = cast(TargetAwareConfig, method.config)
        self.size = method.size
        network = cast(TargetAware, prepare_network(method, self.device, torch.float32, engine))
        self.dnet = network.dnet
        self.reid = network.reid if embed else None
        self._index: int | None = None  # the frame that was asked for last
        self._before: torch.Tensor | None = None  # what guided it
        self._after: torch.Tensor | None = None  # what it gives to the frame after it

    @own_settings()
    @Precision("fp32").applied()
    def __call__(self, frame: Array, frame_index: int) -> Proposals:
        """Proposals for a frame [H, W, 3] RGB, uint8 or float32 in 0..1; by falling heat, none that
        overlap, with embeddings of target_aware's ReID network. Raises InputError."""
        image = check_frame(frame).to(self.device)
        geometry = Geometry.fit((image.shape[0], image.shape[1]), size=self.size, multiple=16)
        mean, std = self.config.mean, self.config.std
        prepared = prepare(image, geometry, mean, std, torch.float32)[None]
        known = self._guidance_of(frame_index)
        if known is not None and known.shape[2:] != geometry.cells(16):
            known = None
        features = self.dnet.encode(prepared)
        maps = self.dnet(features, known)
        found = self.dnet.proposals(maps, geometry.padding)
        masks = resize_masks(crop(found.masks, geometry), geometry.frame)
        vectors = None if self.reid is None else self.reid(prepared, found.boxes)
        after = self.dnet.guide(prepared, torch.sigmoid(maps.saliency), features.deep)
        self._index, self._before, self._after = frame_index, known, after
        return Proposals(boxes_of(masks), masks, found.scores, vectors)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a stream needs to go on elsewhere, and a mark of the network that made it."""
        held = {"network": self._network}
        if self._index is not None:
            held["index"] = torch.tensor(self._index)
        if self._before is not None:
            held["before"] = self._before
        if self._after is not None:
            held["after"] = self._after
        return held

    @own_settings()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave.

        Raises  StateError, before anything has changed: another kind of source, other weights or
                another configuration gave it.
        """
        network = tensors.get("network")
        if network is None or not torch.equal(network.cpu(), self._network):
            raise StateError(
                "proposals: the stream was saved with another source than this D-Net, or with one "
                "of other weights or configuration; open the one it was saved with"
            )
        held = in_layout({n: x.to(self.device) for n, x in tensors.items()}, self.engine)
        index = held.get("index")
        self._index = None if index is None else int(index)
        self._before, self._after = held.get("before"), held.get("after")

    def _guidance_of(self, frame_index: int) -> torch.Tensor | None:
        if self._index is None:
            return None
        return {self._index: self._before, self._index + 1: self._after}.get(frame_index)

    @cached_property
    def _network(self) -> torch.Tensor:
        """sha256 of what tells the weights and the configuration apart, as 32 bytes."""
        name = f"{self.card.identity} {config_to_json(self.config)}"
        return torch.tensor(list(sha256(name.encode()).digest()), dtype=torch.uint8)
