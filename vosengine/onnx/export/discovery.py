"""D-Net as graphs: `discover` finds the objects of a frame, `guide` computes the next guidance.

    discover  prepared float32 [1, 3, H, W], H and W multiples of 16
              guidance [1, C, H / 16, W / 16], output of `guide` for the previous frame
              guided   bool [], false for the first frame of a stream: guidance is ignored
              region   int64 [4] (top, left, height, width) of the frame inside the padded input
           -> saliency float32 [1, 1, H / 4, W / 4], probability of the foreground
              labels   uint8 [H, W], 0 for the background, else 1 + index of the object
              areas    int64 [limit], pixels of every object
              scores   float32 [limit], mean foreground probability of every object
    guide     prepared, saliency [1, 1, h, w], 0 to 1, h and w multiples of the cells -> guidance

`discovery_verbs` returns both graphs and `discovery_settings` the "discovery" entry of the
manifest's settings; vosengine.onnx.discovery runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from onnxscript import opset20
from torch import nn

from ... import kernels as ops
from ...config import TargetAwareConfig
from ...models.blocks import upsample
from ...models.target_aware.dnet import MAP_STRIDE, DNet, DNetMaps
from ...models.target_aware.network import TargetAware
from ...runtime.folding import fold_batch_norms
from ...types import Size
from ...zoo.weights import WeightCard, load
from .ops import TRANSLATIONS
from .verb import Verb, VerbInput

STRIDE = 16  # of D-Net's features, and what its input is padded to
LOWEST = -3.4e38  # replaces heat that is not finite


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
    given: Normalised | None = None,
    density: int = STRIDE // MAP_STRIDE,
) -> list[Verb]:
    """The graphs `discover` and `guide`.

    cells    size of D-Net's input at stride 16; an example if the export is dynamic
    source   source of the prepared frame
    given    normalisation of the prepared frame; None: D-Net's own
    density  values per cell side of the saliency that `guide` takes: 4 for the output of
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
    names = "saliency", "labels", "areas", "scores"
    guide = (
        frame,
        VerbInput("saliency", "discover.saliency", shown, {2: f"{density}*h", 3: f"{density}*w"}),
    )
    return [
        Verb("discover", Discover(dnet, given), discover, tuple((name, "") for name in names)),
        Verb("guide", Guide(dnet, STRIDE // density, given), guide, (("guidance", ""),)),
    ]


def _picture(size: Size) -> torch.Tensor:
    """A smooth example image [1, 3, *size] without near-ties."""
    y, x = (torch.linspace(0, 3, n) for n in size)
    return torch.stack([torch.sin(c + y)[:, None] * torch.cos(c * x) for c in range(1, 4)])[None]


class _Renormalise(nn.Module):
    """Convert a frame to D-Net's normalisation; padding stays black."""

    def __init__(self, config: TargetAwareConfig, given: Normalised | None) -> None:
        super().__init__()
        self.gain: torch.Tensor | None = None
        if given is None or (tuple(given.mean), tuple(given.std)) == (config.mean, config.std):
            return
        mean, std, own_mean, own_std = (
            torch.tensor(each)[:, None, None] for each in (*given, config.mean, config.std)
        )
        self.gain, self.shift = std / own_std, (mean - own_mean) / own_std

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        if self.gain is None:
            return frame
        return (frame * self.gain + self.shift).to(frame.dtype)


class Discover(nn.Module):
    """prepared, guidance, guided, region -> saliency, labels, areas, scores."""

    def __init__(self, dnet: DNet, given: Normalised | None = None) -> None:
        super().__init__()
        self.dnet = dnet
        self.renormalise = _Renormalise(dnet.config, given)

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
        return (torch.sigmoid(maps.saliency.float()), *self._grouped(maps, region))

    def _grouped(self, maps: DNetMaps, region: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`DNet.proposals` as a label map."""
        config = self.dnet.config
        logits, heatmap, offset = (upsample(each.float(), MAP_STRIDE) for each in maps)
        probability = torch.sigmoid(logits[0, 0])
        top, left, height, width = region.unbind()
        y = torch.arange(probability.shape[0], device=region.device)[:, None]
        x = torch.arange(probability.shape[1], device=region.device)
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        grouped: tuple[torch.Tensor, ...] = _group_centres(
            heatmap[0, 0],
            MAP_STRIDE * offset[0],
            inside & (probability > config.saliency_threshold),
            probability,
            config.centre_threshold,
            config.centre_window,
            config.centre_limit,
        )
        return grouped


class Guide(nn.Module):
    """prepared, saliency -> guidance."""

    def __init__(self, dnet: DNet, coarser: int, given: Normalised | None = None) -> None:
        super().__init__()
        self.dnet = dnet
        self.coarser = coarser
        self.renormalise = _Renormalise(dnet.config, given)

    def forward(self, prepared: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
        """`DNet.guide`, with a fixed ratio `coarser` of the frame's size to the saliency's."""
        frame, dnet = self.renormalise(prepared), self.dnet
        mask = saliency.to(frame.dtype)
        if self.coarser > 1:
            mask = upsample(mask, self.coarser)
        guidance: torch.Tensor = dnet.guide_aspp(dnet.see(frame, mask))
        return guidance


@torch.library.custom_op("vosengine_onnx::group_centres", mutates_args=())
def _group_centres(
    heat: torch.Tensor,
    offset: torch.Tensor,
    foreground: torch.Tensor,
    probability: torch.Tensor,
    threshold: float,
    window: int,
    limit: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """heat [H, W], offset [2, H, W], foreground [H, W] -> labels [H, W], areas [limit] int64, and
    the mean probability [limit] of each object."""
    labels, _, _ = ops.group_centres.reference(
        heat[None], offset[None], foreground[None], threshold=threshold, window=window, limit=limit
    )
    groups = labels.flatten().long()
    areas = torch.bincount(groups, minlength=1 + limit)[1:]
    total = torch.bincount(groups, probability.flatten().double(), minlength=1 + limit)[1:]
    return labels[0].clone(), areas, (total / areas.clamp(min=1)).float()


@_group_centres.register_fake
def _group_centres_shapes(
    heat: torch.Tensor,
    offset: torch.Tensor,
    foreground: torch.Tensor,
    probability: torch.Tensor,
    threshold: float,
    window: int,
    limit: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scores = heat.new_empty(limit)
    return torch.empty_like(heat, dtype=torch.uint8), scores.to(torch.int64), scores


def _group_centres_node(
    heat: Any,
    offset: Any,
    foreground: Any,
    probability: Any,
    threshold: float,
    window: int,
    limit: int,
) -> tuple[Any, Any, Any]:
    """Distances are computed only between actual centres and foreground pixels."""
    op = opset20
    heat = op.Where(op.Or(op.IsInf(heat), op.IsNaN(heat)), LOWEST, heat)
    hot = op.Greater(op.Cast(heat, to=11), op.Cast(threshold, to=11))
    peak = op.And(hot, _leads_its_window(heat, window // 2))
    count = op.ReduceSum(op.Cast(peak, to=7), keepdims=0)
    # Without centres the first cell is used as one: the foreground is one group.
    count = op.Reshape(op.Min(op.Max(count, 1), limit), [1])
    _, cells = op.TopK(op.Reshape(op.Where(peak, heat, LOWEST), [-1]), count)
    width = op.Shape(heat, start=1, end=2)
    centre_y = op.Unsqueeze(op.Cast(op.Div(cells, width), to=1), [1])  # [K, 1]
    centre_x = op.Unsqueeze(op.Cast(op.Mod(cells, width), to=1), [1])
    pixels = op.Reshape(op.NonZero(op.Reshape(foreground, [-1])), [-1])  # [n]
    y = op.Cast(op.Div(pixels, width), to=1)
    x = op.Cast(op.Mod(pixels, width), to=1)
    offset = op.Gather(op.Reshape(offset, [2, -1]), pixels, axis=1)
    from_y = op.Add(op.Sub(y, centre_y), op.Slice(offset, [0], [1], [0]))  # [K, n]
    from_x = op.Add(op.Sub(x, centre_x), op.Slice(offset, [1], [2], [0]))
    distances = op.Add(op.Mul(from_y, from_y), op.Mul(from_x, from_x))
    joined = op.ArgMin(distances, axis=0, keepdims=0)  # [n]
    nothing = op.Expand(op.Cast(0, to=2), op.Shape(op.Reshape(heat, [-1])))
    labels = op.ScatterElements(nothing, pixels, op.Cast(op.Add(joined, 1), to=2))
    labels = op.Reshape(labels, op.Shape(heat))
    ids = op.Unsqueeze(op.Range(0, op.Squeeze(count), 1), [1])
    member = op.Cast(op.Equal(op.Unsqueeze(joined, [0]), ids), to=1)  # [K, n]
    probability = op.Gather(op.Reshape(probability, [-1]), pixels)
    total = op.ReduceSum(op.Mul(member, probability), [1], keepdims=0)
    areas = op.ReduceSum(member, [1], keepdims=0)
    missing = op.Concat(op.Constant(value_ints=[0]), op.Sub(limit, count), axis=0)
    scores = op.Pad(op.Div(total, op.Max(areas, 1.0)), missing)
    return labels, op.Cast(op.Pad(areas, missing), to=7), scores


def _leads_its_window(heat: Any, radius: int) -> Any:
    """[H, W] bool: maximum of the window of that radius; the first in scan order if tied."""
    op = opset20
    if radius == 0:
        return op.Equal(heat, heat)
    side = 2 * radius + 1
    sides = [0, 0, radius, radius] * 2
    padded = op.Pad(op.Unsqueeze(heat, [0, 1]), sides, LOWEST)
    across = _pool(padded, 1, side)  # [1, 1, H + 2 radius, W]
    around = _pool(across, side, 1)
    above = _pool(op.Slice(across, [0], [-radius - 1], [2]), radius, 1)
    left = _pool(op.Slice(padded, [radius, 0], [-radius, -radius - 1], [2, 3]), 1, radius)
    around, above, left = (op.Squeeze(each, [0, 1]) for each in (around, above, left))
    leads = op.And(op.GreaterOrEqual(heat, around), op.Greater(heat, above))
    return op.And(leads, op.Greater(heat, left))


def _pool(x: Any, height: int, width: int) -> Any:
    greatest, _ = opset20.MaxPool(x, kernel_shape=[height, width])
    return greatest


TRANSLATIONS[torch.ops.vosengine_onnx.group_centres.default] = _group_centres_node
