"""GIEL: all objects in one pass, by one affinity, a global branch and a branch per instance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ...config import GIELConfig, MemoryConfig
from ...kernels import read_memory
from ...memory import PagePools
from ...proposals import Proposals
from ...types import Geometry, Masks, Scores
from ..backbone import initialise, make_norm
from ..blocks import (
    Decoder,
    KeyValue,
    carried,
    make_key,
    to_positions,
    upsample,
    wide,
    with_masks,
)
from ..encoder import make_encoder
from ..mask_encoder import MaskEncoder
from ..method import Method
from .support import Encoded, Reading, Support

NEVER = -1e30  # a score that no softmax sees
MOST_OBJECTS = 255  # of a stream; a `group` of as many is all of them


class GIELFeatures(NamedTuple):
    """What GIEL knows of a frame before it looks for objects."""

    frame: torch.Tensor  # [B, 3, H, W] prepared; the support encoder sees it again with a mask
    key: torch.Tensor  # [B, Ck, h, w], k^Q of equation 3
    value: torch.Tensor  # [B, Cv, h, w], v^Q
    global_skips: tuple[torch.Tensor, torch.Tensor]  # of the decoders, at strides 8 and 4
    instance_skips: tuple[torch.Tensor, ...]  # empty where there is no decoder per instance


class GIELAux(NamedTuple):
    """What `segment` noted of a frame.

    saliency  logits [1, H / 4, W / 4] of all objects together, equation 6
    read      [1 + O, h, w] the support's masks as they were read, of all objects and of each; None
              where they are not
    """

    saliency: torch.Tensor
    read: torch.Tensor | None


class LabelEncoder(nn.Module):
    """f_theta of equation 7: an object's label image to an embedding of every cell.

    Strides 4 and 4 [O], or 2 where keys have stride 8: that the result has the cells' grid is all
    that the paper says.
    """

    def __init__(self, config: GIELConfig) -> None:
        super().__init__()
        channels, channels_out = config.label_channels, config.value_channels
        self.conv1 = nn.Conv2d(3, channels, 7, 4, 3, bias=False)
        self.bn1 = make_norm(config.norm, channels)
        self.conv2 = nn.Conv2d(channels, channels_out, 5, config.key_stride // 4, 2, bias=False)
        self.bn2 = make_norm(config.norm, channels_out)
        self.output = config.label_output

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """[O, 3, H, W] object, all others, background -> [O, Cv, h, w] at the keys' stride."""
        x = functional.relu(self.bn1(self.conv1(labels)))
        x = self.bn2(self.conv2(x))
        return torch.sigmoid(x) if self.output == "sigmoid" else x


class TemporalAttention(nn.Module):
    """How much every support frame counts, by what its key, the first one's and the query's have in
    them (figure 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.summarise = nn.Conv2d(channels, channels, 1)
        self.mix1 = nn.Linear(3 * channels, channels)
        self.mix2 = nn.Linear(channels, max(1, channels // 2))
        self.weigh = nn.Linear(max(1, channels // 2), 1)

    def summary(self, key: torch.Tensor) -> torch.Tensor:
        """A key [B, Ck, h, w] in one vector [B, Ck]: 1x1 convolution, global mean."""
        return functional.relu(self.summarise(key)).mean(dim=(2, 3))

    def forward(
        self,
        summaries: torch.Tensor,
        first: int,
        query: torch.Tensor,
        valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Summaries [T, Ck] of the support, [1, Ck] of the query -> ln w [T], float32 at least.

        valid  bool [T]: the others have no weight
        """
        count = len(summaries)
        parts = summaries[first].expand(count, -1), summaries, query.expand(count, -1)
        x = functional.relu(self.mix1(torch.cat(parts, dim=1)))
        x = wide(self.weigh(functional.relu(self.mix2(x)))[:, 0])
        if valid is not None:
            x = torch.where(valid, x, NEVER)
        return x.log_softmax(dim=0)


class GIEL(Method[GIELFeatures, Support]):
    """Two ResNets: one sees the frame, the other also the mask of all objects together."""

    keeps_frames = True
    features = GIELFeatures

    def __init__(self, config: GIELConfig) -> None:
        super().__init__()
        self.config: GIELConfig = config
        self.size = config.size
        channels = config.key_channels, config.value_channels
        backbone = config.backbone, config.width
        options: Any = {"norm": config.norm, "key_stride": config.key_stride}
        self.query_encoder = make_encoder(*backbone, **options)
        if config.memory_encoder == "shared":
            self.observes = "key", "value"
            self.mask_encoder = MaskEncoder(channels[1], 1, channels[1], config.key_stride)
        else:
            self.support_encoder = make_encoder(*backbone, mask_channels=1, **options)
        pyramid = self.query_encoder.channels
        self.query_head = KeyValue(pyramid[2], *channels, size=1)
        separate = config.heads == "separate" and config.memory_encoder == "full"
        self.support_head = KeyValue(pyramid[2], *channels, size=1) if separate else None
        self.label_encoder = LabelEncoder(config)
        self.attention = TemporalAttention(config.key_channels)
        joined = 2 * config.value_channels + config.read_masks
        decoder = joined, pyramid, config.decoder_channels, 1, config.fine_channels
        self.global_decoder = Decoder(*decoder)
        self.instance_decoder: Decoder | None = None
        self.coarse: nn.Sequential | None = None  # f_coarse of equation 10
        if config.variant == "fast":
            hidden = config.coarse_channels
            self.coarse = nn.Sequential(
                nn.Conv2d(joined, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1)
            )
        elif config.decoders == "separate":
            self.instance_decoder = Decoder(*decoder)
        initialise(self)

    def adopted(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """STM's decoder is given the readout first, then the query's value; this one's the other
        way round, with the mask that was read, if it was, still at the end of the readout."""
        if name != "decoder.conv.weight":
            return tensor
        readout = tensor.shape[1] - self.config.value_channels
        return torch.cat((tensor[:, readout:], tensor[:, :readout]), dim=1)

    def start(
        self,
        geometry: Geometry,
        max_objects: int,
        memory: MemoryConfig | None = None,
        pools: PagePools | None = None,
    ) -> Support:
        return Support(
            self.config,
            geometry.cells(self.config.key_stride),
            geometry.network,
            max_objects,
            self.query_head.key.weight,
            self._instance_values,
        )

    def encode(
        self, frames: torch.Tensor, proposals: Sequence[Proposals] | None = None
    ) -> GIELFeatures:
        pyramid = self.query_encoder(frames)
        key, value = self.query_head(pyramid.r4)
        key = make_key(key, self.config.similarity)
        own = () if self.instance_decoder is None else self.instance_decoder.skips(pyramid)
        return GIELFeatures(frames, key, value, self.global_decoder.skips(pyramid), own)

    def segment(self, seen: Sequence[GIELFeatures], state: Support) -> Scores:
        (now,) = seen
        joined = self._read(now, state.read())
        saliency = self.global_decoder(joined[:1], *now.global_skips)  # equation 6
        instances = self._instances(now, joined[1:])
        read = joined[:, -1] if self.config.read_masks else None
        if read is not None:
            saliency, instances = carried(saliency, read[:1]), carried(instances, read[1:])
        if self.config.product or self.config.variant == "fast":
            instances = product(instances, saliency)
        return Scores(instances, stride=4, aux=GIELAux(saliency, read))

    def _read(self, now: GIELFeatures, reading: Reading) -> torch.Tensor:
        """Emb of all objects together and of each, [1 + O, 2 Cv, h, w] (equations 5 and 9), with
        the masks that were read as a last channel where they are.

        One affinity for all of them (equation 4): it is computed once, whatever their number.
        """
        keys, values, bias = reading.keys, reading.values, None
        positions, scale = keys.shape[1], self.config.sharpness
        if self.config.scaled and self.config.similarity != "cosine":
            scale *= keys.shape[2] ** -0.5
        if self.config.temporal != "none":
            query = self.attention.summary(now.key)
            weight = self.attention(reading.summaries, reading.first, query, reading.valid)
            if self.config.temporal == "bias":
                bias = to_all(weight, positions)
            elif self.config.temporal == "premul":
                keys = keys * weight.exp().to(keys.dtype)[:, None, None]
            else:
                values = values * weight.exp().to(values.dtype)[:, None, None]
        if self.config.similarity == "l2":  # 2 q k - k k; q q is the same for all positions
            closeness = -scale * wide(keys).square().sum(dim=2).flatten()[None]
            bias = closeness if bias is None else bias + closeness
            scale = 2 * scale
        if reading.valid is not None:
            never = to_all(torch.where(reading.valid, 0.0, NEVER), positions)
            bias = never if bias is None else bias + never
        readout = read_memory(
            to_positions(now.key)[0].contiguous(),
            keys.flatten(0, 1)[None],
            values.flatten(1, 2)[None],
            scale=scale,
            bias=bias,
            top_k=self.config.top_k,
        )[0]
        maps = readout.transpose(1, 2).unflatten(2, now.key.shape[2:])
        return torch.cat((now.value.expand(maps.shape[0], -1, -1, -1), maps), dim=1)

    def _instances(self, now: GIELFeatures, joined: torch.Tensor) -> torch.Tensor:
        """Logits [O, H / 4, W / 4] of every instance: equation 10, or 12's decoder."""
        if self.coarse is not None:
            return upsample(self.coarse(joined), 4)[:, 0]
        decoder = self.instance_decoder or self.global_decoder
        skips = now.instance_skips or now.global_skips
        if self.config.group >= MOST_OBJECTS:
            return decoder(joined, *skips)
        return torch.cat([decoder(part, *skips) for part in torch.split(joined, self.config.group)])

    def observe(self, seen: Sequence[GIELFeatures], masks: Masks, state: Support) -> Encoded | None:
        (now,) = seen
        if masks.object_count == 0:  # nothing to remember; the next mask begins anew
            return None
        labels = masks.probabilities.max(dim=0).indices  # argmax takes 25 times as long
        mask = labels > 0
        if self.config.support_mask == "global" and not masks.prompted:
            mask = above_half(masks.aux.saliency)
        return self.stored(now, labels, mask)

    def stored(self, now: GIELFeatures, labels: torch.Tensor, mask: torch.Tensor) -> Encoded:
        """What is kept of a frame with these labels [H, W], when the support encoder sees `mask`,
        bool [H, W]."""
        plane = mask[None, None].to(now.frame.dtype)
        if self.config.memory_encoder == "shared":
            key, value = now.key, self.mask_encoder(now.value, now.frame, plane)
        else:
            r4 = self.support_encoder(now.frame, plane).r4
            key, value = (self.support_head or self.query_head)(r4)
            key = make_key(key, self.config.similarity)
        if self.config.read_masks:
            value = with_masks(value, plane.to(value.dtype))
        return Encoded(
            to_positions(key)[0],
            to_positions(value)[0],
            labels.to(torch.uint8),
            self.attention.summary(key)[0],
        )

    def commit(self, observed: Encoded | None, masks: Masks, state: Support) -> None:
        if observed is not None:
            state.write(observed, masks.object_count, bool(masks.prompted))

    def _instance_values(
        self, value: torch.Tensor, labels: torch.Tensor, slots: range
    ) -> torch.Tensor:
        """V_instance of one frame: its value times the embedding of each object's labels.

        value [P, Cv], labels [H, W] uint8 -> [O, P, Cv] (equations 7 and 8); at most `group`
        objects at a time. Where masks are read, both have one more channel.
        """
        size = self.config.group
        parts = [slots[i : i + size] for i in range(0, len(slots), size)]
        return torch.cat([self.embedded(value, label_planes(labels, each)) for each in parts])

    def embedded(self, value: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
        """value [P, Cv] and the label planes [O, 3, H, W] of a group -> [O, P, Cv]; both with one
        more channel where masks are read."""
        planes = planes.to(value.dtype)
        embedding = self.label_encoder(planes)
        values = value[:, : self.config.value_channels] * to_positions(embedding)
        if not self.config.read_masks:
            return values
        covered = functional.adaptive_avg_pool2d(
            planes[:, :1], (embedding.shape[2], embedding.shape[3])
        )
        return torch.cat((values, to_positions(covered)), dim=2)


def label_planes(labels: torch.Tensor, slots: range) -> torch.Tensor:
    """Per object three planes: itself, all others, the background. bool [O, 3, H, W] of uint8
    [H, W], where 0 is the background and 1 + slot an object (section 3.2)."""
    return planes_of(labels, torch.arange(slots.start, slots.stop, device=labels.device))


def planes_of(labels: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """`label_planes` of slots [O] in a tensor."""
    own = labels == 1 + slots[:, None, None]
    background = (labels == 0).expand(own.shape[0], -1, -1)
    return torch.stack((own, ~(own | background), background), dim=1)


def above_half(saliency: torch.Tensor) -> torch.Tensor:
    """Where the global map, logits [1, H / 4, W / 4], is above one half: bool [H, W]."""
    return upsample(saliency[:, None], 4)[0, 0] > 0


def to_all(weights: torch.Tensor, positions: int) -> torch.Tensor:
    """[T], one number a frame -> [1, T * P], the same at each of its positions."""
    return weights[:, None].expand(-1, positions).flatten()[None]


def product(instances: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
    """The logit of sigmoid(F_instance) * sigmoid(F_global), all [., h, w] (equation 11).

    At a quarter of the frame, where both are: the result is enlarged, as STM enlarges logits [O].
    """
    a, b = -wide(instances), -wide(saliency)
    return -torch.logaddexp(torch.logaddexp(a, b), a + b)
