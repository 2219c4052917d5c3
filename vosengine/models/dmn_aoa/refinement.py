"""DMN-AOA's mask refinement: reference frames moved onto the current one, and RefineNet."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ...config import DMNAOAConfig
from ...kernels import read_memory
from ...policies.references import FirstFrames
from ...types import Size
from ..blocks import conv3, to_positions, upsample
from ..convolve import convolve

BLOCKS = (4, 2, 1)  # cells at strides 4, 8 and 16 across one cell at stride 16
MASK_COLUMNS = sum(side * side for side in BLOCKS)  # of one object in one reference cell


class Base(NamedTuple):
    """Base features of frames: res2, res3 and res4 after their bottlenecks."""

    b2: torch.Tensor  # [B, C2, H / 4, W / 4]
    b3: torch.Tensor  # [B, C3, H / 8, W / 8]
    b4: torch.Tensor  # [B, C4, H / 16, W / 16]


class Moved(NamedTuple):
    """References as they lie on the current frame, at strides 4, 8 and 16 like Base.

    features  per level [R, C, h, w], the frame before first, then first frames
    first     per level [O, 1, h, w], every object's mask in its first frame
    previous  per level [O, 1, h, w], in the frame before
    rows      [O] int64, per object which of the R is its first frame
    """

    features: tuple[torch.Tensor, ...]
    first: tuple[torch.Tensor, ...]
    previous: tuple[torch.Tensor, ...]
    rows: torch.Tensor


def to_blocks(x: torch.Tensor, side: int) -> torch.Tensor:
    """[B, C, side * h, side * w] -> [B, h * w, side * side * C]: what lies in every cell."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // side, side, width // side, side)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def from_blocks(x: torch.Tensor, side: int, cells: Size) -> torch.Tensor:
    """The inverse: [B, h * w, side * side * C] -> [B, C, side * h, side * w]."""
    x = x.reshape(len(x), *cells, side, side, x.shape[2] // (side * side))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def shrink(masks: torch.Tensor, side: int) -> torch.Tensor:
    """Masks [O, H, W] a `side`-th of their size: area means."""
    return functional.avg_pool2d(masks[:, None], side)[:, 0]


def mask_levels(masks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Soft masks [O, h, w] at stride 4 -> [O, 1, ., .] at strides 4, 8 and 16."""
    return masks[:, None], shrink(masks, 2)[:, None], shrink(masks, 4)[:, None]


class References:
    """The frames that masks are refined with: the one before, and every object's first.

    Row 0 is the frame before; the further rows are first frames, shared by the objects that began
    in one. A row holds, per cell at stride 16, the features of all three levels in it, then for
    every slot its masks in it.

    keys    [1 + R, P, Ca]   of length 1, what positions are compared by
    values  [1 + R, P, C4 + 4 C3 + 16 C2 + 21 O]
    first   which row is whose; `rows`, the same by slot on the device
    """

    def __init__(
        self, channels: tuple[int, ...], cells: Size, max_objects: int, like: torch.Tensor
    ) -> None:
        self.channels = channels
        self.cells = cells
        self.width = sum(c * s * s for c, s in zip(channels, BLOCKS, strict=True))
        positions, rows = cells[0] * cells[1], 1 + max_objects
        columns = self.width + MASK_COLUMNS * max_objects
        self.keys = torch.empty(rows, positions, channels[2], device=like.device, dtype=like.dtype)
        self.values = torch.empty(rows, positions, columns, device=like.device, dtype=like.dtype)
        self.first = FirstFrames(1)
        self.rows = torch.zeros(max_objects, device=like.device, dtype=torch.int64)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def row_count(self) -> int:
        """Rows in use, the frame before among them."""
        return self.first.end

    def write(self, key: torch.Tensor, base: Base, masks: torch.Tensor) -> None:
        """The frame before is now this one; it is the first of the objects that are new.

        key [1, P, Ca], masks [O, h, w] soft, at stride 4; slots past those known are new
        """
        parts = [to_blocks(level, side) for level, side in zip(base, BLOCKS, strict=True)]
        levels = zip(mask_levels(masks.to(key.dtype)), BLOCKS, strict=True)
        planes = torch.cat([to_blocks(level, side) for level, side in levels], dim=2)
        row = torch.cat((*parts, planes.transpose(0, 1).flatten(1)[None]), dim=2)[0]
        fresh = self.first.begin(len(masks))
        if fresh is not None:
            self._point()
        for target in (0,) if fresh is None else (0, fresh):
            self.keys[target] = key[0]
            self.values[target, :, : row.shape[1]] = row
            self.values[target, :, row.shape[1] :] = 0  # objects to come were not in it

    def _point(self) -> None:
        rows = self.first.rows
        self.rows[: len(rows)] = torch.tensor(rows, dtype=torch.int64)

    def move(self, query: torch.Tensor, sharpness: float, top_k: int | None = None) -> Moved:
        """Every reference aligned to the frame whose key is `query` [P, Ca], as AOA aligns
        proposals (equations 2 and 3): cell by cell at stride 16, finer levels in blocks [O].

        top_k  of each reference's cells only the closest are read; None: all
        """
        rows, count = self.row_count, len(self.first.rows)
        end = self.width + MASK_COLUMNS * count
        keys, values = self.keys[:rows], self.values[:rows, :, :end]
        moved = read_memory(query, keys, values, scale=sharpness, top_k=top_k)
        widths = [c * s * s for c, s in zip(self.channels, BLOCKS, strict=True)]
        *levels, columns = torch.split(moved, [*widths, MASK_COLUMNS * count], dim=2)
        features = (from_blocks(x, s, self.cells) for x, s in zip(levels, BLOCKS, strict=True))
        by_object = columns.reshape(rows, -1, count, MASK_COLUMNS)  # [R, P, O, 21]
        masks = by_object.transpose(1, 2)
        slots, first = torch.arange(count, device=moved.device), self.rows[:count]
        return Moved(
            tuple(features), self._planes(masks[first, slots]), self._planes(masks[0]), first
        )

    def _planes(self, columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[O, P, 21] -> per level [O, 1, ., .]."""
        parts = torch.split(columns, [side * side for side in BLOCKS], dim=2)
        return tuple(from_blocks(x, s, self.cells) for x, s in zip(parts, BLOCKS, strict=True))

    def forget(self, slot: int) -> None:
        """Drop an object; the last slot's columns move into its place, and a first frame that
        nobody has any more makes room."""
        last = len(self.first.rows) - 1
        if slot != last:
            into, of = (self.width + MASK_COLUMNS * s for s in (slot, last))
            columns = self.values[..., of : of + MASK_COLUMNS]
            self.values[..., into : into + MASK_COLUMNS] = columns
        moved = self.first.forget(slot)
        if moved is not None:
            end, freed = moved
            self.keys[freed], self.values[freed] = self.keys[end], self.values[end]
        self._point()

    def tensors(self) -> dict[str, torch.Tensor]:
        rows, end = self.row_count, self.width + MASK_COLUMNS * len(self.first.rows)
        first = torch.tensor(self.first.rows, dtype=torch.int64)
        return {"keys": self.keys[:rows], "values": self.values[:rows, :, :end], "first": first}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        rows, _, end = tensors["values"].shape
        self.keys[:rows] = tensors["keys"]
        self.values[:rows, :, :end] = tensors["values"]
        self.first.rows = tensors["first"].tolist()
        self._point()


class NormedResBlock(nn.Module):
    """x + norm(conv3(relu(norm(conv3(relu x))))); a 3x3 convolution on x if channels change."""

    def __init__(self, channels_in: int, channels: int, groups: int) -> None:
        super().__init__()
        same = channels_in == channels
        self.downsample = None if same else conv3(channels_in, channels)
        self.conv1 = conv3(channels_in, channels)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv2 = conv3(channels, channels)
        self.norm2 = nn.GroupNorm(groups, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = convolve(functional.relu(x), self.conv1, self.norm1, relu=True)
        shortcut = x if self.downsample is None else self.downsample(x)
        return convolve(branch, self.conv2, self.norm2, add=shortcut)


class RefineBlock(nn.Module):
    """One level of RefineNet.

    Its first convolution goes over the features of the frame, of the first and of the previous
    reference, and three masks, joined. It is linear, so it is computed in parts: those of the
    features once for all objects that share them, that of the masks per object.
    """

    def __init__(
        self, channels_in: int, channels: int, channels_out: int, groups: int, merges: bool
    ) -> None:
        super().__init__()
        self.now = conv3(channels_in, channels, bias=False)
        self.first = conv3(channels_in, channels, bias=False)
        self.previous = conv3(channels_in, channels, bias=False)
        self.masks = conv3(3, channels)
        self.norm = nn.GroupNorm(groups, channels)
        self.fuse = NormedResBlock(channels, channels_out, groups)
        self.merge = NormedResBlock(channels_out, channels_out, groups) if merges else None

    def forward(
        self,
        now: torch.Tensor,
        references: torch.Tensor,
        rows: torch.Tensor,
        masks: torch.Tensor,
        coarser: torch.Tensor | None,
    ) -> torch.Tensor:
        """now [1, C, h, w], references [R, C, h, w], masks [O, 3, h, w] (coarse, first, previous),
        coarser [O, D, h / 2, w / 2] -> [O, D, h, w]"""
        first = self.first(references[1:])
        if len(first) > 1:
            first = first[rows - 1]
        shared = self.now(now) + self.previous(references[:1])
        return self.join(shared + first, masks, coarser)

    def join(
        self, features: torch.Tensor, masks: torch.Tensor, coarser: torch.Tensor | None
    ) -> torch.Tensor:
        """What the features [O or 1, C', h, w] and the masks say, and what was found coarser."""
        x = self.fuse(self.norm(features + self.masks(masks)))
        if self.merge is None or coarser is None:
            return x
        return self.merge(x + upsample(coarser, 2))


class RefineNet(nn.Module):
    """From a coarse mask to the final one, with the structure of STM's decoder (section 3.1)."""

    def __init__(self, config: DMNAOAConfig) -> None:
        super().__init__()
        base, width, groups = config.base_channels, config.refine_channels, config.norm_groups
        self.align = nn.Conv2d(base[2], base[2], 1)
        self.block4 = RefineBlock(base[2], base[2], width, groups, merges=False)
        self.block3 = RefineBlock(base[1], width, width, groups, merges=True)
        self.block2 = RefineBlock(base[0], width, width, groups, merges=True)
        self.predict = nn.Conv2d(width, 2, 1)

    def key(self, base: Base) -> torch.Tensor:
        """What references are aligned by: [B, P, Ca], every position of length 1."""
        return functional.normalize(to_positions(self.align(base.b4)), dim=2)

    def forward(self, base: Base, moved: Moved, coarse: torch.Tensor) -> torch.Tensor:
        """Base features of one frame, coarse masks [O, h, w] at stride 4 -> logits [O, h, w]."""
        levels = zip(mask_levels(coarse), moved.first, moved.previous, strict=True)
        masks = [torch.cat(planes, dim=1).to(base.b2.dtype) for planes in levels]
        x = None
        for level, block in ((2, self.block4), (1, self.block3), (0, self.block2)):
            features = moved.features[level]
            x = block(base[level], features, moved.rows, masks[level], x)
        assert x is not None
        return self.logits(x)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[O, D, h, w] of the finest block -> [O, h, w]."""
        background, foreground = self.predict(functional.relu(x)).unbind(dim=1)
        return foreground - background
