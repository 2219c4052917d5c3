"""Configurations of the models that segment all objects in one pass: GIEL and DMN-AOA."""

from __future__ import annotations

from dataclasses import dataclass, field

from .checks import InputConfig, check, check_choice, check_positive
from .matching import MatchingFields, MemoryConfig


@dataclass(frozen=True)
class GIELConfig(MatchingFields):
    """Configuration of GIEL: one affinity for all objects, a global and an instance branch.

    backbone          ResNet up to layer3, stride 16 [P section 3.3: ResNet-50]
    key_channels      Ck, an eighth of layer3's [P equation 3]; value_channels: Cv, a half
    heads             "shared": one f_k and f_v for query and support [P equation 3], or
                      "separate" (ours)
    scaled            scale the scores by 1 / sqrt(Ck), as STM's code does (ours); False: equation 4
                      literally

    label_channels    hidden channels of the label encoder (ours)
    label_output      "linear" or "sigmoid", after its last norm (ours)
    variant           "full": a decoder per instance [P equation 12]; "fast": coarse maps times the
                      global one [P equation 11]
    similarity        "dot" [P equation 4], "l2" or "cosine", as in STMConfig (ours)
    decoder_channels  width of STM's decoder [C: STM]
    decoders          "separate" weights for the global and the instance branch, or "shared" (ours)
    coarse_channels   hidden channels of f_coarse (ours)
    product           multiply the instance decoder's map by the global one, as in the text and the
                      ablation; False: equation 12 literally

    temporal          how the temporal attention weights frames: "bias", its logarithm added to the
                      scores (ours); "premul", the keys times it; "postmul", the affinity times it;
                      "none" [P table 1, an ablation, worth 1.3 J; the text says 1.0]
    support           number of frames read [P table 1: T = 5]
    sampling          "previous": the first, the previous and centres of equal segments [C: EGMN];
                      "literal": the first and segment centres [P section 3.4]
    support_mask      support encoder's mask of a predicted frame: "global", the global map
                      above 0.5 [P section 3.3], or "instances", the union of the final masks (ours)
    stored_frames     capacity of the frame store; when it is full, every second one is dropped
                      (ours)
    group             number of objects decoded at a time [P section 3.2: D = 6]; affects memory
                      use, not the result

    All other fields as in STMConfig, with the support for the memory.

    Raises  ConfigError for a value out of range.
    """

    heads: str = "shared"
    scaled: bool = True
    label_channels: int = 64
    label_output: str = "linear"
    variant: str = "full"
    decoders: str = "separate"
    coarse_channels: int = 256
    product: bool = True
    temporal: str = "bias"
    support: int = 5
    sampling: str = "previous"
    support_mask: str = "global"
    stored_frames: int = 64
    group: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "label_channels", "coarse_channels", "group")
        check_choice(
            self,
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
class DMNAOAConfig(InputConfig):
    """Configuration of DMN-AOA: templates from a dynamic memory, matched with aligned proposals.

    backbone           ResNet up to layer3 [P section 4: ResNet-50 or ResNet-101]
    base_channels      channels of res2, res3 and res4 after their 1x1 bottlenecks [C: DMM]
    norm_groups        groups of every group norm outside the backbone [P section 4.1: 32]

    region_levels      levels that regions are pooled from: "all", three levels concatenated
                       [C: DMM], or "res4" only, with as many channels (ours)
    region_size        side of a region in cells [C: DMM: 14]
    sampling           samples per cell and axis [C: DMM: 2]
    key_channels       C / 4 of equation 1; C, the values', is the sum of base_channels

    max_proposals      maximum number of proposals, the best [P section 3.1: 30]
    proposal_overlap   box IoU threshold of the non-maximum suppression [P section 4.1: 0.4]
    projected_channels C_D, channels in which templates and proposals are compared [C: CoCosNet]
    sharpness          alpha of equation 2 [C: CoCosNet: 100]
    score              "mean" of the cosines of all positions, or "flat", one cosine of the whole
                       maps (ours)
    overlap_weight     weight of the overlap with the previous mask in the matching score, 0..1
                       [C: DMM has 0.3; the paper does not name it: 0]
    matching_steps     steps of the relaxed assignment, each with matching_rounds projections
                       [C: DMM's evaluation: 40 and 5]
    matching_rate      step size [C: DMM: 0.1]
    assignment         "final", the last iterate (ours), or "dmm", the mean of the iterates before
                       projection, only the maximum of each row [C: DMM]

    refine_channels    width of RefineNet at strides 8 and 4 [C: STM: 256]; 128 takes a third of the
                       operations

    top_k              number of closest reference cells that every cell reads; None: all (ours,
                       from XMem)
    read_masks         RefineNet predicts a residual to the logits of the references' masks warped
                       onto the frame, at stride 4, the mean of first and previous (ours)
    norm               norm of the backbone, as in STMConfig (ours)

    width, size, mean, std and memory as in STMConfig.

    Raises  ConfigError for a value out of range.
    """

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
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        channels = self.base_channels
        fits = len(channels) == 3 and min(channels) >= 1
        check(fits, "base_channels", "three numbers of 1 or more", channels)
        check_positive(self, "norm_groups", "region_size", "sampling", "key_channels")
        check_positive(self, "max_proposals", "projected_channels", "refine_channels")
        check_positive(self, "matching_steps", "matching_rounds")
        for name in ("projected_channels", "refine_channels", "base_channels"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            fits = all(number % self.norm_groups == 0 for number in numbers)
            wanted = f"a multiple of norm_groups = {self.norm_groups}"
            check(fits, name, wanted, value)
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
