"""`deform_conv` in Triton: a tile of pixels is sampled and multiplied, one tap after the other.

The first kernel packs the image (see packing.py) and the weights, [groups, blocks of channels,
taps, channels of a block, outputs], partial tiles padded with zeros. In the second a program
computes a tile of pixels and outputs of one group. For every block of channels and tap it reads the
offsets (once per offset group if that is at most a unit), computes positions and bilinear weights
in float32, loads four corners (8 float16 channels of an offset group are one 16-byte load), and
multiplies the samples, rounded to x's dtype, on the tensor cores with float32 accumulators (in
float32 with FMAs). Not yet timed on a GPU.

Supports float16, bfloat16 and float32, any strides, sides below 32768 and images of fewer than 2^31
elements. Scratch: the packed image and the packed weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..gpu import for_chip, on_its_device, tl, triton, triton_unsupported
from ..resources import CHIPS, Build, chips_by
from .packing import MARGIN, Packing, packing_of, side_unsupported
from .reference import Pair, as_pair

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
MOST_ELEMENTS = 1 << 31  # per image, in every tensor: offsets are int32
PACKED = 2048  # image elements per program of the first kernel


@dataclass(frozen=True)
class Config:
    """Tile sizes: pixels x channels samples, times weights for at most `outputs`."""

    pixels: int
    channels: int
    outputs: int
    warps: int
    stages: int


# Chosen from the resource report, not yet timed: 8 warps keep a tile's corners in flight without
# spills, and two such blocks fit into the registers of every chip. One loop stage, since
# asynchronous copies bypass the L1 cache, which holds most corners.
CONFIGS = dict.fromkeys(CHIPS, Config(64, 64, 64, warps=8, stages=1))


@triton.jit
def _pack_image(
    x, packed, part, plane, x_b, x_c, x_y, x_x,
    height, width, section, chunks, units,
    UNIT: tl.constexpr, PLACES: tl.constexpr, MARGIN: tl.constexpr,
):  # fmt: skip
    """PLACES packed pixels of one unit of one image."""
    unit = plane % units
    channel = unit % chunks * UNIT + tl.arange(0, UNIT)
    place = part * PLACES + tl.arange(0, PLACES)
    packed_width = width + 2 * MARGIN
    count = (height + 2 * MARGIN) * packed_width
    y, column = place // packed_width - MARGIN, place % packed_width - MARGIN
    inside = (column >= 0) & (column < width) & (y >= 0) & (y < height)
    source = x + (plane // units).to(tl.int64) * x_b
    source += y.to(tl.int64)[None, :] * x_y + column.to(tl.int64)[None, :] * x_x
    source += (unit // chunks * section + channel).to(tl.int64)[:, None] * x_c
    # Threads run along the last axis: loads along x, stores along the channels.
    values = tl.load(source, mask=inside[None, :] & (channel < section)[:, None], other=0.0)
    to = packed + plane.to(tl.int64) * count * UNIT
    to += (place * UNIT)[:, None] + tl.arange(0, UNIT)[None, :]
    tl.store(to, tl.permute(values, (1, 0)), mask=(place < count)[:, None])


@triton.jit
def _pack_weights(
    weight, weights, tile, w_o, w_c, w_y, w_x,
    section, chunks, units, per_group, outputs, taps, taps_x, channel_blocks, output_blocks,
    UNIT: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """One tile of one tap of one group."""
    output_block = tile % output_blocks
    field = tile // output_blocks
    tap = field % taps
    channel_block = field // taps % channel_blocks
    group = field // (taps * channel_blocks)
    k = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    unit = k // UNIT
    within = unit % chunks * UNIT + k % UNIT
    channel = unit // chunks * section + within
    output = output_block * OUTPUTS + tl.arange(0, OUTPUTS)
    from_ = weight + (group * outputs + output).to(tl.int64)[None, :] * w_o
    from_ += channel.to(tl.int64)[:, None] * w_c + tap // taps_x * w_y + tap % taps_x * w_x
    real = ((unit < units) & (within < section))[:, None] & (output < outputs)[None, :]
    values = tl.load(from_, mask=real, other=0.0)
    line = field.to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(weights + line[:, None] * (output_blocks * OUTPUTS) + output[None, :], values)


@triton.jit
def _pack(
    x, weight, packed, weights, x_b, x_c, x_y, x_x, w_o, w_c, w_y, w_x,
    height, width, section, chunks, units, groups, per_group, outputs, taps, taps_x,
    parts, image_programs, channel_blocks, output_blocks,
    UNIT: tl.constexpr, PLACES: tl.constexpr, MARGIN: tl.constexpr,
    CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """The first programs pack the image, the others the weights."""
    program = tl.program_id(0)
    if program < image_programs:
        _pack_image(
            x, packed, program % parts, program // parts, x_b, x_c, x_y, x_x,
            height, width, section, chunks, groups * units, UNIT, PLACES, MARGIN,
        )  # fmt: skip
    else:
        _pack_weights(
            weight, weights, program - image_programs, w_o, w_c, w_y, w_x,
            section, chunks, units, per_group, outputs, taps, taps_x,
            channel_blocks, output_blocks, UNIT, CHANNELS, OUTPUTS,
        )  # fmt: skip


@triton.jit
def _split(start, shift, size):
    """Split start + shift into an integer in [-2, size] and a fraction in [0, 1), both in float32.

    The start is an integer, so the fraction is that of the shift and a large start costs no
    precision.
    """
    near = tl.minimum(tl.maximum(shift, -2.0 - start), size - start)
    whole = tl.floor(near)
    return start + whole, near - whole


@triton.jit
def _sample(corner, row, upper, lower, right, lost, real, UNIT: tl.constexpr):
    """Bilinear samples of the four pixels from `corner` on: [units, pixels, UNIT] float32."""
    a = tl.load(corner, mask=real, other=0.0).to(tl.float32)
    b = tl.load(corner + UNIT, mask=real, other=0.0).to(tl.float32)
    c = tl.load(corner + row, mask=real, other=0.0).to(tl.float32)
    d = tl.load(corner + (row + UNIT), mask=real, other=0.0).to(tl.float32)
    left = 1.0 - right
    sums = a * (upper * left + lost)[:, :, None]
    sums += b * (upper * right)[:, :, None]
    sums += c * (lower * left)[:, :, None]
    return sums + d * (lower * right)[:, :, None]


@triton.jit
def _convolve(
    packed, weights, offset, mask, bias, out,
    offset_b, offset_c, offset_y, offset_x, mask_b, mask_c, mask_y, mask_x,
    height, width, out_width, pixels, section, side, chunks, units, groups, outputs,
    taps_y, taps_x, stride_y, stride_x, top, left, dilation_y, dilation_x,
    pixel_blocks, channel_blocks, output_blocks,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
    MARGIN: tl.constexpr, MASKED: tl.constexpr, BIASED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Convolve a tile of pixels of one image with a tile of outputs of one group.

    WHOLE  whether the units of a group fill every block of channels
    """
    UNITS: tl.constexpr = CHANNELS // UNIT
    program = tl.program_id(0)
    output_block = program // pixel_blocks % output_blocks
    group = program // (pixel_blocks * output_blocks) % groups
    image = (program // (pixel_blocks * output_blocks * groups)).to(tl.int64)
    pixel = program % pixel_blocks * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    pixel_y, pixel_x = pixel // out_width, pixel % out_width
    offset += image * offset_b
    mask += image * mask_b
    in_offset = (pixel_y * offset_y + pixel_x * offset_x)[None, :]
    in_mask = (pixel_y * mask_y + pixel_x * mask_x)[None, :]
    start_y = (pixel_y * stride_y - top).to(tl.float32)[None, :]
    start_x = (pixel_x * stride_x - left).to(tl.float32)[None, :]
    row = (width + 2 * MARGIN) * UNIT
    plane = (height + 2 * MARGIN) * row
    packed += (image * groups + group) * units * plane + MARGIN * (row + UNIT)
    output = output_block * OUTPUTS + tl.arange(0, OUTPUTS)
    pitch = output_blocks * OUTPUTS
    weights += (group * channel_blocks * taps_y * taps_x).to(tl.int64) * CHANNELS * pitch
    in_tile = tl.arange(0, CHANNELS)[:, None] * pitch + output[None, :]
    sums = tl.zeros((PIXELS, OUTPUTS), dtype=tl.float32)
    for block in range(channel_blocks):
        unit = block * UNITS + tl.arange(0, UNITS)
        real = inside[None, :] if WHOLE else (unit < units)[:, None] & inside[None, :]
        offset_group = (group * units + unit) // chunks * section // side
        field = (offset_group * taps_y * taps_x)[:, None]
        of_offset, of_mask = 2 * field * offset_c + in_offset, field * mask_c + in_mask
        origin = (unit * plane)[:, None]
        for tap_y in range(taps_y):
            for tap_x in range(taps_x):
                tap = tap_y * taps_x + tap_x
                shift = offset + 2 * tap * offset_c
                shift_y = tl.load(shift + of_offset, mask=real, other=0.0).to(tl.float32)
                shift += offset_c
                shift_x = tl.load(shift + of_offset, mask=real, other=0.0).to(tl.float32)
                known = (tl.abs(shift_y) < float("inf")) & (tl.abs(shift_x) < float("inf"))
                lost = tl.where(known, 0.0, float("nan"))
                shift_y, shift_x = tl.where(known, shift_y, 0.0), tl.where(known, shift_x, 0.0)
                y, below = _split(start_y + tap_y * dilation_y, shift_y, height)
                x, right = _split(start_x + tap_x * dilation_x, shift_x, width)
                upper = 1.0 - below
                if MASKED:
                    at = mask + tap * mask_c + of_mask
                    strength = tl.load(at, mask=real, other=0.0).to(tl.float32)
                    upper, below = upper * strength, below * strength
                cell = y.to(tl.int32) * row + x.to(tl.int32) * UNIT + origin
                corner = packed + cell[:, :, None] + tl.arange(0, UNIT)[None, None, :]
                samples = _sample(
                    corner, row, upper, below, right, lost, real[:, :, None], UNIT
                )  # fmt: skip
                samples = tl.permute(samples.to(packed.dtype.element_ty), (1, 0, 2))
                samples = tl.reshape(samples, (PIXELS, CHANNELS))
                sums = tl.dot(samples, tl.load(weights + in_tile), sums, input_precision="ieee")
                weights += CHANNELS * pitch
    real_output = output < outputs
    if BIASED:
        each = tl.load(bias + group * outputs + output, mask=real_output, other=0.0)
        sums += each.to(tl.float32)[None, :]
    to = out + ((image * groups + group) * outputs + output)[None, :] * pixels + pixel[:, None]
    tl.store(to, sums.to(out.dtype.element_ty), mask=inside[:, None] & real_output[None, :])


def _constants(config: Config, unit: int, outputs: int) -> dict[str, int]:
    """Compile-time constants of both kernels; `outputs` is the number of outputs of a group."""
    widest = max(16, min(config.outputs, 1 << (outputs - 1).bit_length()))
    return {"UNIT": unit, "CHANNELS": config.channels, "OUTPUTS": widest, "MARGIN": MARGIN}


def _places(unit: int) -> int:
    """Packed pixels per program of the first kernel."""
    return PACKED // unit


def unsupported(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    padding: Pair = 0,
    groups: int = 1,
    **_: Any,
) -> str | None:
    if x.dtype not in DTYPES:
        return f"wants float32, float16 or bfloat16, given {x.dtype}"
    reason = side_unsupported(x, padding)
    if reason is not None:
        return reason
    shape = packing_of(x, offset, weight, groups, None).image_shape(x, groups)
    out = weight.shape[0] * offset.shape[2:].numel()
    spans = [_span(tensor) for tensor in (offset, mask) if tensor is not None]
    if max(torch.Size(shape[1:]).numel(), out, *spans) >= MOST_ELEMENTS:
        return "wants fewer than 2^31 elements per image in every tensor"
    return triton_unsupported(x, offset, weight, bias, mask)


def _span(tensor: torch.Tensor) -> int:
    """Return the extent of one image in memory, in elements."""
    sizes = zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
    return 1 + sum((size - 1) * step for size, step in sizes)


@on_its_device
def run(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> torch.Tensor:
    size = (x.shape[0], weight.shape[0], *offset.shape[2:])
    out = torch.empty(size, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    config = for_chip(CONFIGS, x.device)
    packing = packing_of(x, offset, weight, groups, None)
    outputs = weight.shape[0] // groups
    constants = _constants(config, packing.unit, outputs)
    blocks = {
        "channel_blocks": triton.cdiv(packing.units * packing.unit, config.channels),
        "output_blocks": triton.cdiv(outputs, constants["OUTPUTS"]),
    }
    packed, weights = _run_pack(x, weight, groups, packing, constants, blocks)
    pixels = out.shape[2] * out.shape[3]
    pixel_blocks = triton.cdiv(pixels, config.pixels)
    strength = offset if mask is None else mask
    (stride_y, stride_x), (top, left), (dilation_y, dilation_x) = map(
        as_pair, (stride, padding, dilation)
    )
    _convolve[(pixel_blocks * blocks["output_blocks"] * groups * x.shape[0],)](
        packed, weights, offset, strength, x if bias is None else bias.contiguous(), out,
        *offset.stride(), *strength.stride(), x.shape[2], x.shape[3], out.shape[3], pixels,
        packing.section, packing.side, packing.chunks, packing.units, groups, outputs,
        weight.shape[2], weight.shape[3], stride_y, stride_x, top, left, dilation_y, dilation_x,
        pixel_blocks, **blocks, **constants, PIXELS=config.pixels,
        MASKED=mask is not None, BIASED=bias is not None,
        WHOLE=packing.units * packing.unit % config.channels == 0,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out


def _run_pack(
    x: torch.Tensor,
    weight: torch.Tensor,
    groups: int,
    packing: Packing,
    constants: dict[str, int],
    blocks: dict[str, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the packed image and the packed weights."""
    depth = blocks["channel_blocks"] * constants["CHANNELS"]
    wide = blocks["output_blocks"] * constants["OUTPUTS"]
    like: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
    packed = torch.empty(packing.image_shape(x, groups), **like)
    weights = torch.empty(groups, packing.taps * depth, wide, **like)
    places = _places(packing.unit)
    parts = triton.cdiv(packed.shape[2] * packed.shape[3], places)
    image_programs = x.shape[0] * packed.shape[1] * parts
    tiles = groups * packing.taps * blocks["channel_blocks"] * blocks["output_blocks"]
    _pack[(image_programs + tiles,)](
        x, weight, packed, weights, *x.stride(), *weight.stride(), x.shape[2], x.shape[3],
        packing.section, packing.chunks, packing.units, groups, x.shape[1] // groups,
        weight.shape[0] // groups, packing.taps, weight.shape[3], parts, image_programs,
        **blocks, **constants, PLACES=places, num_warps=4,
    )  # fmt: skip
    return packed, weights


def builds() -> tuple[Build, ...]:
    """Both kernels for offset groups of 8 channels (IMCNet), and for one of 64 with a mask."""
    forms = (torch.float16, 8, False), (torch.bfloat16, 64, True), (torch.float32, 8, False)
    return tuple(
        build
        for config, chips in chips_by(CONFIGS).items()
        for dtype, unit, masked in forms
        for build in _builds_of(dtype, unit, masked, config, chips)
    )


def _builds_of(
    dtype: torch.dtype, unit: int, masked: bool, config: Config, chips: tuple[int, ...]
) -> list[Build]:
    constants: dict[str, Any] = _constants(config, unit, 64)
    element = DTYPES[dtype]
    name = f"{element} {config.pixels}x{config.channels}x{config.outputs} unit {unit}"

    def signature(kernel: Any, constexprs: dict[str, Any]) -> dict[str, str]:
        pointers = ("x", "weight", "packed", "weights", "offset", "mask", "bias", "out")
        names = [n for n in kernel.arg_names if n not in constexprs]
        return {n: f"*{element}" if n in pointers else "i32" for n in names}

    pack = {**constants, "PLACES": _places(unit), "x_x": 1, "chunks": 1, "groups": 1, "w_x": 1}
    convolve = {
        **constants, "PIXELS": config.pixels, "MASKED": masked, "BIASED": True, "WHOLE": True,
        "offset_x": 1, "mask_x": 1, "chunks": 1, "groups": 1, "stride_y": 1, "stride_x": 1,
        "top": 1, "left": 1, "dilation_y": 1, "dilation_x": 1,
    }  # fmt: skip
    return [
        Build(f"pack {name}", _pack, signature(_pack, pack), pack, 4, 3, chips, False),
        Build(
            f"convolve {name}", _convolve, signature(_convolve, convolve), convolve,
            config.warps, config.stages, chips, dtype != torch.float32, ("outputs", "pixels"),
        ),
    ]  # fmt: skip
