"""Configurations of the memory, and of the memory-matching models STM and MUNet."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import inf, isfinite

from .checks import InputConfig, check, check_choice, check_positive


@dataclass(frozen=True)
class MemoryConfig:
    """Memory policy and capacity.

    policy            "every-N": the first annotated frame, every N-th frame and the previous one
                      ([C] STM: N = 5); "all": every frame ([P] MUNet, read literally);
                      "afb": single features, merged and evicted ([C] AFB-URR)
    max_frames        slots per object; the oldest unpinned frame is evicted (ours)
    budget            afb: maximum number of features, all objects together [C]
    merge_similarity  afb: minimum cosine similarity for a merge, 0..1 [C]
    merge_rate        afb: weight of the new feature in a merge, 0..1 [C]

    Raises  ConfigError for a value out of range.
    """

    policy: str = "every-5"
    max_frames: int = 20
    budget: int = 300_000
    merge_similarity: float = 0.95
    merge_rate: float = 0.1

    def __post_init__(self) -> None:
        known = self.policy in ("all", "afb") or re.fullmatch(r"every-[1-9]\d*", self.policy)
        check(bool(known), "memory.policy", "every-N, all or afb", self.policy)
        check(self.max_frames >= 2, "memory.max_frames", "2 or more", self.max_frames)
        check(self.budget > 0, "memory.budget", "1 or more", self.budget)
        check(
            0 < self.merge_similarity <= 1, "memory.merge_similarity", "0..1", self.merge_similarity
        )
        check(0 <= self.merge_rate <= 1, "memory.merge_rate", "0..1", self.merge_rate)

    @property
    def every(self) -> int:
        """N of "every-N", else 1: frames whose index is a multiple of it are kept."""
        return int(self.policy.removeprefix("every-")) if self.policy.startswith("every-") else 1


@dataclass(frozen=True)
class MatchingFields(InputConfig):
    """Fields that STM, MUNet and GIEL share; STMConfig describes them."""

    key_channels: int = 128
    value_channels: int = 512
    decoder_channels: int = 256
    fine_channels: int | None = None
    memory_encoder: str = "full"
    key_stride: int = 16
    similarity: str = "dot"
    top_k: int | None = None
    sharpness: float = 1.0
    read_masks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "key_channels", "value_channels", "decoder_channels")
        check(self.key_stride in (8, 16), "key_stride", "8 or 16", self.key_stride)
        check_choice(self, similarity=("dot", "l2", "cosine"), memory_encoder=("full", "shared"))
        fine = self.fine_channels
        check(fine is None or fine >= 1, "fine_channels", "1 or more, or None", fine)
        check(0 < self.sharpness < inf, "sharpness", "a number above 0", self.sharpness)
        check(self.top_k is None or self.top_k >= 1, "top_k", "1 or more, or None", self.top_k)


@dataclass(frozen=True)
class STMConfig(MatchingFields):
    """Configuration of STM, the baseline [C].

    backbone          ResNet up to layer3, stride 16 [C], or EfficientNet-Lite (ours)
    width             channels of a ResNet's stem; 64 is the published network
    key_channels      Ck of the memory; value_channels: Cv
    decoder_channels  width of the decoder ("mdim"); fine_channels: at stride 4; None: the same
    memory_encoder    "full", a second backbone on frame and masks [C], or "shared": the memory
                      uses the query's key, and a value from the query's and the masks (ours, from
                      STCN)
    key_stride        stride of keys and values: 16, or 8 by fusing layer3 with layer2 (ours)
    similarity        "dot" [C]; "l2", the negative squared distance (ours, from STCN); or "cosine",
                      with `sharpness` as the only factor of the scores (ours)
    top_k             number of closest memory positions that every cell reads; None: all (ours,
                      from XMem)
    sharpness         factor of the scores in addition to 1 / sqrt(Ck) (ours)
    read_masks        also read the memory's masks, as one more value channel; the decoder predicts
                      a residual to their logits (ours)
    norm              "batch", or "group" for training from scratch in small batches (ours)
    size              working size: short side, (height, width), or None for the frame's own
    mean, std         input normalisation, RGB in 0..1
    memory            memory policy and capacity

    Raises  ConfigError for a value out of range.
    """

    memory: MemoryConfig = field(default_factory=MemoryConfig)


@dataclass(frozen=True)
class MUNetConfig(MatchingFields):
    """Configuration of MUNet: STM's memory matching with a motion-uncertainty layer on the query.

    radius       window radius in cells: 12 is the 25 x 25 window at stride 16 [P section 3.2]
    temperature  initial value of the learnable factor of the cost in the soft-argmax; the paper's
                 soft-argmin read literally is -1, with which the displacement is almost constant,
                 so +20 (ours)
    outside      cost of a candidate beyond the frame: 0 ("zero", as in correlation samplers), or
                 excluded from the softmax ("exclude") (ours)
    fusion       "attention" [P equation 3] or "add" [P table 4, row f]

    All other fields as in STMConfig.

    Raises  ConfigError for a value out of range.
    """

    memory: MemoryConfig = field(default_factory=MemoryConfig)
    radius: int = 12
    temperature: float = 20.0
    outside: str = "zero"
    fusion: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(isfinite(self.temperature), "temperature", "a finite number", self.temperature)
        check_positive(self, "radius")
        check_choice(self, outside=("zero", "exclude"), fusion=("attention", "add"))
