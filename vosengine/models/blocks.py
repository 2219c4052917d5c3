"""Blocks shared by several models: STM's key and value heads, memory read and decoder."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional

from ..config import MatchingConfig, MemoryConfig
from ..kernels import read_memory
from ..memory import Memory, MemoryBank, PagePools, Stored, make_memory
from ..types import Size
from .backbone import Pyramid
from .convolve import convolve
from .method import State

Observed = tuple[torch.Tensor, torch.Tensor]  # key [O, Ck, h, w] and value [O, Cv, h, w] of a frame
READ_LIMIT = 0.02  # memory masks are clamped to [READ_LIMIT, 1 - READ_LIMIT] before the logit


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32, or wider if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def upsample(x: torch.Tensor, scale: int) -> torch.Tensor:
    """Bilinear upsampling, align_corners=False: [B, C, h, w] -> [B, C, scale * h, scale * w]."""
    return functional.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def resize(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Bilinear resize of [B, C, h, w] to `size`, align_corners=False; x itself if it has it."""
    if x.shape[2:] == size:
        return x
    return functional.interpolate(x, size, mode="bilinear", align_corners=False)


def conv3(channels_in: int, channels_out: int, bias: bool = True) -> nn.Conv2d:
    """3x3 convolution with padding 1."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)


class ResBlock(nn.Module):
    """x + conv3(relu(conv3(relu x))), without norms; conv3 on the shortcut if channels change."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        same = channels_in == channels
        self.downsample = None if same else conv3(channels_in, channels)
        self.conv1 = conv3(channels_in, channels)
        self.conv2 = conv3(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = convolve(functional.relu(x), self.conv1, relu=True)
        return convolve(
            branch, self.conv2, add=x if self.downsample is None else self.downsample(x)
        )


class KeyValue(nn.Module):
    """Key and value heads: one convolution each (size 3 or 1), without activation.

    x [B, channels, h, w] -> key [B, Ck, h, w], value [B, Cv, h, w]
    """

    def __init__(
        self, channels: int, key_channels: int, value_channels: int, size: int = 3
    ) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, key_channels, size, padding=size // 2)
        self.value = nn.Conv2d(channels, value_channels, size, padding=size // 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.key(x), self.value(x)


class Skip(nn.Module):
    """Object-independent branch of a decoder level: conv3, then a ResBlock."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels_in, channels)
        self.block = ResBlock(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.conv(x))


class Decoder(nn.Module):
    """STM's decoder in two parts: `skips` runs once per frame, `forward` once per object.

    channels_in    channels of the readout concatenated with the query's value
    pyramid        channels of r2 and r3
    channels       width at strides 16 and 8 ("mdim" in the released code)
    classes        2: background and foreground (STM); 1: the foreground logit
    fine_channels  width at stride 4; None: `channels`
    """

    def __init__(
        self,
        channels_in: int,
        pyramid: tuple[int, ...],
        channels: int,
        classes: int = 2,
        fine_channels: int | None = None,
    ) -> None:
        super().__init__()
        fine = fine_channels or channels
        self.conv = conv3(channels_in, channels)
        self.block4 = ResBlock(channels, channels)
        self.skip3 = Skip(pyramid[1], channels)
        self.block3 = ResBlock(channels, channels)
        self.narrow = None if fine == channels else nn.Conv2d(channels, fine, 1)
        self.skip2 = Skip(pyramid[0], fine)
        self.block2 = ResBlock(fine, fine)
        self.predict = conv3(fine, classes)

    def skips(self, pyramid: Pyramid) -> tuple[torch.Tensor, torch.Tensor]:
        """Skip branches at strides 8 and 4, shared by all objects: 122.3 of 210.5 GFLOP at 480p."""
        return self.skip3(pyramid.r3), self.skip2(pyramid.r2)

    def forward(self, x: torch.Tensor, skip3: torch.Tensor, skip2: torch.Tensor) -> torch.Tensor:
        """Decode one logit map per object.

        x [O, C, h, w] at stride 16 or 8, skips [1 or O, ...] -> logits [O, H / 4, W / 4]

        With two classes the logit is foreground minus background; its sigmoid equals their softmax.
        """
        x = self.block4(self.conv(x))
        if x.shape[2:] != skip3.shape[2:]:
            x = upsample(x, 2)
        x = self.block3(skip3 + x)
        if self.narrow is not None:
            x = self.narrow(x)
        x = self.block2(skip2 + upsample(x, 2))
        classes = self.predict(functional.relu(x))
        return classes[:, -1] if classes.shape[1] == 1 else classes[:, 1] - classes[:, 0]


def make_key(x: torch.Tensor, similarity: str) -> torch.Tensor:
    """Key [B, Ck, h, w] for a similarity: L2-normalised over Ck for "cosine", else unchanged."""
    return functional.normalize(wide(x), dim=1).to(x.dtype) if similarity == "cosine" else x


def to_positions(x: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] -> [B, h * w, C]: row-major positions, channels last."""
    return x.flatten(2).transpose(1, 2)


def with_masks(value: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Append the masks to the values: value [O, Cv, h, w], masks [O, 1, H, W] in 0..1 ->
    [O, Cv + 1, h, w]. The last channel is the mask averaged over each cell."""
    height, width = value.shape[2:]
    covered = functional.adaptive_avg_pool2d(masks, (height, width))
    return torch.cat((value, covered.to(value.dtype)), dim=1)


def carried(logits: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """Residual prediction: logits + upsample(logit(memory mask)); float32 or wider.

    logits [O, h, w], read [O, h', w'] in 0..1, the masks read from memory -> [O, h, w]
    """
    start = wide(read).clamp(READ_LIMIT, 1 - READ_LIMIT).logit()[:, None]
    size = (logits.shape[1], logits.shape[2])
    return logits + functional.interpolate(start, size, mode="bilinear", align_corners=False)[:, 0]


def of_objects(x: torch.Tensor, streams: torch.Tensor | None) -> torch.Tensor:
    """Expand per-stream features to one row per object: x [B, ...] -> x[streams] [O, ...].

    Without `streams`, x [1, ...] is returned as it is and broadcasts over the objects.
    """
    return x if streams is None else x[streams]


def read_objects(
    key: torch.Tensor,
    value: torch.Tensor,
    stored: Stored,
    object_count: int,
    similarity: str = "dot",
    top_k: int | None = None,
    sharpness: float = 1.0,
    streams: torch.Tensor | None = None,
) -> torch.Tensor:
    """Read each object's memory with its stream's query; concatenate with the query's value.

    key [B, Ck, h, w], value [B, Cv, h, w] -> [O, Cs + Cv, h, w]; Cs is the memory's value channels:
    Cv, or Cv + 1 if it stores masks

    stored      memory of the O objects
    similarity  "dot": q k / sqrt(Ck) (STM section 3.3; the released code's scale). "l2": negative
                squared distance (STCN, NeurIPS 2021, section 3.3) without the term q q, which is
                the same for all positions: (2 q k - k k) / sqrt(Ck). "cosine": q k of keys that
                `make_key` has normalised
    top_k       memory positions read per query position; None: all
    sharpness   factor on the scores
    streams     [O] int64, stream index of each object; None: one stream
    """
    height, width = key.shape[2:]
    query_key = to_positions(key).contiguous()
    if streams is None:
        query_key = query_key[0]
    scale, bias = sharpness, None
    if similarity != "cosine":
        scale *= key.shape[1] ** -0.5
    if similarity == "l2":
        bias = -scale * wide(stored.keys).square().sum(dim=2)
        scale = 2 * scale
    readout = read_memory(
        query_key,
        stored.keys,
        stored.values,
        scale=scale,
        bias=bias,
        length=stored.length,
        top_k=top_k,
        pages=stored.pages,
        query_of=None if streams is None else streams.to(torch.int32),
    )
    readout = readout.transpose(1, 2).unflatten(2, (height, width))
    own = of_objects(value, streams).expand(object_count, -1, -1, -1)
    return torch.cat((readout, own), dim=1)


class JoinedState(NamedTuple):
    """Read-only state of several streams, as passed to `segment` and `observe`.

    stored        their memories, in one page pool, as one with groups in stream order
    object_count  number of groups
    streams       [O] int64, stream index of each object; set by `at`
    """

    stored: Stored
    object_count: int
    streams: torch.Tensor | None = None

    def read(self) -> Stored:
        """The objects' memory, as `read_memory` takes it."""
        return self.stored

    @property
    def tables(self) -> tuple[torch.Tensor, ...]:
        """The memory's lengths and page tables, the tensors that change from step to step."""
        return cast(torch.Tensor, self.stored.length), cast(torch.Tensor, self.stored.pages)

    def padded(self, count: int) -> JoinedState:
        """Pad to `count` objects; the added ones have an empty memory."""
        more = count - self.object_count
        length, pages = (
            functional.pad(table, [0] * (2 * table.ndim - 1) + [more]) for table in self.tables
        )
        return JoinedState(self.stored._replace(length=length, pages=pages), count)

    def at(self, tables: tuple[torch.Tensor, ...], streams: torch.Tensor) -> JoinedState:
        """Replace `tables`, and set the stream index [O] int64 of each object."""
        stored = self.stored._replace(length=tables[0], pages=tables[1])
        return self._replace(stored=stored, streams=streams)


class MatchingState(State):
    """State of a memory-matching method: the memory and the number of frames seen.

    streams  [O] int64, stream index of each object when clips are trained in a batch; else None
    """

    streams: torch.Tensor | None = None

    def __init__(self, memory: Memory, every: int) -> None:
        self.memory = memory
        self.every = every
        self.frame_count = 0

    @classmethod
    def allocate(
        cls,
        config: MatchingConfig,
        memory: MemoryConfig | None,
        cells: Size,
        max_objects: int,
        like: torch.Tensor,
        value_channels: int | None = None,
        pools: PagePools | None = None,
    ) -> MatchingState:
        """Allocate for `max_objects` objects on a grid of `cells` (h, w), device and dtype of
        `like`.

        memory          memory settings; None: config.memory
        value_channels  channels of stored values; None: config.value_channels
        pools           page pools to allocate from; None: a pool of its own
        """
        settings = memory or config.memory
        bank = make_memory(
            settings,
            groups=max_objects,
            positions=cells[0] * cells[1],
            key_channels=config.key_channels,
            value_channels=value_channels or config.value_channels,
            device=like.device,
            dtype=like.dtype,
            pools=pools,
        )
        return cls(bank, settings.every)

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    def signature(self) -> tuple[Hashable, ...]:
        version = self.memory.pages.version if isinstance(self.memory, MemoryBank) else 0
        return self.object_count, version

    def release(self) -> None:
        self.memory.release()

    def make_room(self, count: int) -> None:
        self.memory.make_room(count)

    @classmethod
    def join(cls, states: Sequence[MatchingState]) -> JoinedState:
        parts = [state.read() for state in states]
        tables = [(part.length, part.pages) for part in parts]
        length, pages = (torch.cat(table) for table in zip(*tables, strict=True))
        stored = parts[0]._replace(length=length, pages=pages)  # all of one pool and ring length
        return JoinedState(stored, sum(state.object_count for state in states))

    def read(self) -> Stored:
        """The objects' memory, as `read_memory` takes it."""
        return self.memory.read(self.object_count)

    def write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        prompted: tuple[int, ...],
        visible: torch.Tensor | None = None,
    ) -> None:
        """Store one frame: key [O, Ck, h, w], value [O, Cv, h, w].

        Every `every`-th frame is kept; any other is overwritten by the next write, except for
        objects that are new or whose slot is in `prompted`.

        visible  [O] bool on the device: only these objects' memory is written; None: all
        """
        count = key.shape[0]
        due = self.frame_count % self.every == 0
        keep = [due or slot >= self.object_count or slot in prompted for slot in range(count)]
        self.memory.write(to_positions(key), to_positions(value), keep, visible)
        self.object_count = count
        self.frame_count += 1

    def take(self, observed: Observed | None, prompted: tuple[int, ...]) -> None:
        """`write` the result of `observe`, or `skip` the frame if it is None."""
        if observed is None:
            self.skip()
        else:
            self.write(*observed, prompted)

    def skip(self) -> None:
        """Count a frame without objects; nothing is stored."""
        self.frame_count += 1

    def forget(self, slot: int) -> None:
        self.memory.forget(slot, self.object_count)
        self.object_count -= 1

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "frame_count": torch.tensor(self.frame_count),
            **self.memory.tensors(self.object_count),
        }

    def restore(self, tensors: dict[str, torch.Tensor], object_count: int) -> None:
        self.frame_count = int(tensors["frame_count"])
        self.memory.restore(tensors)
        self.object_count = object_count
