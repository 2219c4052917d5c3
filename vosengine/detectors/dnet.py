"""D-Net, the discovery network of target-aware U-VOS, as a source of proposals for any model."""

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
    """Proposals of target_aware's D-Net, guided by the previous frame; a StatefulSource.

        source = DNetSource()
        proposals = source(frame, 0)      # boxes, masks, scores, embeddings, in the frame's pixels

    Use one source per stream and call it for the frames in order. A repeated call for the last
    frame returns the same result, so that a failed step can be retried; any other index out of
    order starts without guidance, as for a first frame.

    weights, config  those of target_aware, as in Segmenter
    device           "auto", "cpu", "cuda"...
    embed            compute ReID embeddings; only target_aware uses them
    engine           "fast" or "eager", as in Segmenter

    Raises  DeviceError or WeightsError.
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
        self._index: int | None = None  # index of the last frame
        self._before: torch.Tensor | None = None  # guidance of the last frame
        self._after: torch.Tensor | None = None  # guidance of the frame after it

    @own_settings()
    @Precision("fp32").applied()
    def __call__(self, frame: Array, frame_index: int) -> Proposals:
        """Proposals for a frame [H, W, 3] RGB, uint8 or float32 in 0..1.

        They do not overlap, are sorted by descending score (heat of the centre), and have
        embeddings [P, E] of target_aware's ReID network unless `embed` is False.

        Raises  InputError.
        """
        image = check_frame(frame).to(self.device)
        geometry = Geometry.fit((image.shape[0], image.shape[1]), size=self.size, multiple=16)
        mean, std = self.config.mean, self.config.std
        prepared = prepare(image, geometry, mean, std, torch.float32)[None]
        guidance = self._guidance_of(frame_index)
        if guidance is not None and guidance.shape[2:] != geometry.cells(16):
            guidance = None
        features = self.dnet.encode(prepared)
        maps = self.dnet(features, guidance)
        proposals = self.dnet.proposals(maps, geometry.padding)
        masks = resize_masks(crop(proposals.masks, geometry), geometry.frame)
        vectors = None if self.reid is None else self.reid(prepared, proposals.boxes)
        after = self.dnet.guide(prepared, torch.sigmoid(maps.saliency), features.deep)
        self._index, self._before, self._after = frame_index, guidance, after
        return Proposals(boxes_of(masks), masks, proposals.scores, vectors)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The source's state, by name, with a hash of weights and configuration as `network`."""
        state = {"network": self._network}
        if self._index is not None:
            state["index"] = torch.tensor(self._index)
        if self._before is not None:
            state["before"] = self._before
        if self._after is not None:
            state["after"] = self._after
        return state

    @own_settings()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load the state that `tensors` returned.

        tensors  network uint8 [32]; index scalar; before, after [1, C, H / 16, W / 16]

        Raises  StateError, before any change, for the state of another kind of source, or of one
                with other weights or configuration.
        """
        network = tensors.get("network")
        if network is None or not torch.equal(network.cpu(), self._network):
            raise StateError(
                "proposals: the stream was saved with another source than this D-Net, or with one "
                "of other weights or configuration; open the one it was saved with"
            )
        state = in_layout({n: x.to(self.device) for n, x in tensors.items()}, self.engine)
        index = state.get("index")
        self._index = None if index is None else int(index)
        self._before, self._after = state.get("before"), state.get("after")

    def _guidance_of(self, frame_index: int) -> torch.Tensor | None:
        if self._index is None:
            return None
        return {self._index: self._before, self._index + 1: self._after}.get(frame_index)

    @cached_property
    def _network(self) -> torch.Tensor:
        """sha256 of the weights' identity and the configuration, uint8 [32]."""
        name = f"{self.card.identity} {config_to_json(self.config)}"
        return torch.tensor(list(sha256(name.encode()).digest()), dtype=torch.uint8)
