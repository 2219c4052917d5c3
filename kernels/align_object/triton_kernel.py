"""`align_object` in Triton: attention from template to proposal positions, scored in the kernel.

Three launches. The first packs both inputs (kernels/pack_vectors). In the second a program handles
a block of template positions (all templates are concatenated, so that few rows are idle) and one
proposal. It loops over the proposal's positions with an online softmax in float32, keeps the
translated block in registers and reads every tile once, as keys and as values. Per position it
writes the inner product with the template and the norm, 8 bytes; S is never stored, and the
translated maps only with `translate`. The third launch sums over positions in a fixed order, so
results are deterministic. As in flash attention, the weights of the second product have the dtype
of the inputs.

14 x 14 positions, 3 templates and 30 proposals make 300 programs of 64 positions (570 of 32).

Supports float16, bfloat16 and float32, up to 512 channels, any strides. Scratch: a copy of both
inputs and 8 bytes per position and pair. Not yet timed on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..gpu import for_chip, on_its_device, tl, triton, triton_unsupported
from ..pack_vectors.triton_kernel import pack_vectors, padded_channels
from ..resources import Build, chips_by

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CHANNELS = 512  # maximum per accumulator
POSITIONS = 256  # per step of the sum


@dataclass(frozen=True)
class Config:
    """Block sizes: template positions, proposal positions, channels per score product."""

    rows: int
    keys: int
    chunk: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tuning:
    """Configurations for up to 256 and up to 512 channels; `full` is float32."""

    half: Config
    half_wide: Config
    full: Config
    full_wide: Config


# Chosen from the resource report, not yet timed.
_FULL = Config(rows=32, keys=32, chunk=32, warps=8, stages=2)
_FULL_WIDE = Config(rows=16, keys=16, chunk=32, warps=4, stages=2)
_SMALL = Tuning(
    Config(rows=32, keys=32, chunk=256, warps=4, stages=2),
    Config(rows=32, keys=16, chunk=512, warps=8, stages=2),
    _FULL,
    _FULL_WIDE,
)
_HOPPER = Tuning(
    Config(rows=64, keys=32, chunk=256, warps=4, stages=2),
    Config(rows=64, keys=32, chunk=512, warps=8, stages=2),
    _FULL,
    _FULL_WIDE,
)
_BLACKWELL = Tuning(
    Config(rows=64, keys=32, chunk=256, warps=8, stages=2),
    Config(rows=64, keys=16, chunk=512, warps=8, stages=2),
    _FULL,
    _FULL_WIDE,
)
CONFIGS: dict[int, Tuning] = {
    80: _SMALL,
    86: _SMALL,
    89: _SMALL,
    90: _HOPPER,
    100: _BLACKWELL,
    120: _SMALL,
}


@triton.jit
def _align(
    packed,
    norms,
    partial,
    translated,
    rows,
    positions,
    proposals,
    others,
    channels,
    alpha,
    TRANSLATE: tl.constexpr,
    PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """partial [M, 2, O * P]: <template, translated> and |translated|.

    packed and norms hold the rows = O * P template positions, then the M * Q proposal positions.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    blocks = tl.cdiv(rows, ROWS)
    proposal = tl.program_id(0) // blocks
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    channel = tl.arange(0, PADDED)
    first_key = rows + proposal.to(tl.int64) * others
    keys = packed + first_key * PADDED
    row_scale = 1.0 / tl.maximum(tl.load(norms + row, mask=inside, other=1.0), 1e-12)
    row_at = row.to(tl.int64)[:, None] * PADDED
    if CHUNK == PADDED:
        query = tl.load(packed + row_at + channel[None, :], mask=inside[:, None], other=0.0)

    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    alike = tl.zeros((ROWS,), tl.float32)  # <template, translated>, from the score products
    moved = tl.zeros((ROWS, PADDED), tl.float32)
    for start in range(0, others, KEYS):
        key = start + tl.arange(0, KEYS)
        exists = key < others
        key_at = key[:, None] * PADDED
        value = tl.load(keys + key_at + channel[None, :], mask=exists[:, None], other=0.0)
        if CHUNK == PADDED:
            product = tl.dot(query, tl.trans(value), input_precision="ieee")
        else:
            product = tl.zeros((ROWS, KEYS), tl.float32)
            part = tl.arange(0, CHUNK)
            for offset in range(0, PADDED, CHUNK):
                left = tl.load(
                    packed + row_at + offset + part[None, :], mask=inside[:, None], other=0.0
                )
                right = tl.load(
                    keys + key_at + offset + part[None, :], mask=exists[:, None], other=0.0
                )
                product = tl.dot(left, tl.trans(right), product, input_precision="ieee")
        length = tl.load(norms + first_key + key, mask=exists, other=1.0)
        key_scale = 1.0 / tl.maximum(length, 1e-12)
        score = alpha * (product * (row_scale[:, None] * key_scale[None, :]))
        score = tl.where(exists[None, :], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        weight = tl.exp2((score - higher[:, None]) * LOG2E).to(value.dtype)
        wide = weight.to(tl.float32)
        fade = tl.exp2((peak - higher) * LOG2E)
        total = total * fade + tl.sum(wide, axis=1)
        alike = alike * fade + tl.sum(wide * product, axis=1)
        moved = moved * fade[:, None]
        moved = tl.dot(weight, value, moved, input_precision="ieee")
        peak = higher

    moved = moved / total[:, None]
    target = partial + proposal.to(tl.int64) * 2 * rows + row
    tl.store(target, alike / total, mask=inside)
    tl.store(target + rows, tl.sqrt(tl.sum(moved * moved, axis=1)), mask=inside)
    if TRANSLATE:
        pair = (row // positions).to(tl.int64) * proposals + proposal
        at = (pair * positions + row % positions)[:, None] * channels + channel[None, :]
        wanted = inside[:, None] & (channel < channels)[None, :]
        tl.store(translated + at, moved.to(translated.dtype.element_ty), mask=wanted)


@triton.jit
def _sum_positions(
    partial,
    norms,
    out,
    positions,
    objects,
    proposals,
    MEAN: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """out [O, M] from partial [M, 2, O, P]: mean of cosines (MEAN) or cosine of the whole maps."""
    pair = tl.program_id(0)
    proposal = (pair % proposals).to(tl.int64)
    first = (pair // proposals).to(tl.int64) * positions
    rows = objects * positions
    products = partial + proposal * 2 * rows + first
    lengths = products + rows
    norms += first
    product = tl.zeros((POSITIONS,), tl.float32)
    ours = tl.zeros((POSITIONS,), tl.float32)
    theirs = tl.zeros((POSITIONS,), tl.float32)
    for start in range(0, positions, POSITIONS):
        at = start + tl.arange(0, POSITIONS)
        inside = at < positions
        dot = tl.load(products + at, mask=inside, other=0.0)
        moved = tl.load(lengths + at, mask=inside, other=0.0)
        norm = tl.load(norms + at, mask=inside, other=0.0)
        if MEAN:
            product += dot / tl.maximum(norm, 1e-12) / tl.maximum(moved, 1e-12)
        else:
            product += dot
            ours += norm * norm
            theirs += moved * moved
    score = tl.sum(product, axis=0)
    if MEAN:
        score = score / positions
    else:
        score = score / tl.maximum(tl.sqrt(tl.sum(ours, axis=0)), 1e-12)
        score = score / tl.maximum(tl.sqrt(tl.sum(theirs, axis=0)), 1e-12)
    tl.store(out + pair, score.to(out.dtype.element_ty))


def unsupported(template: torch.Tensor, proposal: torch.Tensor, **_: Any) -> str | None:
    if template.dtype not in DTYPES:
        return f"wants float16, bfloat16 or float32, given {template.dtype}"
    if template.shape[2] > CHANNELS:
        return f"wants at most {CHANNELS} channels, given {template.shape[2]}"
    return triton_unsupported(template, proposal)


@on_its_device
def run(
    template: torch.Tensor,
    proposal: torch.Tensor,
    *,
    alpha: float = 100.0,
    score: str = "mean",
    translate: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    objects, positions, channels = template.shape
    proposals, others, _ = proposal.shape
    dtype, device = template.dtype, template.device
    out = torch.empty(objects, proposals, dtype=dtype, device=device)
    translated = None
    if translate:
        shape = (objects, proposals, positions, channels)
        translated = torch.empty(shape, dtype=dtype, device=device)
    if out.numel() == 0:
        return out, translated
    padded = padded_channels(channels, CHANNELS)
    config = _config(for_chip(CONFIGS, device), dtype, padded)
    packed, norms = pack_vectors(template.mT.unsqueeze(2), proposal.mT.unsqueeze(2), padded)
    rows = objects * positions
    partial = torch.empty(proposals, 2, rows, dtype=torch.float32, device=device)
    _align[(-(-rows // config.rows) * proposals,)](
        packed,
        norms,
        partial,
        out if translated is None else translated,
        rows,
        positions,
        proposals,
        others,
        channels,
        float(alpha),
        **_constants(config, padded, translate),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    _sum_positions[(objects * proposals,)](
        partial,
        norms,
        out,
        positions,
        objects,
        proposals,
        MEAN=score == "mean",
        POSITIONS=POSITIONS,
        num_warps=4,
        num_stages=1,
    )
    return out, translated


def _config(tuning: Tuning, dtype: torch.dtype, padded: int) -> Config:
    if dtype == torch.float32:
        return tuning.full if padded <= 256 else tuning.full_wide
    return tuning.half if padded <= 256 else tuning.half_wide


def _constants(config: Config, padded: int, translate: bool) -> dict[str, Any]:
    return {
        "TRANSLATE": translate,
        "PADDED": padded,
        "CHUNK": min(config.chunk, padded),
        "ROWS": config.rows,
        "KEYS": config.keys,
    }


def builds() -> tuple[Build, ...]:
    """256 channels (DMN-AOA) and the maximum, in every tuning; packing is in correlate_frames."""
    integers = ("rows", "positions", "proposals", "others", "channels")
    aligns = (
        Build(
            name=f"align {_TYPES[element]} {padded} {config.rows}x{config.keys}"
            f" {config.warps} warps {config.stages} stages",
            kernel=_align,
            signature={
                **dict.fromkeys(("packed", "translated"), element),
                **dict.fromkeys(("norms", "partial"), "*fp32"),
                **dict.fromkeys(integers, "i32"),
                "alpha": "fp32",
            },
            constants=_constants(config, padded, translate=True),
            warps=config.warps,
            stages=config.stages,
            chips=chips,
            matrix=element != "*fp32",
            divisible=("channels",),
        )
        for element, dtype in (("*bf16", torch.bfloat16), ("*fp32", torch.float32))
        for padded in (256, 512)
        for config, chips in chips_by(
            {chip: _config(tuning, dtype, padded) for chip, tuning in CONFIGS.items()}
        ).items()
    )
    sums = Build(
        name="sum positions bfloat16",
        kernel=_sum_positions,
        signature={
            **dict.fromkeys(("partial", "norms"), "*fp32"),
            "out": "*bf16",
            **dict.fromkeys(("positions", "objects", "proposals"), "i32"),
        },
        constants={"MEAN": True, "POSITIONS": POSITIONS},
        warps=4,
        stages=1,
        chips=tuple(CONFIGS),
        matrix=False,
    )
    return (*aligns, sums)


_TYPES = {"*bf16": "bfloat16", "*fp32": "float32"}
