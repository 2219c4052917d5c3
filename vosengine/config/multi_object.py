"""Settings of the two models that follow many objects in one pass: GIEL and DMN-AOA."""

from __future__ import annotations

from dataclasses import dataclass, field

from .checks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check,
    check_choice,
    check_input,
    check_positive,
)
from .matching import MemoryConfig


@dataclass(frozen=True)
class GIELConfig:
    """GIEL: one affinity for all objects, a global branch, and a branch per instance.

    backbone          ResNet up to layer3, stride 16 [P section 3.3: ResNet-50]
    width             channels of its stem; 64 is the published network
    key_channels      Ck, an eighth of layer3's [P equation 3]; value_channels: Cv, a half
    heads             "shared": one f_k and f_v for query and support [P equation 3], or
                      "separate" (ours)
    scaled            scores times 1 / sqrt(Ck), as STM's code has it (ours); False: equation 4
                      literally

    label_channels    between the two layers of the label encoder (ours)
    label_output      "linear" or "sigmoid", after its last norm (ours)
    variant           "full": a decoder per instance [P equation 12]; "fast": coarse maps times the
                      global one [P equation 11]
    key_stride        of keys and values: 16, or 8, where layer3 is joined with layer2 (ours)
    similarity        "dot" [P equation 4], "l2" or "cosine", as in STMConfig (ours)
    top_k             closest positions of the support that every cell reads; None: all [O: XMem]
    sharpness         factor of the scores beside 1 / sqrt(Ck) (ours)
    read_masks        the support's masks are read too, as one more value channel, and the
                      decoders' logits are added to theirs (ours)
    norm              "batch", or "group" for training from scratch in small batches (ours)
    size              what the frame is resized to: short side, (height, width), or None for its own
    decoder_channels  width of STM's decoder [C: STM]; fine_channels, memory_encoder (here of the
                      support): as in STMConfig (ours)
    decoders          "separate" weights for the global and the instance branch, or "shared" (ours)
    coarse_channels   between the two 1x1 layers of f_coarse (ours)
    product           the instance decoder's map times the global one, as the text and the ablation
                      have it; False: equation 12 literally

    temporal          how the temporal attention weighs frames: "bias", its logarithm added to the
                      scores (ours); "premul", the keys times it; "postmul", the affinity times it;
                      "none" [P table 1, an ablation, worth 1.3 J; the text says 1.0]
    support           frames read [P table 1: T = 5]
    sampling          "previous": the first, the previous and centres of equal segments [C: EGMN];
                      "literal": the first and segment centres [P section 3.4]
    support_mask      what the support encoder sees of a predicted frame: "global", the global map
                      above 0.5 [P section 3.3], or "instances", the union of the final masks (ours)
    stored_frames     kept of an endless stream; when they are full, every second one goes (ours)
    group             objects that are decoded at a time [P section 3.2: D = 6]; more do not change
                      the result, only the room that it takes
    """

    backbone: str = "resnet50"
    width: int = 64
    key_channels: int = 128
    value_channels: int = 512
    heads: str = "shared"
    scaled: bool = True
    label_channels: int = 64
    label_output: str = "linear"
    variant: str = "full"
    decoder_channels: int = 256
    fine_channels: int | None = None
    memory_encoder: str = "full"
    decoders: str = "separate"
    coarse_channels: int = 256
    product: bool = True
    temporal: str = "bias"
    support: int = 5
    sampling: str = "previous"
    support_mask: str = "global"
    stored_frames: int = 64
    group: int = 6
    key_stride: int = 16
    similarity: str = "dot"
    top_k: int | None = None
    sharpness: float = 1.0
    read_masks: bool = False
    norm: str = "batch"
    size: tuple[int, int] | int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_input(self)
        check_positive(self, "width", "key_channels", "value_channels", "label_channels")
        check_positive(self, "decoder_channels", "coarse_channels", "group")
        check(0 < self.sharpness < float("inf"), "sharpness", "a number above 0", self.sharpness)
        check(self.top_k is None or self.top_k >= 1, "top_k", "1 or more, or None", self.top_k)
        check(self.key_stride in (8, 16), "key_stride", "8 or 16", self.key_stride)
        check_choice(
            self,
            similarity=("dot", "l2", "cosine"),
            memory_encoder=("full", "shared"),
            heads=("shared", "separate"),
            label_output=("linear", "sigmoid"),
            variant=("full", "fast"),
            decoders=("separate", "shared"),
            temporal=("bias", "premul", "postmul", "none"),
            sampling=("previous", "literal"),
            support_mask=("global", "instances"),
        )
        check(self.support >= 3, "support", "3 or more", self.support)
        least = 2 * self.support
        wanted = f"{least} or more, twice the support"
        check(self.stored_frames >= least, "stored_frames", wanted, self.stored_frames)


@dataclass(frozen=True)
class DMNAOAConfig:
    """DMN-AOA: object templates from a dynamic memory, matched with aligned proposals.

    backbone           ResNet up to layer3 [P section 4: ResNet-50 or ResNet-101]
    width              channels of its stem; 64 is the published network
    base_channels      of res2, res3 and res4 after their 1x1 bottlenecks [C: DMM]
    norm_groups        of every group norm outside the backbone [P section 4.1: 32]

    region_levels      what regions are pooled from: "all", the three levels joined [C: DMM], or
                       "res4", res4 alone, in as many channels (ours)
    region_size        cells of a region's side [C: DMM: 14]
    sampling           samples per cell and axis [C: DMM: 2]
    key_channels       C / 4 of equation 1; C, the values', is the sum of base_channels

    max_proposals      the best that are looked at [P section 3.1: 30]
    proposal_overlap   of boxes, above which the lesser proposal goes [P section 4.1: 0.4]
    projected_channels C_D, of the space where templates and proposals are compared [C: CoCosNet]
    sharpness          alpha of equation 2 [C: CoCosNet: 100]
    score              "mean" of the cosines of all positions, or "flat", one cosine of the whole
                       maps (ours)
    overlap_weight     share of the overlap with the previous mask in the matching score [C: DMM has
                       0.3; the paper does not name it: 0]
    matching_steps     of the relaxed assignment, each with matching_rounds of projections
                       [C: DMM's evaluation: 40 and 5]
    matching_rate      length of a step [C: DMM: 0.1]
    assignment         "final", its last iterate (ours), or "dmm", the mean of the iterates before
                       projection, each row's greatest alone [C: DMM]

    refine_channels    width of RefineNet at strides 8 and 4 [C: STM: 256]; 128 is a third of the
                       work

    top_k              closest cells of a reference that every cell reads; None: all [O: XMem]
    read_masks         RefineNet's logits are added to those of the references' masks as they were
                       moved onto the frame, at stride 4, the mean of first and previous (ours)
    norm               of the backbone: "batch", or "group" for training from scratch (ours)
    size               what the frame is resized to: short side, (height, width), or None for its
                       own
    """

    backbone: str = "resnet50"
    width: int = 64
    base_channels: tuple[int, int, int] = (128, 128, 256)
    norm_groups: int = 32
    region_levels: str = "all"
    region_size: int = 14
    sampling: int = 2
    key_channels: int = 128
    max_proposals: int = 30
    proposal_overlap: float = 0.4
    projected_channels: int = 256
    sharpness: float = 100.0
    score: str = "mean"
    overlap_weight: float = 0.0
    matching_steps: int = 40
    matching_rounds: int = 5
    matching_rate: float = 0.1
    assignment: str = "final"
    refine_channels: int = 256
    top_k: int | None = None
    read_masks: bool = False
    norm: str = "batch"
    size: tuple[int, int] | int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def __post_init__(self) -> None:
        check_input(self)
        channels = self.base_channels
        fits = len(channels) == 3 and min(channels) >= 1
        check(fits, "base_channels", "three numbers of 1 or more", channels)
        check_positive(self, "width", "norm_groups", "region_size", "sampling", "key_channels")
        check_positive(self, "max_proposals", "projected_channels", "refine_channels")
        check_positive(self, "matching_steps", "matching_rounds")
        for name in ("projected_channels", "refine_channels", "base_channels"):
            given = getattr(self, name)
            numbers = given if isinstance(given, tuple) else (given,)
            fits = all(number % self.norm_groups == 0 for number in numbers)
            wanted = f"a multiple of norm_groups = {self.norm_groups}"
            check(fits, name, wanted, given)
        check_choice(
            self, region_levels=("all", "res4"), score=("mean", "flat"), assignment=("final", "dmm")
        )
        check(0 < self.proposal_overlap <= 1, "proposal_overlap", "0..1", self.proposal_overlap)
        check(0 <= self.overlap_weight <= 1, "overlap_weight", "0..1", self.overlap_weight)
        check(self.top_k is None or self.top_k >= 1, "top_k", "1 or more, or None", self.top_k)
        check(0 < self.sharpness < float("inf"), "sharpness", "a number above 0", self.sharpness)
        check(0 < self.matching_rate < 10, "matching_rate", "0..10", self.matching_rate)

    @property
    def value_channels(self) -> int:
        """C of equation 1, the channels of a region."""
        return sum(self.base_channels)
