"""`correlate_frames` in Triton: a tile of queries against the union of their windows.

One launch packs both frames (kernels/pack_vectors). The second has a program per tile of queries.
It loops over the part of the previous frame that the tile's windows cover, a few rows of 32 columns
at a time, multiplies on the tensor cores, scales by both norms and keeps, in float32, the maximum
cosine and an online softmax with its two weighted sums of offsets. This state is kept per lane of
the key block and reduced once, at the end, so that no step waits for another warp. Cells beyond the
frame are not visited: their number, offsets and cosine (0) are known. Only (d_x, d_y, m) is
written.

At 480p (30 x 54 cells, 256 channels, radius 12) tiles of 2 x 8 queries make 105 programs, about one
per multiprocessor of a large GPU; their windows cover at most 26 x 32 keys, 1.3 times one window.
Tiles of 8 x 8 would read a third of the keys, but 28 programs are too few.

Supports float16, bfloat16 and float32, any channels and strides. Scratch: a copy of both frames.
Not yet timed on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..extension import gradient_unsupported
from ..gpu import for_chip, on_its_device, tl, triton, triton_unsupported
from ..pack_vectors.triton_kernel import pack_builds, pack_vectors, padded_channels
from ..resources import CHIPS, Build, chips_by

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Config:
    """Tile of queries, block of keys, channels per product, and launch options."""

    rows: int
    columns: int
    key_rows: int
    key_columns: int
    chunk: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tuning:
    half: Config
    full: Config  # float32


# Chosen from the resource report, not yet timed.
_HALF = Config(rows=2, columns=8, key_rows=2, key_columns=32, chunk=256, warps=4, stages=3)
_FULL = Config(rows=2, columns=8, key_rows=2, key_columns=32, chunk=32, warps=4, stages=3)
CONFIGS = dict.fromkeys(CHIPS, Tuning(_HALF, _FULL))


@triton.jit
def _correlate(
    packed,
    norms,
    temperature,
    out,
    batch,
    height,
    width,
    radius,
    ON_DEVICE: tl.constexpr,
    EXCLUDE: tl.constexpr,
    PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEY_ROWS: tl.constexpr,
    KEY_COLUMNS: tl.constexpr,
):
    """out [B, 3, h, w]; packed and norms hold the B * h * w queries, then as many keys."""
    LOG2E: tl.constexpr = 1.4426950408889634
    QUERIES: tl.constexpr = ROWS * COLUMNS
    KEYS: tl.constexpr = KEY_ROWS * KEY_COLUMNS
    across = tl.cdiv(width, COLUMNS)
    tiles = across * tl.cdiv(height, ROWS)
    image = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    top_row = tile // across * ROWS
    left = tile % across * COLUMNS
    cells = height * width

    index = tl.arange(0, QUERIES)
    q_y = top_row + index // COLUMNS
    q_x = left + index % COLUMNS
    inside = (q_y < height) & (q_x < width)
    q_y = tl.minimum(q_y, height - 1)  # queries beyond the frame repeat the last one, not stored
    q_x = tl.minimum(q_x, width - 1)
    q_cell = q_y * width + q_x
    queries = packed + image.to(tl.int64) * cells * PADDED
    keys = packed + (batch + image).to(tl.int64) * cells * PADDED
    q_norm = tl.load(norms + image.to(tl.int64) * cells + q_cell)
    q_scale = 1.0 / tl.maximum(q_norm, 1e-12)
    key_norms = norms + (batch + image).to(tl.int64) * cells
    sharpness = tl.load(temperature).to(tl.float32) if ON_DEVICE else temperature

    # The part of the previous frame that this tile's windows cover.
    first_y = tl.maximum(top_row - radius, 0)
    first_x = tl.maximum(left - radius, 0)
    last_y = tl.minimum(tl.minimum(top_row + ROWS, height) - 1 + radius, height - 1)
    last_x = tl.minimum(tl.minimum(left + COLUMNS, width) - 1 + radius, width - 1)
    steps_x = tl.cdiv(last_x - first_x + 1, KEY_COLUMNS)
    steps_y = tl.cdiv(last_y - first_y + 1, KEY_ROWS)

    channel = tl.arange(0, CHUNK)
    lane = tl.arange(0, KEYS)
    q_at = q_cell[:, None] * PADDED + channel[None, :]
    if CHUNK == PADDED:
        query = tl.load(queries + q_at)
    best = tl.full((QUERIES, KEYS), float("-inf"), tl.float32)
    peak = tl.full((QUERIES, KEYS), -1e38, tl.float32)  # finite: -inf - -inf is NaN
    total = tl.zeros((QUERIES, KEYS), tl.float32)
    sum_x = tl.zeros((QUERIES, KEYS), tl.float32)
    sum_y = tl.zeros((QUERIES, KEYS), tl.float32)
    for step in range(steps_y * steps_x):
        k_y = first_y + step // steps_x * KEY_ROWS + lane // KEY_COLUMNS
        k_x = first_x + step % steps_x * KEY_COLUMNS + lane % KEY_COLUMNS
        exists = (k_y < height) & (k_x < width)
        k_cell = k_y * width + k_x
        k_at = k_cell[None, :] * PADDED + channel[:, None]
        if CHUNK == PADDED:
            key = tl.load(keys + k_at, mask=exists[None, :], other=0.0)
            product = tl.dot(query, key, input_precision="ieee")
        else:
            product = tl.zeros((QUERIES, KEYS), tl.float32)
            for start in range(0, PADDED, CHUNK):
                part = tl.load(queries + q_at + start)
                key = tl.load(keys + k_at + start, mask=exists[None, :], other=0.0)
                product = tl.dot(part, key, product, input_precision="ieee")
        k_scale = 1.0 / tl.maximum(tl.load(key_norms + k_cell, mask=exists, other=1.0), 1e-12)
        cosine = product * (q_scale[:, None] * k_scale[None, :])

        d_x = (k_x[None, :] - q_x[:, None]).to(tl.float32)
        d_y = (k_y[None, :] - q_y[:, None]).to(tl.float32)
        seen = (tl.abs(d_x) <= radius) & (tl.abs(d_y) <= radius) & exists[None, :]
        best = tl.maximum(best, tl.where(seen, cosine, float("-inf")))
        score = tl.where(seen, sharpness * cosine, float("-inf"))
        higher = tl.maximum(peak, score)
        weight = tl.exp2((score - higher) * LOG2E)
        fade = tl.exp2((peak - higher) * LOG2E)
        total = total * fade + weight
        sum_x = sum_x * fade + weight * d_x
        sum_y = sum_y * fade + weight * d_y
        peak = higher

    summit = tl.max(peak, axis=1)
    fade = tl.exp2((peak - summit[:, None]) * LOG2E)
    mass = tl.sum(total * fade, axis=1)
    move_x = tl.sum(sum_x * fade, axis=1)
    move_y = tl.sum(sum_y * fade, axis=1)
    most = tl.max(best, axis=1)
    if not EXCLUDE:
        # Beyond the frame C = 0. The offsets of a whole window sum to 0, so those beyond the frame
        # sum to minus those inside.
        low_x = tl.maximum(q_x - radius, 0)
        low_y = tl.maximum(q_y - radius, 0)
        high_x = tl.minimum(q_x + radius, width - 1)
        high_y = tl.minimum(q_y + radius, height - 1)
        count_x = high_x - low_x + 1
        count_y = high_y - low_y + 1
        side = 2 * radius + 1
        beyond = (side * side - count_x * count_y).to(tl.float32)
        middle_x = (low_x + high_x - 2 * q_x).to(tl.float32) * 0.5
        middle_y = (low_y + high_y - 2 * q_y).to(tl.float32) * 0.5
        area = (count_x * count_y).to(tl.float32)
        higher = tl.where(beyond > 0, tl.maximum(summit, 0.0), summit)
        fade = tl.exp2((summit - higher) * LOG2E)
        each = tl.where(beyond > 0, tl.exp2(tl.minimum(-higher, 0.0) * LOG2E), 0.0)
        mass = mass * fade + each * beyond
        move_x = move_x * fade - each * middle_x * area
        move_y = move_y * fade - each * middle_y * area
        most = tl.where(beyond > 0, tl.maximum(most, 0.0), most)
    most = tl.where(mass == mass, most, mass)  # tl.maximum may drop a NaN, a sum propagates it
    target = out + image.to(tl.int64) * 3 * cells + q_cell
    tl.store(target, (move_x / mass).to(out.dtype.element_ty), mask=inside)
    tl.store(target + cells, (move_y / mass).to(out.dtype.element_ty), mask=inside)
    tl.store(target + 2 * cells, most.to(out.dtype.element_ty), mask=inside)


def unsupported(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 20.0,
    **_: Any,
) -> str | None:
    if query.dtype not in DTYPES:
        return f"wants float16, bfloat16 or float32, given {query.dtype}"
    channels, height, width = query.shape[1:]
    if height * width * padded_channels(channels) >= 2**31:
        return f"wants frames of fewer than 2**31 numbers, given {channels} x {height} x {width}"
    if isinstance(temperature, torch.Tensor):
        if temperature.device.type not in ("cpu", query.device.type):
            return f"wants temperature on {query.device}, given it on {temperature.device}"
        if (reason := gradient_unsupported(temperature)) is not None:
            return reason
    return triton_unsupported(query, previous)


@on_its_device
def run(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float | torch.Tensor = 20.0,
    outside: str = "zero",
) -> torch.Tensor:
    batch, channels, height, width = query.shape
    out = torch.empty(batch, 3, height, width, dtype=query.dtype, device=query.device)
    if out.numel() == 0:
        return out
    config = _config(for_chip(CONFIGS, query.device), query.dtype)
    padded = padded_channels(channels)
    packed, norms = pack_vectors(query, previous, padded)
    # A temperature on the host is a kernel argument, one on the device is loaded by the kernel.
    on_device = isinstance(temperature, torch.Tensor) and temperature.device == query.device
    tiles = -(-height // config.rows) * -(-width // config.columns)
    _correlate[(batch * tiles,)](
        packed,
        norms,
        temperature if on_device else float(temperature),
        out,
        batch,
        height,
        width,
        radius,
        **_constants(config, padded, on_device, outside == "exclude"),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return out


def _config(tuning: Tuning, dtype: torch.dtype) -> Config:
    return tuning.full if dtype == torch.float32 else tuning.half


def _constants(config: Config, padded: int, on_device: bool, exclude: bool) -> dict[str, Any]:
    return {
        "ON_DEVICE": on_device,
        "EXCLUDE": exclude,
        "PADDED": padded,
        "CHUNK": min(config.chunk, padded),
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "KEY_ROWS": config.key_rows,
        "KEY_COLUMNS": config.key_columns,
    }


def builds() -> tuple[Build, ...]:
    """MUNet's call, 256 channels and a temperature on the device, in every tuning."""
    types = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
    return (
        *pack_builds(256),
        *(
            Build(
                name=f"correlate {str(dtype).removeprefix('torch.')} {config.rows}x{config.columns}"
                f" {config.warps} warps {config.stages} stages",
                kernel=_correlate,
                signature={
                    "packed": element,
                    "norms": "*fp32",
                    "temperature": element,
                    "out": element,
                    **dict.fromkeys(("batch", "height", "width", "radius"), "i32"),
                },
                constants=_constants(config, 256, on_device=True, exclude=False),
                warps=config.warps,
                stages=config.stages,
                chips=chips,
                matrix=dtype != torch.float32,
            )
            for dtype, element in types.items()
            for config, chips in chips_by(
                {chip: _config(tuning, dtype) for chip, tuning in CONFIGS.items()}
            ).items()
        ),
    )
