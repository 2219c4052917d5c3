"""Configurations of the unsupervised models: IMCNet and target-aware U-VOS."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .checks import BACKBONES, SMALLEST_SIDE, InputConfig, check, check_choice, check_positive


@dataclass(frozen=True)
class IMCNetConfig(InputConfig):
    """Configuration of IMCNet: foreground from a frame and its neighbours.

    backbone       ResNet with layer4, stride 32 [P section III-A: ResNet-101]
    width          channels of its stem; 64 is the published network
    neck           channels of the four maps after a 1x1 convolution, for a backbone whose maps
                   differ in scale from a ResNet's; cells are then normalised before and after the
                   fusion of frames; None: no neck (ours)
    channels       channels of keys and decoder [C: 64]
    neighbours     number of frames on each side, "N" [P table II: 1]
    step           distance between them in frames, "delta t" [P table II: 4]
    alignments     layers of the cascade, "l" [P table I: 4], 0..6
    offset_groups  groups of the deformable convolutions [C: 8]
    fusion         "tsc", or "conv3", the bridge of the ablation [P table I]
    threshold      minimum foreground probability, above 0 and below 1 (ours: 0.5)
    size           working size: (height, width), the frame stretched to it [C: 480 x 480]; int:
                   the short side, aspect kept; None: the frame's own size
    norm           "batch", or "group" for training from scratch in small batches (ours)
    mean, std      input normalisation, RGB in 0..1

    Raises  ConfigError for a value out of range.
    """

    backbone: str = "resnet101"
    neck: tuple[int, int, int, int] | None = None
    channels: int = 64
    neighbours: int = 1
    step: int = 4
    alignments: int = 4
    offset_groups: int = 8
    fusion: str = "tsc"
    threshold: float = 0.5
    size: tuple[int, int] | int | None = (480, 480)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "channels", "neighbours", "step", "offset_groups")
        check(0 <= self.alignments <= 6, "alignments", "0..6", self.alignments)
        divides = self.channels % self.offset_groups == 0
        wanted = f"a divisor of channels = {self.channels}"
        check(divides, "offset_groups", wanted, self.offset_groups)
        check_choice(self, fusion=("tsc", "conv3"))
        check(0 < self.threshold < 1, "threshold", "above 0 and below 1", self.threshold)
        fits = self.neck is None or (len(self.neck) == 4 and min(self.neck) >= 1)
        check(fits, "neck", "four numbers of 1 or more, or None", self.neck)

    @property
    def sees(self) -> tuple[int, ...]:
        """Offsets of the frames that the model uses, relative to the one it answers for."""
        return tuple(self.step * n for n in range(-self.neighbours, self.neighbours + 1))


@dataclass(frozen=True)
class TargetAwareConfig(InputConfig):
    """Configuration of target-aware U-VOS: D-Net discovers objects, T-Net tracks each of them.

    size                 working size, as in IMCNetConfig [P section 4.1: 480 x 854, a short side of
                         480 at DAVIS's aspect ratio]
    norm                 norm of all networks, as in IMCNetConfig
    mean, std            input normalisation, RGB in 0..1

    D-Net: discovery
    backbone, width      ResNet with a dilated layer4, stride 16 [P section 3.1: ResNet-50]
    aspp_channels        channels of every ASPP branch and of the output [P: 256]
    aspp_rates           dilations of their 3x3 convolutions [P]
    squeeze              inputs of the guidance module: "pair", the feature and the guidance, as in
                         equations 1 and 2; or "literal", the two task features of equations 3 and 4
                         (ours)
    squeeze_reduction    reduction of its hidden layer (ours: 16, as in SE networks)
    heads                "separable" 5x5 convolutions [C: Panoptic-DeepLab] or "dense" [P literally]
    saliency_channels, instance_channels  width of the heads [C: Panoptic-DeepLab]
    saliency_skips, instance_skips        channels of res3 and res2 after projection
                         [C: Panoptic-DeepLab]
    saliency_threshold   minimum foreground probability (ours)
    centre_threshold, centre_window       threshold and max-pooling window (cells, odd) of the heat
                         map's peaks [C: Panoptic-DeepLab]
    centre_limit         maximum number of peaks (ours: 20; DAVIS allows 20 objects)
    smallest_proposal    minimum pixels of a proposal at the network's size (ours)
    guidance             mask that guides the next frame: "saliency", D-Net's, or "tracks", the
                         union of all tracks (ours)
    guide                encoder of the previous frame with that mask: "own", a second backbone with
                         the mask as a further input channel [P section 3.1]; "shared", D-Net's, the
                         mask added at stride 16 through a 3x3 convolution (ours)

    T-Net: one appearance model per object
    tracker_backbone, tracker_width  ResNet [P section 4.1: ResNet-101]
    tracker_stride       stride of its deepest map: 32, or 16, without layer4 (ours)
    tracker_size         side of the square that the frame is stretched to, in pixels [P: 473]
    normalised           scale every cell of its maps to a root mean square of 1, for a backbone
                         whose maps differ in scale from a ResNet's (ours)
    target_channels      hidden channels of the target model [P: 96]
    ridge                lambda of the 1x1 and of the 3x3 layer [C: FRTM]
    first_iterations     CG iterations per Gauss-Newton step on the first frame [C: FRTM]
    later_iterations     the same for every update, of the second layer only [C: FRTM]
    augmentations        number of augmented copies of the first frame [C: FRTM]
    samples              samples per object; the one with the smallest weight is replaced [C: FRTM]
    learning_rate        gamma, the decay rate of sample weights [C: FRTM]
    target_influence     minimum share of the target's pixels in a sample's loss [C: FRTM]
    smallest_sample      minimum pixels of a mask to be a sample [C: FRTM]
    update_every         frames between updates of an object that is not verified [P: 8]
    refiner              "frtm", FRTM's network, or "none": the coarse score, upsampled (ours)
    refiner_channels     its width [C: FRTM]

    Verification and birth
    reid_backbone, reid_width, reid_channels  embedding network (ours: ResNet-50) and its output
                         channels [C: 128, PReMVOS]
    reid_stride          stride of the averaged map, as tracker_stride (ours)
    reid_crop, reid_context, reid_smallest_box  crop in pixels, its side relative to the box,
                         minimum side of a box in pixels [C: PReMVOS, UnOVOST]
    match_overlap        minimum IoU of a proposal with the tracked mask [P equation 10]
    match_score          minimum score of a match that verifies a track [P: 0.6]
    verified_weight      factor of a verified sample's weight [P: 2]
    verified_feeds       whether that factor enters the recursion of the weights (ours: no)
    verified_mask        mask of a verified track: the "proposal"'s [P section 3.3], or its "own",
                         if the refiner's outlines are better than D-Net's (ours)
    birth_overlap        a proposal whose IoU with every track is below this is new [P: 0.1]
    birth_score          minimum score of a proposal that begins a track (ours)
    max_tracks           maximum number of objects at a time [C: DAVIS's unsupervised track]

    Raises  ConfigError for a value out of range.
    """

    size: tuple[int, int] | int | None = 480

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
    guide: str = "own"

    tracker_backbone: str = "resnet101"
    tracker_width: int = 64
    tracker_stride: int = 32
    tracker_size: int = 473
    normalised: bool = False
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
    reid_stride: int = 32
    reid_crop: int = 128
    reid_context: float = 1.2
    reid_smallest_box: int = 30
    match_overlap: float = 0.5
    match_score: float = 0.6
    verified_weight: float = 2.0
    verified_feeds: bool = False
    verified_mask: str = "proposal"
    birth_overlap: float = 0.1
    birth_score: float = 0.0
    max_tracks: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(
            self,
            tracker_backbone=BACKBONES,
            reid_backbone=BACKBONES,
            squeeze=("pair", "literal"),
            heads=("separable", "dense"),
            guidance=("saliency", "tracks"),
            guide=("own", "shared"),
            verified_mask=("proposal", "own"),
            refiner=("frtm", "none"),
        )
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if field_.type == "int":
                least = 0 if field_.name == "augmentations" else 1
                check(value >= least, field_.name, f"{least} or more", value)
            elif str(field_.type).startswith("tuple[int") and field_.name != "size":
                fits = len(value) > 0 and min(value) >= 1
                check(fits, field_.name, "numbers of 1 or more", value)
        shares = "saliency_threshold", "target_influence", "match_overlap", "birth_overlap"
        for name in (*shares, "birth_score"):
            check(0 <= getattr(self, name) < 1, name, "0..1", getattr(self, name))
        for name in ("tracker_stride", "reid_stride"):
            check(getattr(self, name) in (32, 16), name, "32 or 16", getattr(self, name))
        check(0 < self.learning_rate < 1, "learning_rate", "0..1", self.learning_rate)
        check(min(self.ridge) > 0 and len(self.ridge) == 2, "ridge", "two above 0", self.ridge)
        check(self.centre_window % 2 == 1, "centre_window", "an odd number", self.centre_window)
        check(1 <= self.centre_limit <= 255, "centre_limit", "1..255", self.centre_limit)
        check(1 <= self.max_tracks <= 255, "max_tracks", "1..255", self.max_tracks)
        check(self.samples > self.augmentations, "samples", "above augmentations", self.samples)
        check(self.reid_context >= 1, "reid_context", "1 or more", self.reid_context)
        check(self.verified_weight >= 1, "verified_weight", "1 or more", self.verified_weight)
        wanted = f"{SMALLEST_SIDE} or more pixels"
        check(self.tracker_size >= SMALLEST_SIDE, "tracker_size", wanted, self.tracker_size)
