"""D-Net as graphs: `discover` finds the objects of a frame, `guide` computes the next guidance.

    discover  prepared float32 [1, 3, H, W], H and W multiples of 16
              guidance [1, C, H / 16, W / 16], output of `guide` for the previous frame
              guided   bool [], false for the first frame of a stream: guidance is ignored
              region   int64 [4] (top, left, height, width) of the frame inside the padded input
           -> saliency float32 [1, 1, H / 4, W / 4], probability of the foreground
              labels   uint8 [H, W], 0 for the background, else 1 + index of the object
              areas    int64 [limit], pixels of every object
              scores   float32 [limit], mean foreground probability of every object
              deep     [1, D, H / 16, W / 16], if the guide shares the backbone
    guide     deep, or else prepared; saliency [1, 1, h, w], 0 to 1, h and w multiples of the cells
           -> guidance

`discovery_verbs` returns both graphs and `discovery_settings` the "discovery" entry of the
manifest's settings; vosengine.onnx.discovery runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ...config import TargetAwareConfig
from ...kernels import group_centres
from ...models.blocks import upsample
from ...models.target_aware.dnet import MAP_STRIDE, DNet, DNetMaps
from ...models.target_aware.network import TargetAware
from ...runtime.folding import fold_batch_norms
from ...types import Size
from ...zoo.weights import WeightCard, load
from .verb import Verb, VerbInput

STRIDE = 16  # of D-Net's features, and what its input is padded to


class Normalised(NamedTuple):
    """Mean and standard deviation that a prepared frame was normalised with."""

    mean: Sequence[float]
    std: Sequence[float]


def load_dnet(weights: str | None, dtype: torch.dtype) -> tuple[DNet, WeightCard]:
    """Load target_aware's discovery network for export, and its weight card."""
    method, card = load("target_aware", weights)
    fold_batch_norms(method)
    return cast(TargetAware, method).dnet.to(dtype), card


def discovery_settings(config: TargetAwareConfig) -> dict[str, Any]:
    """The entry settings["discovery"] of the manifest, for `Discovery`.

    size      working size of D-Net
    channels  of the guidance
    smallest  least pixels of an object at that size; smaller objects are dropped
    """
    return {
        "size": config.size,
        "multiple": STRIDE,
        "channels": config.aspp_channels,
        "smallest": config.smallest_proposal,
    }


def discovery_verbs(
    dnet: DNet,
    cells: Size,
    *,
    source: str = "prepare.prepared",
    normalised: Normalised | None = None,
    density: int = STRIDE // MAP_STRIDE,
) -> list[Verb]:
    """The graphs `discover` and `guide`.

    cells       size of D-Net's input at stride 16; an example if the export is dynamic
    source      source of the prepared frame
    normalised  normalisation of the prepared frame; None: D-Net's own
    density     values per cell side of the saliency that `guide` takes: 4 for the output of
                `discover`, 16 for a mask
    """
    dtype = dnet.backbone.conv1.weight.dtype
    pixels = STRIDE * cells[0], STRIDE * cells[1]
    sides = {2: f"{STRIDE}*h", 3: f"{STRIDE}*w"}
    frame = VerbInput("prepared", source, _picture(pixels).to(dtype), sides)
    known = torch.zeros(1, dnet.config.aspp_channels, *cells, dtype=dtype)
    region = torch.tensor([0, 0, *pixels])
    shown = torch.rand(1, 1, density * cells[0], density * cells[1])
    discover = (
        frame,
        VerbInput("guidance", "guide.guidance@-1", known, {2: "h", 3: "w"}),
        VerbInput("guided", "caller.guided", torch.tensor(True), {}),
        VerbInput("region", "caller.network_region", region, {}),
    )
    names = ["saliency", "labels", "areas", "scores"]
    guide_frame = frame
    if dnet.guide_backbone is None:
        names.append("deep")
        deep = torch.randn(1, dnet.backbone.channels[3], *cells, dtype=dtype)
        guide_frame = VerbInput("deep", "discover.deep", deep, {2: "h", 3: "w"})
    guide = (
        guide_frame,
        VerbInput("saliency", "discover.saliency", shown, {2: f"{density}*h", 3: f"{density}*w"}),
    )
    return [
        Verb("discover", Discover(dnet, normalised), discover, tuple((name, "") for name in names)),
        Verb("guide", Guide(dnet, STRIDE // density, normalised), guide, (("guidance", ""),)),
    ]


def _picture(size: Size) -> torch.Tensor:
    """A smooth example image [1, 3, *size] without near-ties."""
    y, x = (torch.linspace(0, 3, n) for n in size)
    return torch.stack([torch.sin(c + y)[:, None] * torch.cos(c * x) for c in range(1, 4)])[None]


class _Renormalise(nn.Module):
    """Convert a frame to D-Net's normalisation; padding stays black."""

    def __init__(self, config: TargetAwareConfig, normalised: Normalised | None) -> None:
        super().__init__()
        self.gain: torch.Tensor | None = None
        if normalised is None or normalised == Normalised(config.mean, config.std):
            return
        mean, std, own_mean, own_std = (
            torch.tensor(values)[:, None, None] for values in (*normalised, config.mean, config.std)
        )
        self.gain, self.shift = std / own_std, (mean - own_mean) / own_std

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        if self.gain is None:
            return frame
        return (frame * self.gain + self.shift).to(frame.dtype)


class Discover(nn.Module):
    """prepared, guidance, guided, region -> saliency, labels, areas, scores, and the features that
    the guide shares, if it has no backbone of its own."""

    def __init__(self, dnet: DNet, normalised: Normalised | None = None) -> None:
        super().__init__()
        self.dnet = dnet
        self.renormalise = _Renormalise(dnet.config, normalised)

    def forward(
        self,
        prepared: torch.Tensor,
        guidance: torch.Tensor,
        guided: torch.Tensor,
        region: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        features = self.dnet.encode(self.renormalise(prepared))
        # Without guidance the features are unchanged.
        mixed = self.dnet.guided(features.saliency, features.instance, guidance)
        saliency = torch.where(guided, mixed[0], features.saliency)
        instance = torch.where(guided, mixed[1], features.instance)
        maps = self.dnet(features._replace(saliency=saliency, instance=instance), None)
        outputs = torch.sigmoid(maps.saliency.float()), *self._grouped(maps, region)
        return outputs if features.deep is None else (*outputs, features.deep)

    def _grouped(self, maps: DNetMaps, region: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`DNet.proposals` as a label map: labels, areas and mean probabilities of the objects."""
        config, limit = self.dnet.config, self.dnet.config.centre_limit
        logits, heatmap, offset = (upsample(x.float(), MAP_STRIDE) for x in maps)
        probability = torch.sigmoid(logits[0, 0])
        top, left, height, width = region.unbind()
        y = torch.arange(probability.shape[0], device=region.device)[:, None]
        x = torch.arange(probability.shape[1], device=region.device)
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        labels = group_centres(
            heatmap[:, 0],
            MAP_STRIDE * offset,
            (inside & (probability > config.saliency_threshold))[None],
            threshold=config.centre_threshold,
            window=config.centre_window,
            limit=limit,
        )[0][0]
        groups = labels.flatten().long()
        none = torch.zeros(1 + limit, dtype=torch.float64)
        values = probability.flatten().double()
        areas = none.scatter_add(0, groups, torch.ones_like(values))[1:]
        total = none.scatter_add(0, groups, values)[1:]
        return labels, areas.long(), (total / areas.clamp(min=1)).float()


class Guide(nn.Module):
    """frame, saliency -> guidance. `frame` is the prepared frame, or if the guide shares the
    backbone, the features `deep` of `Discover`."""

    def __init__(self, dnet: DNet, coarser: int, normalised: Normalised | None = None) -> None:
        super().__init__()
        self.dnet = dnet
        self.coarser = coarser
        self.renormalise = _Renormalise(dnet.config, normalised)

    def forward(self, frame: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
        """`DNet.guide`, with a fixed ratio `coarser` of the frame's size to the saliency's."""
        dnet, mask = self.dnet, saliency.to(frame.dtype)
        if self.coarser > 1:
            mask = upsample(mask, self.coarser)
        shared = dnet.guide_backbone is None
        seen = dnet.marked(frame, mask) if shared else dnet.see(self.renormalise(frame), mask)
        guidance: torch.Tensor = dnet.guide_aspp(seen)
        return guidance
