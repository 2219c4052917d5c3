"""DMN-AOA's mask refinement: reference frames aligned to the current one, and RefineNet."""

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

BLOCKS = (4, 2, 1)  # side, in cells at strides 4, 8 and 16, of one cell at stride 16
MASK_COLUMNS = sum(side * side for side in BLOCKS)  # mask values per object and stride-16 cell


class Base(NamedTuple):
    """Base features: res2, res3 and res4 after their bottlenecks."""

    b2: torch.Tensor  # [B, C2, H / 4, W / 4]
    b3: torch.Tensor  # [B, C3, H / 8, W / 8]
    b4: torch.Tensor  # [B, C4, H / 16, W / 16]


class Moved(NamedTuple):
    """References aligned to the current frame, at strides 4, 8 and 16 like Base.

    features  per level [R, C, h, w]: row 0 the previous frame, then the objects' first frames
    first     per level [O, 1, h, w], each object's mask in its first frame
    previous  per level [O, 1, h, w], each object's mask in the previous frame
    rows      [O] int64, row in R of each object's first frame
    """

    features: tuple[torch.Tensor, ...]
    first: tuple[torch.Tensor, ...]
    previous: tuple[torch.Tensor, ...]
    rows: torch.Tensor


def to_blocks(x: torch.Tensor, side: int) -> torch.Tensor:
    """Group side x side blocks into cells: [B, C, side * h, side * w] ->
    [B, h * w, side * side * C]."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // side, side, width // side, side)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def from_blocks(x: torch.Tensor, side: int, cells: Size) -> torch.Tensor:
    """Inverse of `to_blocks`: [B, h * w, side * side * C] -> [B, C, side * h, side * w]."""
    x = x.reshape(len(x), *cells, side, side, x.shape[2] // (side * side))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def shrink(masks: torch.Tensor, side: int) -> torch.Tensor:
    """Average-pool masks: [O, H, W] -> [O, H / side, W / side]."""
    return functional.avg_pool2d(masks[:, None], side)[:, 0]


def mask_levels(masks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Masks [O, h, w] in 0..1 at stride 4 -> [O, 1, ., .] at strides 4, 8 and 16."""
    return masks[:, None], shrink(masks, 2)[:, None], shrink(masks, 4)[:, None]


class References:
    """Reference frames of the refinement: the previous frame and each object's first frame.

    Row 0 is the previous frame; each further row is a first frame, shared by the objects that
    started in it. Per cell at stride 16 a row holds the features of all three levels inside the
    cell, then the masks of every slot.

    keys    [1 + R, P, Ca], L2-normalised
    values  [1 + R, P, C4 + 4 C3 + 16 C2 + 21 O]
    first   allocation of rows to objects (host)
    rows    [max_objects] int64, row of each slot's first frame (device)
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
        """Rows in use, including the previous frame's."""
        return self.first.end

    def write(self, key: torch.Tensor, base: Base, masks: torch.Tensor) -> None:
        """Store a frame as the previous one, and as the first frame of objects that are new in it.

        key [1, P, Ca], masks [O, h, w] in 0..1 at stride 4; slots beyond the known ones are new
        """
        parts = [to_blocks(level, side) for level, side in zip(base, BLOCKS, strict=True)]
        levels = zip(mask_levels(masks.to(key.dtype)), BLOCKS, strict=True)
        planes = torch.cat([to_blocks(level, side) for level, side in levels], dim=2)
        row = torch.cat((*parts, planes.transpose(0, 1).flatten(1)[None]), dim=2)[0]
        new_row = self.first.begin(len(masks))
        if new_row is not None:
            self._update_rows()
        for target in (0,) if new_row is None else (0, new_row):
            self.keys[target] = key[0]
            self.values[target, :, : row.shape[1]] = row
            self.values[target, :, row.shape[1] :] = 0  # empty masks of objects added later

    def _update_rows(self) -> None:
        rows = self.first.rows
        self.rows[: len(rows)] = torch.tensor(rows, dtype=torch.int64)

    def move(self, query: torch.Tensor, sharpness: float, top_k: int | None = None) -> Moved:
        """Align every reference to the frame with key `query` [P, Ca], as AOA aligns proposals
        (equations 2 and 3). (ours) Cells of stride 16 are aligned; finer levels move in blocks.

        top_k  number of closest cells read per reference; None: all
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
        """Split mask values [O, P, 21] into planes [O, 1, ., .] per level."""
        parts = torch.split(columns, [side * side for side in BLOCKS], dim=2)
        return tuple(from_blocks(x, s, self.cells) for x, s in zip(parts, BLOCKS, strict=True))

    def forget(self, slot: int) -> None:
        """Drop the object in `slot`; the last slot's columns move there, and a first frame without
        objects frees its row."""
        last = len(self.first.rows) - 1
        if slot != last:
            target, source = (self.width + MASK_COLUMNS * s for s in (slot, last))
            columns = self.values[..., source : source + MASK_COLUMNS]
            self.values[..., target : target + MASK_COLUMNS] = columns
        moved = self.first.forget(slot)
        if moved is not None:
            end, freed = moved
            self.keys[freed], self.values[freed] = self.keys[end], self.values[end]
        self._update_rows()

    def tensors(self) -> dict[str, torch.Tensor]:
        rows, end = self.row_count, self.width + MASK_COLUMNS * len(self.first.rows)
        first = torch.tensor(self.first.rows, dtype=torch.int64)
        return {"keys": self.keys[:rows], "values": self.values[:rows, :, :end], "first": first}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        rows, _, end = tensors["values"].shape
        self.keys[:rows] = tensors["keys"]
        self.values[:rows, :, :end] = tensors["values"]
        self.first.rows = tensors["first"].tolist()
        self._update_rows()


class NormedResBlock(nn.Module):
    """x + norm(conv3(relu(norm(conv3(relu x))))); conv3 on the shortcut if channels change."""

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

    Its first convolution takes the concatenated features of the frame, the first and the previous
    reference, and three masks. It is linear, so it is computed as a sum: the parts on features once
    for all objects that share them, the part on masks per object.
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
        """Fuse projected features [O or 1, C', h, w], masks [O, 3, h, w] and the coarser level's
        output [O, D, h / 2, w / 2] -> [O, D, h, w]."""
        x = self.fuse(self.norm(features + self.masks(masks)))
        if self.merge is None or coarser is None:
            return x
        return self.merge(x + upsample(coarser, 2))


class RefineNet(nn.Module):
    """Mask refinement with the structure of STM's decoder (section 3.1)."""

    def __init__(self, config: DMNAOAConfig) -> None:
        super().__init__()
        base, width, groups = config.base_channels, config.refine_channels, config.norm_groups
        self.align = nn.Conv2d(base[2], base[2], 1)
        self.block4 = RefineBlock(base[2], base[2], width, groups, merges=False)
        self.block3 = RefineBlock(base[1], width, width, groups, merges=True)
        self.block2 = RefineBlock(base[0], width, width, groups, merges=True)
        self.predict = nn.Conv2d(width, 2, 1)

    def key(self, base: Base) -> torch.Tensor:
        """L2-normalised key [B, P, Ca] by which references are aligned."""
        return functional.normalize(to_positions(self.align(base.b4)), dim=2)

    def forward(self, base: Base, moved: Moved, coarse: torch.Tensor) -> torch.Tensor:
        """Base features of one frame, aligned references, coarse masks [O, h, w] at stride 4 ->
        logits [O, h, w]."""
        levels = zip(mask_levels(coarse), moved.first, moved.previous, strict=True)
        masks = [torch.cat(planes, dim=1).to(base.b2.dtype) for planes in levels]
        x = None
        for level, block in ((2, self.block4), (1, self.block3), (0, self.block2)):
            features = moved.features[level]
            x = block(base[level], features, moved.rows, masks[level], x)
        assert x is not None
        return self.logits(x)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Output [O, D, h, w] of the finest block -> logits [O, h, w], foreground - background."""
        background, foreground = self.predict(functional.relu(x)).unbind(dim=1)
        return foreground - background
