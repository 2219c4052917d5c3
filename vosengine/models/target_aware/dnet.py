"""D-Net of target-aware U-VOS (section 3.1): object discovery, guided by the previous frame.

The heads are Panoptic-DeepLab's, as in its released code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ...config import TargetAwareConfig
from ...errors import InputError
from ...kernels import group_centres
from ...proposals import Proposals, boxes_of
from ..backbone import make_norm
from ..blocks import conv3, resize, upsample
from ..encoder import Encoder, make_encoder

Padding = tuple[int, int, int, int]

MAP_STRIDE = 4  # stride of the output maps; the task features have stride 16


class DNetFeatures(NamedTuple):
    """Per-frame features of D-Net, independent of the previous frame.

    The skips have the channels that the heads project res3 and res2 to; dense heads take both
    unprojected and share them.
    """

    saliency: torch.Tensor  # [B, C, H / 16, W / 16], the paper's X^SAL
    instance: torch.Tensor  # [B, C, H / 16, W / 16], X^INS
    saliency_skip3: torch.Tensor  # [B, ., H / 8, W / 8]
    saliency_skip2: torch.Tensor  # [B, ., H / 4, W / 4]
    instance_skip3: torch.Tensor
    instance_skip2: torch.Tensor
    # [B, ., H / 16, W / 16] res5, input of the guide if it shares the backbone, else None
    deep: torch.Tensor | None = None


class DNetMaps(NamedTuple):
    """Output maps of D-Net at stride 4."""

    saliency: torch.Tensor  # [B, 1, H / 4, W / 4] foreground logits
    heatmap: torch.Tensor  # [B, 1, H / 4, W / 4] centre score, unbounded (no activation)
    offset: torch.Tensor  # [B, 2, H / 4, W / 4] (y, x) from a cell to its object's centre, in cells


def conv_norm(
    channels_in: int,
    channels: int,
    size: int,
    dilation: int = 1,
    groups: int = 1,
    norm: str = "batch",
) -> nn.Sequential:
    """Convolution with "same" padding, without bias; norm; ReLU."""
    reach = dilation * (size // 2)
    conv = nn.Conv2d(
        channels_in, channels, size, 1, reach, dilation=dilation, groups=groups, bias=False
    )
    return nn.Sequential(conv, make_norm(norm, channels), nn.ReLU())


def conv5(channels_in: int, channels: int, separable: bool, norm: str = "batch") -> nn.Sequential:
    """5x5 convolution, norm, ReLU; separable: depthwise 5x5, then 1x1, each with norm and ReLU."""
    if not separable:
        return conv_norm(channels_in, channels, 5, norm=norm)
    depthwise = conv_norm(channels_in, channels_in, 5, groups=channels_in, norm=norm)
    return nn.Sequential(depthwise, conv_norm(channels_in, channels, 1, norm=norm))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, one 3x3 per rate and the global mean, fused by 1x1."""

    def __init__(
        self, channels_in: int, channels: int, rates: tuple[int, ...], norm: str = "batch"
    ) -> None:
        super().__init__()
        self.point = conv_norm(channels_in, channels, 1, norm=norm)
        self.atrous = nn.ModuleList(
            conv_norm(channels_in, channels, 3, rate, norm=norm) for rate in rates
        )
        self.pool = conv_norm(channels_in, channels, 1, norm=norm)
        self.join = conv_norm((len(rates) + 2) * channels, channels, 1, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.pool(x.mean(dim=(2, 3), keepdim=True))
        branches = [self.point(x), *(conv(x) for conv in self.atrous)]
        return self.join(torch.cat((*branches, mean.expand_as(branches[0])), dim=1))


class Guidance(nn.Module):
    """Segmentation guidance module: per-channel weighted sum of a feature and the guidance.

    alpha, beta = softmax(reshape(W2 relu(W1 c)))   (equation 5; c from `squeeze`)
    X^          = alpha X + beta X^SGM              (equations 6 and 7)
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, 2 * channels // reduction)
        self.reduce = nn.Linear(2 * channels, hidden, bias=False)
        self.expand = nn.Linear(hidden, 2 * channels, bias=False)

    def gains(self, squeezed: torch.Tensor) -> torch.Tensor:
        """alpha and beta [2, B, C, 1, 1], summing to 1, from squeezed features [B, 2C]."""
        z = self.expand(functional.relu(self.reduce(squeezed)))
        return z.unflatten(1, (2, -1)).softmax(dim=1).transpose(0, 1)[..., None, None]

    def forward(
        self, x: torch.Tensor, guidance: torch.Tensor, squeezed: torch.Tensor
    ) -> torch.Tensor:
        """x, guidance [B, C, h, w], squeezed [B, 2C] -> [B, C, h, w]"""
        alpha, beta = self.gains(squeezed)
        return alpha * x + beta * guidance


def squeeze(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Concatenated channel means [B, 2C] of two features [B, C, h, w] (equations 3 and 4)."""
    return torch.cat((first.mean(dim=(2, 3)), second.mean(dim=(2, 3))), dim=1)


class Head(nn.Module):
    """Head from stride 16 to 4: upsample, join res3, 5x5; upsample, join res2, 5x5, 5x5, 1x1.

    pyramid  channels of res2 and res3
    skips    channels that res3 and res2, in this order, are projected to; None: joined
             unprojected, with dense 5x5 convolutions (the paper's text taken literally)
    """

    def __init__(
        self,
        channels_in: int,
        pyramid: tuple[int, ...],
        skips: tuple[int, int] | None,
        width: int,
        channels_out: int,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.skip3: nn.Module = nn.Identity()
        self.skip2: nn.Module = nn.Identity()
        joined3, joined2 = pyramid[1], pyramid[0]
        if skips is not None:
            joined3, joined2 = skips
            self.skip3 = conv_norm(pyramid[1], joined3, 1, norm=norm)
            self.skip2 = conv_norm(pyramid[0], joined2, 1, norm=norm)
        separable = skips is not None
        self.fuse3 = conv5(channels_in + joined3, width, separable, norm)
        self.fuse2 = conv5(width + joined2, width, separable, norm)
        self.refine = conv5(width, width, separable, norm)
        self.predict = nn.Conv2d(width, channels_out, 1)

    def forward(self, x: torch.Tensor, skip3: torch.Tensor, skip2: torch.Tensor) -> torch.Tensor:
        """x [B, C, h, w], skip3 [B, ., 2h, 2w], skip2 [B, ., 4h, 4w] -> [B, ., 4h, 4w] maps"""
        x = self.fuse3(torch.cat((upsample(x, 2), skip3), dim=1))
        x = self.fuse2(torch.cat((upsample(x, 2), skip2), dim=1))
        return self.predict(self.refine(x))


class DNet(nn.Module):
    """D-Net: bottom-up object discovery by foreground, object centres and offsets to centres."""

    def __init__(self, config: TargetAwareConfig) -> None:
        super().__init__()
        self.config = config
        channels, norm = config.aspp_channels, config.norm
        resnet = config.backbone, config.width
        self.backbone = make_encoder(*resnet, layer4="dilated", norm=norm)
        pyramid = self.backbone.channels
        self.guide_backbone: Encoder | None = None
        if config.guide == "own":
            self.guide_backbone = make_encoder(*resnet, 1, layer4="dilated", norm=norm)
        else:
            self.guide_mask = conv3(1, pyramid[3], bias=False)
        aspp = pyramid[3], channels, config.aspp_rates, norm
        self.saliency_aspp, self.instance_aspp, self.guide_aspp = (ASPP(*aspp) for _ in range(3))
        self.saliency_guidance = Guidance(channels, config.squeeze_reduction)
        self.instance_guidance = Guidance(channels, config.squeeze_reduction)
        if config.heads == "dense":  # as wide as their input features
            self.saliency_head = Head(channels, pyramid, None, channels, 1, norm)
            self.instance_head = Head(channels, pyramid, None, channels, 3, norm)
        else:
            width, skips = config.saliency_channels, config.saliency_skips
            self.saliency_head = Head(channels, pyramid, skips, width, 1, norm)
            width, skips = config.instance_channels, config.instance_skips
            self.instance_head = Head(channels, pyramid, skips, width, 3, norm)

    def encode(self, frames: torch.Tensor) -> DNetFeatures:
        """Features of prepared frames [B, 3, H, W], H and W multiples of 16."""
        pyramid = self.backbone(frames)
        return DNetFeatures(
            self.saliency_aspp(pyramid.r5),
            self.instance_aspp(pyramid.r5),
            self.saliency_head.skip3(pyramid.r3),
            self.saliency_head.skip2(pyramid.r2),
            self.instance_head.skip3(pyramid.r3),
            self.instance_head.skip2(pyramid.r2),
            pyramid.r5 if self.guide_backbone is None else None,
        )

    def guide(
        self, frame: torch.Tensor, saliency: torch.Tensor, deep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Guidance X^SGM [B, C, H / 16, W / 16] for the next frame.

        frame     [B, 3, H, W] prepared
        saliency  [B, 1, h, w] foreground probability of the frame, at any size
        deep      the frame's DNetFeatures.deep; None: recomputed if the guide shares the backbone
        """
        mask = resize(saliency.to(frame.dtype), frame.shape[2:])
        return self.guide_aspp(self.see(frame, mask, deep))

    def see(
        self, frame: torch.Tensor, mask: torch.Tensor, deep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features [B, C, H / 16, W / 16] of a frame [B, 3, H, W] with a mask [B, 1, H, W], input
        of the guidance's ASPP; deep as in `guide`."""
        if self.guide_backbone is not None:
            r5: torch.Tensor = self.guide_backbone(frame, mask).r5
            return r5
        return self.marked(self.backbone(frame).r5 if deep is None else deep, mask)

    def marked(self, deep: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`see` of a guide that shares the backbone: deep [B, C, H / 16, W / 16], mask
        [B, 1, H, W]."""
        pooled = functional.avg_pool2d(mask, mask.shape[2] // deep.shape[2])
        return deep + self.guide_mask(pooled.to(deep.dtype))

    def forward(self, features: DNetFeatures, guidance: torch.Tensor | None) -> DNetMaps:
        """Output maps of a frame.

        guidance  result of `guide` for the previous frame; None for the first frame, whose features
                  are then used unchanged (ours; the paper does not say)
        """
        saliency, instance = features.saliency, features.instance
        if guidance is not None:
            saliency, instance = self.guided(saliency, instance, guidance)
        saliency = self.saliency_head(saliency, features.saliency_skip3, features.saliency_skip2)
        instance = self.instance_head(instance, features.instance_skip3, features.instance_skip2)
        return DNetMaps(saliency, instance[:, :1], instance[:, 1:])

    def guided(
        self, saliency: torch.Tensor, instance: torch.Tensor, guidance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Guide saliency and instance features [B, C, H, W] by `guidance`: equations 1 to 4."""
        if self.config.squeeze == "literal":  # equations 3 and 4 as printed
            for_saliency = for_instance = squeeze(saliency, instance)
        else:  # the arguments of each module in equations 1 and 2
            for_saliency, for_instance = squeeze(saliency, guidance), squeeze(instance, guidance)
        return (
            self.saliency_guidance(saliency, guidance, for_saliency),
            self.instance_guidance(instance, guidance, for_instance),
        )

    def proposals(self, maps: DNetMaps, padding: Padding = (0, 0, 0, 0)) -> Proposals:
        """Group maps [1, ...] into objects at the network's size, sorted by falling centre score.

        A foreground pixel belongs to at most one object, so masks do not overlap. An object's score
        is the mean foreground probability in its mask. Synchronises with the device.

        padding  (left, right, top, bottom) pixels around the frame, excluded from the foreground

        Raises  InputError if maps are not of exactly one frame.
        """
        if len(maps.saliency) != 1:
            raise InputError(
                f"proposals: wanted the maps of one frame, given {len(maps.saliency)}; "
                "pass them one by one"
            )
        config = self.config
        logits, heatmap, offset = (upsample(x.float(), MAP_STRIDE) for x in maps)
        probability = torch.sigmoid(logits[0, 0])
        left, right, top, bottom = padding
        height, width = probability.shape
        foreground = torch.zeros_like(probability, dtype=torch.bool)
        inside = slice(top, height - bottom), slice(left, width - right)
        foreground[inside] = probability[inside] > config.saliency_threshold
        labels, _, _ = group_centres(
            heatmap[:, 0],
            MAP_STRIDE * offset,  # from cells to pixels
            foreground[None],
            threshold=config.centre_threshold,
            window=config.centre_window,
            limit=config.centre_limit,
        )
        areas = torch.bincount(labels.flatten(), minlength=2)
        kept = 1 + (areas[1:] >= config.smallest_proposal).nonzero()[:, 0]
        masks = labels == kept[:, None, None]
        scores = (masks * probability).sum(dim=(1, 2)) / areas[kept]
        return Proposals(boxes_of(masks), masks, scores)
