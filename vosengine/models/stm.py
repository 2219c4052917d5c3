"""STM (Oh et al., ICCV 2019), the baseline: space-time memory of past frames and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..config import STMConfig
from ..proposals import Proposals
from ..types import Masks, Scores
from .backbone import initialise
from .blocks import Decoder, KeyValue, MatchingState, Observed, make_key, of_objects
from .encoder import make_encoder
from .mask_encoder import MaskEncoder
from .matching import MatchingMethod


class STMFeatures(NamedTuple):
    """Per-frame features of STM, independent of objects."""

    frame: torch.Tensor  # [B, 3, H, W] prepared; second input of the memory encoder
    key: torch.Tensor  # [B, Ck, h, w]
    value: torch.Tensor  # [B, Cv, h, w]
    skip3: torch.Tensor  # [B, D, 2h, 2w]
    skip2: torch.Tensor  # [B, D, 4h, 4w]


class STM(MatchingMethod[STMFeatures]):
    """Query encoder on RGB; memory encoder on RGB + 2 mask channels (object, union of the others).

    With `memory_encoder="shared"` a `MaskEncoder` on the query's features and the 2 mask channels
    takes the place of the memory encoder.
    """

    features = STMFeatures

    def __init__(self, config: STMConfig) -> None:
        super().__init__()
        self.config: STMConfig = config
        self.size = config.size
        channels = config.key_channels, config.value_channels
        backbone = config.backbone, config.width
        options: Any = {"norm": config.norm, "key_stride": config.key_stride}
        shared = config.memory_encoder == "shared"
        self.query_encoder = make_encoder(*backbone, **options)
        if shared:
            self.observes = "key", "value"
            self.mask_encoder = MaskEncoder(channels[1], 2, channels[1], config.key_stride)
        else:
            self.memory_encoder = make_encoder(*backbone, mask_channels=2, **options)
        pyramid = self.query_encoder.channels
        self.query_head = KeyValue(pyramid[2], *channels, size=1 if shared else 3)
        if not shared:
            self.memory_head = KeyValue(pyramid[2], *channels)
        joined = 2 * config.value_channels + config.read_masks
        self.decoder = Decoder(
            joined, pyramid, config.decoder_channels, fine_channels=config.fine_channels
        )
        initialise(self)

    def encode(
        self, frames: torch.Tensor, proposals: Sequence[Proposals] | None = None
    ) -> STMFeatures:
        pyramid = self.query_encoder(frames)
        key, value = self.query_head(pyramid.r4)
        key = make_key(key, self.config.similarity)
        skip3, skip2 = self.decoder.skips(pyramid)
        return STMFeatures(frames, key, value, skip3, skip2)

    def segment(self, seen: Sequence[STMFeatures], state: MatchingState) -> Scores:
        (now,) = seen
        return self._decode(now.key, now.value, (now.skip3, now.skip2), state)

    def observe(
        self, seen: Sequence[STMFeatures], masks: Masks, state: MatchingState
    ) -> Observed | None:
        """Key and value to store for each object; None without objects."""
        if masks.object_count == 0:
            return None
        (now,) = seen
        planes = torch.stack((masks.probabilities[1:], masks.others()), dim=1)
        planes = planes.to(now.frame.dtype)
        if self.config.memory_encoder == "shared":
            key = of_objects(now.key, masks.streams)
            value = self.mask_encoder(now.value, now.frame, planes, masks.streams)
        else:
            key, value = self.memory_head(
                self.memory_encoder(of_objects(now.frame, masks.streams), planes).r4
            )
            key = make_key(key, self.config.similarity)
        return self._stored(key, value, planes)
