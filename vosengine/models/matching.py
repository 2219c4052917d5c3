"""The common part of STM and MUNet: a memory of keys and values per object, read and decoded."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from ..config import MemoryConfig
from ..memory import PagePools
from ..types import Geometry, Masks, Scores
from .blocks import (
    Decoder,
    KeyValue,
    MatchingState,
    Observed,
    carried,
    of_objects,
    read_objects,
    with_masks,
)
from .method import Method

F = TypeVar("F")


class MatchingMethod(Method[F, MatchingState]):
    """A method that reads a memory with a query of the frame and decodes the readout per object."""

    batched = True
    keeps_frames = True

    config: Any
    query_head: KeyValue
    decoder: Decoder

    def start(
        self,
        geometry: Geometry,
        max_objects: int,
        memory: MemoryConfig | None = None,
        pools: PagePools | None = None,
    ) -> MatchingState:
        weight = self.query_head.key.weight
        cells = geometry.cells(self.config.key_stride)
        channels = self.config.value_channels + self.config.read_masks
        return MatchingState.allocate(
            self.config, memory, cells, max_objects, weight, channels, pools
        )

    def commit(self, observed: Observed | None, masks: Masks, state: MatchingState) -> None:
        state.take(observed, masks.prompted)

    def _decode(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        skips: tuple[torch.Tensor, torch.Tensor],
        state: MatchingState,
    ) -> Scores:
        """Read the memory with key [B, Ck, h, w], join the query's value [B, Cv, h, w], decode."""
        config = self.config
        reading = config.similarity, config.top_k, config.sharpness
        joined = read_objects(key, value, state.read(), state.object_count, *reading, state.streams)
        logits = self.decoder(joined, *(of_objects(x, state.streams) for x in skips))
        if not config.read_masks:
            return Scores(logits, stride=4)
        read = joined[:, config.value_channels]
        return Scores(carried(logits, read), stride=4, aux=read)

    def _stored(self, key: torch.Tensor, value: torch.Tensor, planes: torch.Tensor) -> Observed:
        """Key [1 or O, Ck, h, w] for every object, value [O, Cv, h, w] with the object's mask, the
        first of the planes [O, M, H, W], if masks are read too."""
        key = key.expand(planes.shape[0], -1, -1, -1)  # len() would be a constant of an export
        return key, with_masks(value, planes[:, :1]) if self.config.read_masks else value
