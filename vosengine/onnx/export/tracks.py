"""target_aware as graphs: D-Net, scores and embeddings of tracks, and their online learning.

    encode    features of a frame
    discover, guide  D-Net, see discovery.py
    score     map and logits of every track at the network's size, and labels
    embed     ReID vectors of boxes
    learn     masks as labels, and as targets of the tracks
    begin     fit of a new track to its first frame and its augmentations
    fit       fit of a track's second layer to its samples

Matching of tracks and the schedule of fits are decided between the graphs: vosengine.onnx.tracks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ...models.backbone import Pyramid
from ...models.target_aware.appearance import first_weights, to_grid
from ...models.target_aware.augment import move, put_back
from ...models.target_aware.network import TargetAware
from ...models.target_aware.reid import ReID
from ...policies.placement import blur_width
from ...policies.tracks import RULES
from ...types import Size
from .discovery import STRIDE, discovery_settings, discovery_verbs
from .fitting import fit_track, resize_like
from .verb import Plan, Traced, Verb, VerbInput, encode_verb

POLICY = "tracks"
NOT_THERE = -1e30  # logit of a row without a track
BOXES = 4  # boxes per run of a static `embed`


def cells_of(method: TargetAware) -> Size:
    """Size (h, w) of the tracks' grid."""
    return (-(-method.config.tracker_size // 16),) * 2


def settings(method: TargetAware, plan: Plan) -> dict[str, Any]:
    """Settings of the policy: the logits' stride, D-Net's settings, and those of the tracks."""
    config = method.config
    side = config.tracker_size
    others = "tracker_size", "target_channels", "augmentations", "samples", "max_tracks"
    names = (*RULES, *others, "reid_channels", "verified_mask")
    return {
        "stride": 1,
        "discovery": discovery_settings(config),
        "guidance": config.guidance,
        "blur_radius": blur_width(1.0, side)[1],
        **{name: getattr(config, name) for name in names},
    }


def encode(method: TargetAware, prepared: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """prepared -> appearance features, and the refiner's features of the frame."""
    pyramid = method.see(method.stretched(prepared))
    return (pyramid.r4, *method.refiner.reduce(pyramid))


def score(method: TargetAware, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """appearance, reduced..., projection, kernel, alive, prepared -> maps, logits, labels."""
    appearance, *reduced, projection, kernel, alive, prepared = tensors
    maps = torch.einsum("kdc,chw->kdhw", projection, appearance[0].float())
    square = (method.config.tracker_size,) * 2
    coarse = _scores(maps, kernel).to(appearance.dtype)
    refined = method.refiner(coarse, reduced, square).float()
    logits = resize_like(refined, prepared)
    return maps, logits, _exclusive(logits, alive)


def _scores(maps: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """`Tracks.scores`: one matrix product for all nine taps, which are then shifted and summed."""
    height, width = maps.shape[2:]
    taps = kernel.flatten(2).mT @ maps.flatten(2)
    padded = functional.pad(taps.unflatten(2, (height, width)), (1, 1, 1, 1))
    total = padded[:, 0, :height, :width]
    for tap in range(1, 9):
        y, x = divmod(tap, 3)
        total = total + padded[:, tap, y : y + height, x : x + width]
    return total[:, None]


def _exclusive(logits: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """Labels uint8 [H, W] after soft aggregation: 1 + row, or 0."""
    logits = torch.where(alive[:, None, None], logits, NOT_THERE)
    joint = functional.softplus(logits).sum(dim=0)
    best, row = logits.max(dim=0)
    # Odds e^best against the background's 1 / (e^joint - 1); tanh avoids cancellation.
    tanh = torch.tanh(joint / 2)
    background = (1 - tanh) / (2 * tanh)
    return torch.where(best.exp() > background, 1 + row, 0).to(torch.uint8)


def embed(reid: ReID, prepared: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """prepared, boxes -> vectors."""
    return reid.embed(reid.crop(prepared, boxes))


class Learn(nn.Module):
    """masks [1 + objects, H, W] -> labels uint8 [H, W]; for every object its mask at the tracker's
    size, and bands and aims on the tracks' grid."""

    def __init__(self, method: TargetAware) -> None:
        super().__init__()
        self.influence = method.config.target_influence
        self.cells = cells_of(method)
        self.register_buffer("square", torch.zeros((method.config.tracker_size,) * 2))

    def forward(self, masks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        labels = masks.argmax(dim=0)
        ids = torch.arange(1, masks.shape[0], device=masks.device)
        owned = labels == ids[:, None, None]
        targets = resize_like(owned.float(), self.square)
        grid = to_grid(targets, self.influence, self.cells)
        return labels.to(torch.uint8), targets, grid.bands, grid.targets


class Begin(nn.Module):
    """appearance, target, and if there are augmentations prepared, placements and blurs ->
    projection, kernel, and the first samples."""

    def __init__(self, method: TargetAware) -> None:
        super().__init__()
        self.method = method
        config = method.config
        self.cells = cells_of(method)
        device = torch.device("cpu")
        first = first_weights(config.target_channels, method.backbone.channels[2], device)
        self.register_buffer("projection", first[0])
        self.register_buffer("kernel", first[1])
        count = 1 + config.augmentations
        self.register_buffer("share", torch.full((count,), 1 / count))

    def forward(
        self, appearance: torch.Tensor, target: torch.Tensor, *more: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        config = self.method.config
        maps, labels = appearance, target[None]
        if more:
            frames, moved = self._augmented(target, *more)
            maps = torch.cat((maps, self.method.see(frames).r4))
            labels = torch.cat((labels, moved.float()))
        grid = to_grid(labels, config.target_influence, self.cells)
        maps = maps.float()
        kernel, projection = fit_track(
            maps,
            grid.bands,
            grid.targets,
            self.share,
            self.kernel,
            self.projection,
            config.first_iterations,
            config.ridge,
        )
        samples = torch.einsum("dc,nchw->ndhw", projection, maps)
        return projection, kernel, samples, grid.bands, grid.targets

    def _augmented(
        self,
        target: torch.Tensor,
        prepared: torch.Tensor,
        placements: torch.Tensor,
        blurs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`augment` with given random draws; blurs [n, side] are weights of a blur kernel."""
        square, label = self.method.stretched(prepared), target > 0.5
        moved, labels, background = move(square, label, placements)
        planes, reach = moved.flatten(0, 1)[None], blurs.shape[1] // 2
        weights = blurs.repeat_interleave(4, dim=0)[:, None]  # of four planes each
        groups = len(weights)
        planes = functional.conv2d(planes, weights[..., None], padding=(reach, 0), groups=groups)
        planes = functional.conv2d(planes, weights[:, :, None], padding=(0, reach), groups=groups)
        return put_back(planes[0].unflatten(0, (-1, 4)), labels, background, square, label)


def fit(method: TargetAware, *tensors: torch.Tensor) -> torch.Tensor:
    """Features, bands, targets and weight of a track's samples, and its kernel -> fitted kernel."""
    config = method.config
    (kernel,) = fit_track(*tensors, None, config.later_iterations, config.ridge)
    return kernel


class Sizes(NamedTuple):
    """Sizes of the examples: the prepared frame, with the network's dtype, and counts."""

    prepared: VerbInput
    objects: int
    samples: int
    boxes: int


def verbs(method: TargetAware, plan: Plan) -> list[Verb]:
    """The graphs except `prepare` and `finish`."""
    config = method.config
    frame = plan.frame(method.backbone.conv1.weight.dtype)
    density = STRIDE if config.guidance == "tracks" else 4
    static = plan.static
    sizes = Sizes(
        frame,
        plan.objects,
        config.samples if static else min(config.samples, 6),
        BOXES if static else 3,
    )
    names = ["appearance", *(f"reduced{i}" for i in range(len(Pyramid._fields)))]
    encoder, features = encode_verb(plan, frame, Traced(method, encode), names)
    known = [replace(feature, axes={}) for feature in features]  # the tracker's size is fixed
    return [
        encoder,
        *discovery_verbs(method.dnet, plan.cells, density=density),
        _score(method, known, sizes),
        _embed(method, sizes),
        _learn(method, sizes),
        _begin(method, known[0], sizes),
        _fit(method, sizes),
    ]


def _score(method: TargetAware, known: list[VerbInput], sizes: Sizes) -> Verb:
    layers = first_weights(
        method.config.target_channels, method.backbone.channels[2], torch.device("cpu")
    )
    rows = {0: "objects"}
    projection, kernel = (
        layer[None].repeat(sizes.objects, *([1] * layer.ndim)) for layer in layers
    )
    inputs = (
        *known,
        VerbInput("projection", "state.projection", projection, rows),
        VerbInput("kernel", "state.kernel", kernel, rows),
        VerbInput("alive", "caller.alive", torch.ones(sizes.objects, dtype=torch.bool), rows),
        sizes.prepared,
    )
    return Verb(
        "score", Traced(method, score), inputs, (("maps", ""), ("logits", ""), ("labels", ""))
    )


def _embed(method: TargetAware, sizes: Sizes) -> Verb:
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0]]).repeat(sizes.boxes, 1)
    boxes[:, 2] += torch.arange(sizes.boxes)
    inputs = sizes.prepared, VerbInput("boxes", "caller.boxes", boxes, {0: "boxes"})
    return Verb("embed", Traced(method.reid, embed), inputs, (("vectors", ""),))


def _learn(method: TargetAware, sizes: Sizes) -> Verb:
    height, width = sizes.prepared.example.shape[2:]
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    step = torch.arange(1 + sizes.objects)[:, None, None]
    masks = torch.cos(3 * y + step) + torch.sin(2 * x * (1 + step))
    axes = {0: "1+objects", 1: f"{STRIDE}*h", 2: f"{STRIDE}*w"}
    outputs = ("labels", ""), ("targets", ""), ("bands", ""), ("aims", "")
    return Verb("learn", Learn(method), (VerbInput("masks", "finish.masks", masks, axes),), outputs)


def _begin(method: TargetAware, appearance: VerbInput, sizes: Sizes) -> Verb:
    config, side = method.config, method.config.tracker_size
    centred = torch.linspace(-1, 1, side).square()
    target = (centred[:, None] + centred < 0.3).float()
    inputs = [appearance, VerbInput("target", "learn.targets", target, {})]
    count = config.augmentations
    if count:
        places = torch.tensor([[0.9, 0.2, 0.1], [-0.2, 0.9, 0.05]])[None].repeat(count, 1, 1)
        blurs = torch.zeros(count, 1 + 2 * blur_width(1.0, side)[1])
        blurs[:, blurs.shape[1] // 2] = 1
        inputs += [
            sizes.prepared,
            VerbInput("placements", "caller.placements", places, {}),
            VerbInput("blurs", "caller.blurs", blurs, {}),
        ]
    outputs = "projection", "kernel", "features", "bands", "targets"
    return Verb("begin", Begin(method), tuple(inputs), tuple((name, "") for name in outputs))


def _fit(method: TargetAware, sizes: Sizes) -> Verb:
    config, cells, count = method.config, cells_of(method), sizes.samples
    steps = torch.arange(count)[:, None, None]
    centred = torch.linspace(-1, 1, config.tracker_size)
    labels = ((centred - 0.02 * steps).square() + centred[:, None].square() < 0.3).float()
    grid = to_grid(labels, config.target_influence, cells)
    shape = config.target_channels, *cells
    features = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    _, kernel = first_weights(shape[0], 1, torch.device("cpu"))
    many = {0: "samples"}
    inputs = (
        VerbInput("features", "caller.features", features, many),
        VerbInput("bands", "caller.bands", grid.bands, many),
        VerbInput("targets", "caller.targets", grid.targets, many),
        VerbInput("weight", "caller.weight", torch.full((count,), 1 / count), many),
        VerbInput("kernel", "caller.kernel", kernel, {}),
    )
    return Verb("fit", Traced(method, fit), inputs, (("kernel_out", ""),))
