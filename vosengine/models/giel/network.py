"""GIEL: one affinity shared by all objects, a global branch and a branch per instance."""

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

NEVER = -1e30  # score of masked positions: weight 0 after a softmax
MOST_OBJECTS = 255  # maximum per stream; a `group` of this size is all objects


class GIELFeatures(NamedTuple):
    """Per-frame features of GIEL, independent of objects."""

    frame: torch.Tensor  # [B, 3, H, W] prepared; second input of the support encoder
    key: torch.Tensor  # [B, Ck, h, w], k^Q of equation 3
    value: torch.Tensor  # [B, Cv, h, w], v^Q
    global_skips: tuple[torch.Tensor, torch.Tensor]  # of the global decoder, at strides 8 and 4
    instance_skips: tuple[torch.Tensor, ...]  # likewise; empty without an instance decoder


class GIELAux(NamedTuple):
    """Auxiliary outputs of `segment`.

    saliency  logits [1, H / 4, W / 4] of the union of all objects (equation 6)
    read      [1 + O, h, w] in 0..1, masks read from the support: the union, then each object; None
              without `read_masks`
    """

    saliency: torch.Tensor
    read: torch.Tensor | None


class LabelEncoder(nn.Module):
    """Label encoder f_theta of equation 7: an object's label image to an embedding per cell.

    (ours) Two convolutions of stride 4 and 4, or 4 and 2 for keys of stride 8; the paper only says
    that the output has the keys' grid.
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
        """Planes (object, other objects, background) [O, 3, H, W] -> [O, Cv, h, w] at the keys'
        stride."""
        x = functional.relu(self.bn1(self.conv1(labels)))
        x = self.bn2(self.conv2(x))
        return torch.sigmoid(x) if self.output == "sigmoid" else x


class TemporalAttention(nn.Module):
    """Temporal attention (figure 3): a weight per support frame, from summaries of its key, the
    first frame's key and the query's key."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.summarise = nn.Conv2d(channels, channels, 1)
        self.mix1 = nn.Linear(3 * channels, channels)
        self.mix2 = nn.Linear(channels, max(1, channels // 2))
        self.weigh = nn.Linear(max(1, channels // 2), 1)

    def summary(self, key: torch.Tensor) -> torch.Tensor:
        """Summary [B, Ck] of a key [B, Ck, h, w]: 1x1 convolution, ReLU, global mean."""
        return functional.relu(self.summarise(key)).mean(dim=(2, 3))

    def forward(
        self,
        summaries: torch.Tensor,
        query: torch.Tensor,
        valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log weights [T], float32 or wider, from summaries [T, Ck], the first annotated
        frame's first, and the query's [1, Ck].

        valid  [T] bool; False: weight 0; None: all valid
        """
        count = len(summaries)
        parts = summaries[:1].expand(count, -1), summaries, query.expand(count, -1)
        x = functional.relu(self.mix1(torch.cat(parts, dim=1)))
        x = wide(self.weigh(functional.relu(self.mix2(x)))[:, 0])
        if valid is not None:
            x = torch.where(valid, x, NEVER)
        return x.log_softmax(dim=0)


class GIEL(Method[GIELFeatures, Support]):
    """Query encoder on RGB; support encoder on RGB + 1 mask channel (union of all objects)."""

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
        """Reorder the input channels of STM's decoder: STM concatenates (readout, query value),
        GIEL (query value, readout). A mask that was read stays last in the readout."""
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
        skips = () if self.instance_decoder is None else self.instance_decoder.skips(pyramid)
        return GIELFeatures(frames, key, value, self.global_decoder.skips(pyramid), skips)

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
        """Embeddings [1 + O, 2 Cv, h, w] of the union and of each object (equations 5 and 9), with
        the masks read from the support as an extra last channel if `read_masks`.

        The affinity (equation 4) is shared: it is computed once for any number of objects.
        """
        keys, values, bias = reading.keys, reading.values, None
        positions, scale = keys.shape[1], self.config.sharpness
        if self.config.scaled and self.config.similarity != "cosine":
            scale *= keys.shape[2] ** -0.5
        if self.config.temporal != "none":
            query = self.attention.summary(now.key)
            weight = self.attention(reading.summaries, query, reading.valid)
            if self.config.temporal == "bias":
                bias = to_all(weight, positions)
            elif self.config.temporal == "premul":
                keys = keys * weight.exp().to(keys.dtype)[:, None, None]
            else:
                values = values * weight.exp().to(values.dtype)[:, None, None]
        if self.config.similarity == "l2":  # 2 q k - k k; q q is constant over positions
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
        """Logits [O, H / 4, W / 4] per instance: f_coarse (equation 10) or the decoder (equation
        12)."""
        if self.coarse is not None:
            return upsample(self.coarse(joined), 4)[:, 0]
        decoder = self.instance_decoder or self.global_decoder
        skips = now.instance_skips or now.global_skips
        if self.config.group >= MOST_OBJECTS:
            return decoder(joined, *skips)
        return torch.cat([decoder(part, *skips) for part in torch.split(joined, self.config.group)])

    def observe(self, seen: Sequence[GIELFeatures], masks: Masks, state: Support) -> Encoded | None:
        (now,) = seen
        if masks.object_count == 0:  # nothing to store; the next mask starts a new support
            return None
        labels = masks.probabilities.max(dim=0).indices  # argmax takes 25 times as long
        mask = labels > 0
        if self.config.support_mask == "global" and not masks.prompted:
            mask = above_half(masks.aux.saliency)
        return self.stored(now, labels, mask)

    def stored(self, now: GIELFeatures, labels: torch.Tensor, mask: torch.Tensor) -> Encoded:
        """Encode a frame for the store.

        labels  [H, W] integer, 0 is the background, 1 + slot an object
        mask    [H, W] bool, input of the support encoder
        """
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
        """V_instance of one frame (equations 7 and 8): its value times each object's embedding.

        value [P, Cv], labels [H, W] uint8 -> [O, P, Cv], computed for at most `group` objects at a
        time; with `read_masks` value and result have one more channel
        """
        several = torch.arange(slots.start, slots.stop, device=labels.device)
        groups = torch.split(several, self.config.group)
        return torch.cat([self.embedded(value, label_planes(labels, group)) for group in groups])

    def embedded(self, value: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
        """Instance values [O, P, Cv] from value [P, Cv] and label planes [O, 3, H, W]; with
        `read_masks` value and result have one more channel."""
        planes = planes.to(value.dtype)
        embedding = self.label_encoder(planes)
        values = value[:, : self.config.value_channels] * to_positions(embedding)
        if not self.config.read_masks:
            return values
        covered = functional.adaptive_avg_pool2d(
            planes[:, :1], (embedding.shape[2], embedding.shape[3])
        )
        return torch.cat((values, to_positions(covered)), dim=2)


def label_planes(labels: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Three planes per object: itself, other objects, background (section 3.2).

    labels [H, W] uint8, 0 is the background and 1 + slot an object, slots [O] -> [O, 3, H, W] bool
    """
    own = labels == 1 + slots[:, None, None]
    background = (labels == 0).expand(own.shape[0], -1, -1)
    return torch.stack((own, ~(own | background), background), dim=1)


def above_half(saliency: torch.Tensor) -> torch.Tensor:
    """Foreground [H, W] bool: probability above 1/2, from logits [1, H / 4, W / 4]."""
    return upsample(saliency[:, None], 4)[0, 0] > 0


def to_all(weights: torch.Tensor, positions: int) -> torch.Tensor:
    """Repeat per-frame weights [T] over each frame's P positions: [1, T * P]."""
    return weights[:, None].expand(-1, positions).flatten()[None]


def product(instances: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
    """Logit of sigmoid(F_instance) * sigmoid(F_global), all [., h, w] (equation 11).

    (ours) Computed at stride 4, then upsampled as STM upsamples logits.
    """
    a, b = -wide(instances), -wide(saliency)
    return -torch.logaddexp(torch.logaddexp(a, b), a + b)
