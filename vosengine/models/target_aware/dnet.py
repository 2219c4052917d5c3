"""D-Net of target-aware U-VOS: the objects of a frame, guided by the frame before.

Section 3.1 of the paper; the heads are Panoptic-DeepLab's, as its authors released them.
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
from ..blocks import conv3, upsample
from ..encoder import Encoder, make_encoder

Padding = tuple[int, int, int, int]

MAP_STRIDE = 4  # of the maps; the task features lie at stride 16


class DNetFeatures(NamedTuple):
    """What D-Net knows of a frame before it is told what the frame before showed.

    The skips have as many channels as the heads project res3 and res2 to; dense heads take both
    raw, and then the two heads share them. `deep` is what guides the next frame, where the guide
    shares the backbone; else None.
    """

    saliency: torch.Tensor  # [B, C, H / 16, W / 16], the paper's X^SAL
    instance: torch.Tensor  # [B, C, H / 16, W / 16], X^INS
    saliency_skip3: torch.Tensor  # [B, ., H / 8, W / 8]
    saliency_skip2: torch.Tensor  # [B, ., H / 4, W / 4]
    instance_skip3: torch.Tensor
    instance_skip2: torch.Tensor
    deep: torch.Tensor | None = None  # [B, ., H / 16, W / 16], res5


class DNetMaps(NamedTuple):
    """What D-Net says of a frame, at a quarter of its size."""

    saliency: torch.Tensor  # [B, 1, H / 4, W / 4] logits of the foreground
    heatmap: torch.Tensor  # [B, 1, H / 4, W / 4] likelihood of a centre, linear: any number
    offset: torch.Tensor  # [B, 2, H / 4, W / 4] (y, x) from a cell to its centre, in cells


def conv_norm(
    channels_in: int,
    channels: int,
    size: int,
    dilation: int = 1,
    groups: int = 1,
    norm: str = "batch",
) -> nn.Sequential:
    """A convolution that keeps the size, without bias; norm; ReLU."""
    reach = dilation * (size // 2)
    conv = nn.Conv2d(
        channels_in, channels, size, 1, reach, dilation=dilation, groups=groups, bias=False
    )
    return nn.Sequential(conv, make_norm(norm, channels), nn.ReLU())


def conv5(channels_in: int, channels: int, separable: bool, norm: str = "batch") -> nn.Sequential:
    """5x5 with norm and ReLU; separable: one filter a channel, then 1x1, each with its own."""
    if not separable:
        return conv_norm(channels_in, channels, 5, norm=norm)
    depthwise = conv_norm(channels_in, channels_in, 5, groups=channels_in, norm=norm)
    return nn.Sequential(depthwise, conv_norm(channels_in, channels, 1, norm=norm))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, a 3x3 per rate and the global mean, joined by 1x1."""

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
    """The segmentation guidance module: a feature and the guidance mixed, channel by channel.

    alpha, beta = softmax(reshape(W2 relu(W1 c)))   (equation 5; c is what was squeezed)
    X^          = alpha X + beta X^SGM              (equations 6 and 7)
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, 2 * channels // reduction)
        self.reduce = nn.Linear(2 * channels, hidden, bias=False)
        self.expand = nn.Linear(hidden, 2 * channels, bias=False)

    def gains(self, squeezed: torch.Tensor) -> torch.Tensor:
        """Channel means of two features [B, 2C] -> alpha and beta [2, B, C, 1, 1], their sum 1."""
        z = self.expand(functional.relu(self.reduce(squeezed)))
        return z.unflatten(1, (2, -1)).softmax(dim=1).transpose(0, 1)[..., None, None]

    def forward(
        self, x: torch.Tensor, guidance: torch.Tensor, squeezed: torch.Tensor
    ) -> torch.Tensor:
        alpha, beta = self.gains(squeezed)
        return alpha * x + beta * guidance


def squeeze(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Channel means of two features [B, C, h, w], side by side: [B, 2C] (equations 3 and 4)."""
    return torch.cat((first.mean(dim=(2, 3)), second.mean(dim=(2, 3))), dim=1)


class Head(nn.Module):
    """From stride 16 to 4: twice the size, join res3, 5x5; twice, join res2, 5x5, 5x5, 1x1.

    pyramid  channels of res2 and res3
    skips    channels that res3 and res2 are projected to, in this order; None joins them raw, and
             then the 5x5 convolutions are dense (the paper, literally)
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
        x = self.fuse3(torch.cat((upsample(x, 2), skip3), dim=1))
        x = self.fuse2(torch.cat((upsample(x, 2), skip2), dim=1))
        return self.predict(self.refine(x))


class DNet(nn.Module):
    """Discovers objects bottom-up: foreground, centres of objects, and from pixels to centres."""

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
        if config.heads == "dense":  # as wide as the features that they are given
            self.saliency_head = Head(channels, pyramid, None, channels, 1, norm)
            self.instance_head = Head(channels, pyramid, None, channels, 3, norm)
        else:
            width, skips = config.saliency_channels, config.saliency_skips
            self.saliency_head = Head(channels, pyramid, skips, width, 1, norm)
            width, skips = config.instance_channels, config.instance_skips
            self.instance_head = Head(channels, pyramid, skips, width, 3, norm)

    def encode(self, frames: torch.Tensor) -> DNetFeatures:
        """Prepared frames [B, 3, H, W], H and W multiples of 16 -> features, once a frame."""
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
        """The guidance X^SGM for the next frame [B, C, H / 16, W / 16].

        frame     [B, 3, H, W] prepared
        saliency  [B, 1, h, w] probability of its foreground, at any size
        deep      what `encode` has of the frame under that name, where the guide shares the
                  backbone; None: the backbone sees the frame once more
        """
        mask = functional.interpolate(
            saliency.to(frame.dtype), frame.shape[2:], mode="bilinear", align_corners=False
        )
        return self.guide_aspp(self.see(frame, mask, deep))

    def see(
        self, frame: torch.Tensor, mask: torch.Tensor, deep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, C, H / 16, W / 16]: what the guidance is made of, of a frame [B, 3, H, W] with a mask
        [B, 1, H, W]; deep as in `guide`."""
        if self.guide_backbone is not None:
            found: torch.Tensor = self.guide_backbone(frame, mask).r5
            return found
        seen = self.backbone(frame).r5 if deep is None else deep
        shown = functional.avg_pool2d(mask, frame.shape[2] // seen.shape[2])
        return seen + self.guide_mask(shown.to(seen.dtype))

    def forward(self, features: DNetFeatures, guidance: torch.Tensor | None) -> DNetMaps:
        """Maps of a frame. guidance: what `guide` made of the frame before; None in the first one,
        whose features then pass as they are (the paper does not say)."""
        saliency, instance = features.saliency, features.instance
        if guidance is not None:
            saliency, instance = self._guided(saliency, instance, guidance)
        saliency = self.saliency_head(saliency, features.saliency_skip3, features.saliency_skip2)
        instance = self.instance_head(instance, features.instance_skip3, features.instance_skip2)
        return DNetMaps(saliency, instance[:, :1], instance[:, 1:])

    def _guided(
        self, saliency: torch.Tensor, instance: torch.Tensor, guidance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.config.squeeze == "literal":  # equations 3 and 4 as printed
            for_saliency = for_instance = squeeze(saliency, instance)
        else:  # what equations 1 and 2 hand to each module
            for_saliency, for_instance = squeeze(saliency, guidance), squeeze(instance, guidance)
        return (
            self.saliency_guidance(saliency, guidance, for_saliency),
            self.instance_guidance(instance, guidance, for_instance),
        )

    def proposals(self, maps: DNetMaps, padding: Padding = (0, 0, 0, 0)) -> Proposals:
        """The objects in maps [1, ...], of the network's full size, by falling heat of the centre.

        Every foreground pixel belongs to at most one, so the masks do not overlap; the score is
        the mean probability of the foreground under the mask. Waits for the device.

        padding  (left, right, top, bottom) pixels around the frame, where nothing is foreground

        Raises  InputError for maps of more or fewer frames than one.
        """
        if len(maps.saliency) != 1:
            raise InputError(
                f"proposals: wanted the maps of one frame, given {len(maps.saliency)}; "
                "pass them one by one"
            )
        config = self.config
        logits, heatmap, offset = (upsample(each.float(), MAP_STRIDE) for each in maps)
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
