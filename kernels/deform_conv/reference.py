"""`deform_conv` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch.nn import functional

from ..shapes import FLOATS, ShapeError, check, check_dtype

Pair: TypeAlias = "int | tuple[int, int]"


def contract(
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
) -> None:
    arguments = {
        "x": (x, "B C H W"),
        "offset": (offset, "B 2*G*kh*kw Ho Wo"),
        "weight": (weight, "O C/groups kh kw"),
    }
    if bias is not None:
        arguments["bias"] = (bias, "O")
    if mask is not None:
        arguments["mask"] = (mask, "B G*kh*kw Ho Wo")
    sizes = check(arguments)
    check_dtype("x", x, *FLOATS)
    for name, (tensor, _) in arguments.items():
        check_dtype(name, tensor, x.dtype)
    _check_pair("stride", stride, 1)
    _check_pair("padding", padding, 0)
    _check_pair("dilation", dilation, 1)
    for name, letters in (("x", ("C", "H", "W")), ("weight", ("O", "kh", "kw"))):
        for letter in letters:
            if sizes[letter] == 0:
                raise ShapeError(f"{name}: wanted {letter} of at least 1, given 0")
    wanted = output_size(x, weight, stride, padding, dilation)
    _check_channels(sizes, groups)
    given = sizes["Ho"], sizes["Wo"]
    if wanted != given:
        raise ShapeError(f"offset: wanted [Ho, Wo] = {list(wanted)}, given {list(given)}")


def _check_pair(name: str, option: Pair, least: int) -> None:
    numbers = as_pair(option)
    if len(numbers) != 2 or not all(isinstance(n, int) and n >= least for n in numbers):
        raise ValueError(
            f"{name}: wanted an int of at least {least}, or two as (y, x), given {option!r}"
        )


def _check_channels(sizes: dict[str, int], groups: int) -> None:
    channels, per_group, out = sizes["C"], sizes["C/groups"], sizes["O"]
    if groups < 1:
        raise ValueError(f"groups: wanted 1 or more, given {groups}")
    if channels % groups or out % groups:
        raise ShapeError(
            f"groups: wanted a divisor of C = {channels} (x) and O = {out} (weight), given {groups}"
        )
    if per_group != channels // groups:
        raise ShapeError(
            f"weight: wanted C/groups = {channels // groups} with C = {channels} (from x) and "
            f"groups = {groups}, given {per_group}"
        )
    taps, shifts = sizes["kh"] * sizes["kw"], sizes["2*G*kh*kw"]
    offset_groups, rest = divmod(shifts, 2 * taps)
    if rest or offset_groups < 1 or channels % offset_groups:
        raise ShapeError(
            f"offset: wanted 2 * G * {taps} channels (kh * kw = {taps} from weight) with G a "
            f"divisor of C = {channels} (from x), given {shifts}"
        )
    strengths = sizes.get("G*kh*kw", shifts // 2)
    if strengths != shifts // 2:
        raise ShapeError(
            f"mask: wanted G*kh*kw = {shifts // 2} channels (half of offset's), given {strengths}"
        )


def as_pair(option: Pair) -> tuple[int, int]:
    return option if isinstance(option, tuple) else (option, option)


def output_size(
    x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[int, int]:
    """[Ho, Wo] of a convolution.

    Raises  ShapeError where the kernel is larger than the padded input.
    """
    steps, margins, spreads = as_pair(stride), as_pair(padding), as_pair(dilation)
    padded = [x.shape[2 + axis] + 2 * margins[axis] for axis in (0, 1)]
    spans = [spreads[axis] * (weight.shape[2 + axis] - 1) + 1 for axis in (0, 1)]
    if spans[0] > padded[0] or spans[1] > padded[1]:
        raise ShapeError(
            f"weight: wanted a kernel that fits into the padded input of {padded[0]} x "
            f"{padded[1]}, given one that spans {spans[0]} x {spans[1]}"
        )
    height, width = ((padded[axis] - spans[axis]) // steps[axis] + 1 for axis in (0, 1))
    return height, width


def deform_conv(
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
    """Deformable convolution v1 and v2: every tap of every output pixel is displaced by an offset.

        at(p, k)  = p * stride - padding + k * dilation + offset[g, k, p]     (y, x), k = (i, j)
        out[o, p] = bias[o] + sum over c, k of weight[o, c, k] * mask[g, k, p] * x[c, at(p, k)]

    where g is c's offset group. x is sampled bilinearly, with zeros beyond the image at any
    distance. Where an offset is NaN or infinite, the sample is NaN.

    x         [B, C, H, W]             any strides
    offset    [B, 2*G*kh*kw, Ho, Wo]   pixels; G offset groups of C / G channels, G from its size;
                                       per offset group and tap (row by row), y before x
    weight    [O, C/groups, kh, kw]    kernels of any size, also even
    bias      [O]                      None means 0
    mask      [B, G*kh*kw, Ho, Wo]     modulation of v2, applied as is (no sigmoid); None means 1
    stride, padding, dilation          an int, or two as (y, x)
    groups    groups of the convolution: an output channel reads C / groups channels
    returns   [B, O, Ho, Wo]           new, contiguous, dtype of x

    Dtype   float16, bfloat16, float32 or float64, one for all; positions, samples and sums in at
            least float32.
    Device  one for all; no synchronisation with the host; inputs unchanged; differentiable in
            every tensor.
    Empty   B = 0 returns [0, O, Ho, Wo]; any other size of 0 is an error.
    Error   at most twice that of this function in the same dtype, against itself in float64.
    Raises  ShapeError, naming argument, wanted and given; ValueError for an option.
    Source  Deformable convolution v1 (2017) and, with mask, v2 (2019); layout, border and bilinear
            rule of ONNX's DeformConv-19.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    (batch, channels), (height, width) = x.shape[:2], offset.shape[2:]
    outputs, per_group, _, taps_x = weight.shape
    taps = weight.shape[2] * taps_x
    offset_groups = offset.shape[1] // (2 * taps)
    split = batch * offset_groups  # one image per offset group
    image = x.to(wide).reshape(split, channels // offset_groups, *x.shape[2:])
    shift = offset.to(wide).reshape(split, taps, 2, height, width)
    (step_y, step_x), (top, left), (spread_y, spread_x) = map(as_pair, (stride, padding, dilation))
    rows = torch.arange(height, device=x.device, dtype=wide)[:, None] * step_y - top
    columns = torch.arange(width, device=x.device, dtype=wide)[None, :] * step_x - left
    samples = []
    for tap in range(taps):
        i, j = divmod(tap, taps_x)
        y = rows + i * spread_y + shift[:, tap, 0]
        samples.append(_sample(image, y, columns + j * spread_x + shift[:, tap, 1]))
    sampled = torch.stack(samples, dim=2)  # [B * G, C / G, taps, Ho, Wo]
    if mask is not None:
        sampled = sampled * mask.to(wide).reshape(split, 1, taps, height, width)
    sampled = sampled.reshape(batch, groups, per_group, taps, height, width)
    kernels = weight.to(wide).reshape(groups, outputs // groups, per_group, taps)
    out = torch.einsum("bnckyx,nock->bnoyx", sampled, kernels).flatten(1, 2)
    if bias is not None:
        out = out + bias.to(wide)[:, None, None]
    return out.to(x.dtype).contiguous()


def _sample(image: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """image [n, c, H, W] at y, x [n, Ho, Wo] in pixels -> [n, c, Ho, Wo]."""
    lost = ~(torch.isfinite(y) & torch.isfinite(x))
    normalised = []  # grid_sample has pixel i at (2 i + 1) / size - 1
    for position, size in ((x, image.shape[3]), (y, image.shape[2])):
        near = position.masked_fill(lost, -2).clamp(-2, size + 1)
        normalised.append((2 * near + 1) / size - 1)
    grid = torch.stack(normalised, dim=-1)
    sampled = functional.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
    return sampled.masked_fill(lost[:, None], torch.nan)
