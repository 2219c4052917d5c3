"""Every setting of every model, written out; each constant names its source.

[P] the paper, [C] its released code or a close relative's, [O] our choice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from math import isfinite

from .errors import ConfigError

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALLEST_SIDE = 32  # pixels of a frame, and of what a network works at


def _check(condition: bool, name: str, wanted: str, given: object) -> None:
    if not condition:
        raise ConfigError(f"{name}: wanted {wanted}, given {given!r}")


@dataclass(frozen=True)
class MemoryConfig:
    """What a memory keeps.

    policy            "every-N": the first annotated frame, every N-th frame and the previous one
                      ([C] STM: N = 5); "all": every frame ([P] MUNet, read literally);
                      "afb": features merged and forgotten one by one ([C] AFB-URR)
    max_frames        slots per object; past them the oldest unpinned frame goes [O]
    budget            afb: features of all objects together [C]
    merge_similarity  afb: a feature at least this close (cosine) to a stored one is merged [C]
    merge_rate        afb: weight of the new feature in a merge [C]
    """

    policy: str = "every-5"
    max_frames: int = 20
    budget: int = 300_000
    merge_similarity: float = 0.95
    merge_rate: float = 0.1

    def __post_init__(self) -> None:
        known = self.policy in ("all", "afb") or re.fullmatch(r"every-[1-9]\d*", self.policy)
        _check(bool(known), "memory.policy", "every-N, all or afb", self.policy)
        _check(self.max_frames >= 2, "memory.max_frames", "2 or more", self.max_frames)
        _check(self.budget > 0, "memory.budget", "1 or more", self.budget)
        _check(
            0 < self.merge_similarity <= 1, "memory.merge_similarity", "0..1", self.merge_similarity
        )
        _check(0 <= self.merge_rate <= 1, "memory.merge_rate", "0..1", self.merge_rate)

    @property
    def every(self) -> int:
        """A frame whose index is a multiple of this is kept for good."""
        return int(self.policy.removeprefix("every-")) if self.policy.startswith("every-") else 1


def check_size(size: tuple[int, int] | int | None) -> None:
    """Raise ConfigError unless this is a size that a network can work at."""
    if size is not None:
        sides = size if isinstance(size, tuple) else (size,)
        fits = len(sides) <= 2 and min(sides, default=0) >= SMALLEST_SIDE
        _check(fits, "size", f"{SMALLEST_SIDE} or more pixels", size)


def _check_input(config: ModelConfig) -> None:
    names = ", ".join(BACKBONES)
    _check(config.backbone in BACKBONES, "backbone", f"one of {names}", config.backbone)
    _check(len(config.mean) == 3, "mean", "three numbers", config.mean)
    _check(len(config.std) == 3 and min(config.std) > 0, "std", "three numbers > 0", config.std)


def _check_network(config: MatchingConfig) -> None:
    _check_input(config)
    for name in ("width", "key_channels", "value_channels", "decoder_channels"):
        _check(getattr(config, name) > 0, name, "1 or more", getattr(config, name))


@dataclass(frozen=True)
class STMConfig:
    """STM, the baseline [C].

    backbone          ResNet up to layer3, stride 16
    width             channels of its stem; 64 is the published network
    key_channels      Ck of the memory; value_channels: Cv
    decoder_channels  width of the decoder ("mdim")
    """

    backbone: str = "resnet50"
    width: int = 64
    key_channels: int = 128
    value_channels: int = 512
    decoder_channels: int = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def __post_init__(self) -> None:
        _check_network(self)


@dataclass(frozen=True)
class MUNetConfig:
    """MUNet: STM's memory matching with a motion-uncertainty layer in the query branch.

    radius       cells each way: 12 is the 25 x 25 window at stride 16 [P section 3.2]
    temperature  initial value of the learnable factor of the cost in the soft-argmax; the paper's
                 soft-argmin read literally is -1, under which the displacement is almost constant,
                 so +20 [O]
    outside      a candidate beyond the frame counts as cost 0 ("zero", as correlation samplers do)
                 or not at all ("exclude") [O]
    fusion       "attention" [P equation 3] or "add" [P table 4, row f]
    """

    backbone: str = "resnet50"
    width: int = 64
    key_channels: int = 128
    value_channels: int = 512
    decoder_channels: int = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    radius: int = 12
    temperature: float = 20.0
    outside: str = "zero"
    fusion: str = "attention"

    def __post_init__(self) -> None:
        _check_network(self)
        _check(isfinite(self.temperature), "temperature", "a finite number", self.temperature)
        _check(self.radius >= 1, "radius", "1 or more", self.radius)
        _check(self.outside in ("zero", "exclude"), "outside", "zero or exclude", self.outside)
        _check(self.fusion in ("attention", "add"), "fusion", "attention or add", self.fusion)


@dataclass(frozen=True)
class IMCNetConfig:
    """IMCNet: the foreground from a frame and its neighbours.

    backbone       ResNet with layer4, stride 32 [P section III-A: ResNet-101]
    width          of its stem; 64 is the published network
    channels       of keys and decoder [C: 64]
    neighbours     frames looked at on each side, "N" [P table II: 1]
    step           frames between them, "delta t" [P table II: 4]
    alignments     layers of the cascade, "l" [P table I: 4]
    offset_groups  of the deformable convolutions [C: 8]
    fusion         "tsc", or "conv3", the bridge of the ablation [P table I]
    size           (height, width) the network works at, the frame stretched to it [C: 480 x 480];
                   an int is the short side with the aspect kept, None the frame's own size
    """

    backbone: str = "resnet101"
    width: int = 64
    channels: int = 64
    neighbours: int = 1
    step: int = 4
    alignments: int = 4
    offset_groups: int = 8
    fusion: str = "tsc"
    size: tuple[int, int] | int | None = (480, 480)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        _check_input(self)
        for name in ("width", "channels", "neighbours", "step", "offset_groups"):
            _check(getattr(self, name) > 0, name, "1 or more", getattr(self, name))
        _check(0 <= self.alignments <= 6, "alignments", "0..6", self.alignments)
        divides = self.channels % self.offset_groups == 0
        wanted = f"a divisor of channels = {self.channels}"
        _check(divides, "offset_groups", wanted, self.offset_groups)
        _check(self.fusion in ("tsc", "conv3"), "fusion", "tsc or conv3", self.fusion)
        check_size(self.size)

    @property
    def sees(self) -> tuple[int, ...]:
        """The frames it looks at, relative to the one it answers for."""
        return tuple(self.step * n for n in range(-self.neighbours, self.neighbours + 1))


@dataclass(frozen=True)
class TargetAwareConfig:
    """Target-aware U-VOS: objects discovered by D-Net, each followed by a model of its own (T-Net).

    size                 what the frame is resized to, as in IMCNetConfig [P section 4.1: 480 x 854,
                         which a short side of 480 is at DAVIS's aspect]

    D-Net: discovery
    backbone, width      ResNet with a dilated layer4, stride 16 [P section 3.1: ResNet-50]
    aspp_channels        of every branch of the ASPPs and of their result [P: 256]
    aspp_rates           dilations of their 3x3 convolutions [P]
    squeeze              what the guidance module weighs: "pair", the feature and the guidance, as
                         equations 1 and 2 pass them; or "literal", the two task features of
                         equations 3 and 4 [O]
    squeeze_reduction    of its hidden layer [O: 16, as in SE networks]
    heads                "separable" 5x5 convolutions [C: Panoptic-DeepLab] or "dense" [P literally]
    saliency_channels, instance_channels  width of the heads [C: Panoptic-DeepLab]
    saliency_skips, instance_skips        of res3 and res2 after projection [C: Panoptic-DeepLab]
    saliency_threshold   a pixel is foreground above this probability [O]
    centre_threshold, centre_window       of the heat map's peaks [C: Panoptic-DeepLab]
    centre_limit         peaks kept [O: 20; DAVIS allows 20 objects]
    smallest_proposal    pixels at the network's size; smaller ones are dropped [O]
    guidance             the mask that guides the next frame: "saliency", D-Net's own, or "tracks",
                         the union of all of them [O]

    T-Net: one appearance model per object
    tracker_backbone, tracker_width  ResNet [P section 4.1: ResNet-101]
    tracker_size         side of the square that the frame is stretched to [P: 473]
    target_channels      between the model's two layers [P: 96]
    ridge                lambda of the 1x1 and of the 3x3 layer [C: FRTM]
    first_iterations     CG iterations per Gauss-Newton step on the first frame [C: FRTM]
    later_iterations     the same for every update, of the second layer only [C: FRTM]
    augmentations        of the first frame, beside the frame itself [C: FRTM]
    samples              kept per object; the lightest is replaced [C: FRTM]
    learning_rate        gamma: how fast the weight of samples decays [C: FRTM]
    target_influence     least share of the target's pixels in a sample's loss [C: FRTM]
    smallest_sample      pixels; a smaller mask is not learnt from [C: FRTM]
    update_every         frames between updates of an object that is not verified [P: 8]
    refiner              "frtm", FRTM's network, or "none": the coarse score, upsampled [O]
    refiner_channels     its width [C: FRTM]

    Verification and birth
    reid_backbone, reid_width, reid_channels  of the embedding [O: ResNet-50; C: 128, PReMVOS]
    reid_crop, reid_context, reid_smallest_box  crop in pixels, context around the box, least side
                         of a box [C: PReMVOS, UnOVOST]
    match_overlap        a proposal must overlap the tracked mask more than this [P equation 10]
    match_score          a match above this verifies the track [P: 0.6]
    verified_weight      factor of a verified sample's weight [P: 2]
    verified_feeds       whether that factor enters the recursion of the weights too [O: no]
    birth_overlap        a proposal that overlaps every track less than this is new [P: 0.1]
    max_tracks           objects at a time [C: DAVIS's unsupervised track]
    """

    backbone: str = "resnet50"
    width: int = 64
    aspp_channels: int = 256
    aspp_rates: tuple[int, int, int] = (6, 12, 18)
    squeeze: str = "pair"
    squeeze_reduction: int = 16
    heads: str = "separable"
    saliency_channels: int = 256
    instance_channels: int = 128
    saliency_skips: tuple[int, int] = (64, 32)
    instance_skips: tuple[int, int] = (32, 16)
    saliency_threshold: float = 0.5
    centre_threshold: float = 0.1
    centre_window: int = 7
    centre_limit: int = 20
    smallest_proposal: int = 400
    guidance: str = "saliency"

    tracker_backbone: str = "resnet101"
    tracker_width: int = 64
    tracker_size: int = 473
    target_channels: int = 96
    ridge: tuple[float, float] = (1e-4, 1e-2)
    first_iterations: tuple[int, ...] = (5, 10, 10, 10, 10)
    later_iterations: tuple[int, ...] = (10,)
    augmentations: int = 4
    samples: int = 80
    learning_rate: float = 0.1
    target_influence: float = 0.1
    smallest_sample: int = 10
    update_every: int = 8
    refiner: str = "frtm"
    refiner_channels: int = 64

    reid_backbone: str = "resnet50"
    reid_width: int = 64
    reid_channels: int = 128
    reid_crop: int = 128
    reid_context: float = 1.2
    reid_smallest_box: int = 30
    match_overlap: float = 0.5
    match_score: float = 0.6
    verified_weight: float = 2.0
    verified_feeds: bool = False
    birth_overlap: float = 0.1
    max_tracks: int = 20

    size: tuple[int, int] | int | None = 480
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        _check_input(self)
        check_size(self.size)
        for name in ("tracker_backbone", "reid_backbone"):
            given = getattr(self, name)
            _check(given in BACKBONES, name, f"one of {', '.join(BACKBONES)}", given)
        for name, kinds in TARGET_AWARE_CHOICES.items():
            _check(getattr(self, name) in kinds, name, " or ".join(kinds), getattr(self, name))
        for field_ in fields(self):
            given = getattr(self, field_.name)
            if field_.type == "int":
                least = 0 if field_.name == "augmentations" else 1
                _check(given >= least, field_.name, f"{least} or more", given)
            elif str(field_.type).startswith("tuple[int") and field_.name != "size":
                fits = len(given) > 0 and min(given) >= 1
                _check(fits, field_.name, "numbers of 1 or more", given)
        for name in ("saliency_threshold", "target_influence", "match_overlap", "birth_overlap"):
            _check(0 <= getattr(self, name) < 1, name, "0..1", getattr(self, name))
        _check(0 < self.learning_rate < 1, "learning_rate", "0..1", self.learning_rate)
        _check(min(self.ridge) > 0 and len(self.ridge) == 2, "ridge", "two above 0", self.ridge)
        _check(self.centre_window % 2 == 1, "centre_window", "an odd number", self.centre_window)
        _check(1 <= self.centre_limit <= 255, "centre_limit", "1..255", self.centre_limit)
        _check(1 <= self.max_tracks <= 255, "max_tracks", "1..255", self.max_tracks)
        _check(self.samples > self.augmentations, "samples", "above augmentations", self.samples)
        _check(self.reid_context >= 1, "reid_context", "1 or more", self.reid_context)
        _check(self.verified_weight >= 1, "verified_weight", "1 or more", self.verified_weight)
        wanted = f"{SMALLEST_SIDE} or more pixels"
        _check(self.tracker_size >= SMALLEST_SIDE, "tracker_size", wanted, self.tracker_size)


TARGET_AWARE_CHOICES = {
    "squeeze": ("pair", "literal"),
    "heads": ("separable", "dense"),
    "guidance": ("saliency", "tracks"),
    "refiner": ("frtm", "none"),
}

MatchingConfig = STMConfig | MUNetConfig
ModelConfig = MatchingConfig | IMCNetConfig | TargetAwareConfig
