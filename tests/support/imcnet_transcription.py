"""Independent implementation of IMCNet (Xi et al.) in torch functions, for the tests.

Follows the official release, step by step, on a flat dict of tensors under its state-dict names.
`transcribe` computes in float64; single steps need weights in the dtype of their features. No
state is kept between calls, and nothing of vosengine is imported.
Letters: C channels, h x w a level's grid, n = h * w of the coarsest one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

WIDTH, DEFORM_GROUPS, TAPS = 64, 8, 9
BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BASIC = ("resnet18", "resnet34")
BACKBONE = "feature_extractor.backbone"
CASCADE = ("_0", "_1", "_2", "")  # the four alignments; the first layer's name has no underscore


def _add_conv(shapes: Shapes, name: str, c_in: int, c_out: int, size: int, bias: bool) -> None:
    shapes[f"{name}.weight"] = (c_out, c_in, size, size)
    if bias:
        shapes[f"{name}.bias"] = (c_out,)


def _add_norm(shapes: Shapes, name: str, channels: int) -> None:
    for part in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{name}.{part}"] = (channels,)
    shapes[f"{name}.num_batches_tracked"] = ()


def _add_res_block(shapes: Shapes, name: str) -> None:  # 64 -> 64, hence never a downsample
    _add_conv(shapes, f"{name}.conv1", WIDTH, WIDTH, 3, bias=True)
    _add_conv(shapes, f"{name}.conv2", WIDTH, WIDTH, 3, bias=True)


def backbone_shapes(depth: str) -> Shapes:
    """torchvision's ResNet without its classifier."""
    shapes: Shapes = {}
    _add_conv(shapes, f"{BACKBONE}.conv1", 3, 64, 7, bias=False)
    _add_norm(shapes, f"{BACKBONE}.bn1", 64)
    c_in = 64
    for stage, count in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        c_out = width if depth in BASIC else 4 * width
        for index in range(count):
            block = f"{BACKBONE}.layer{stage + 1}.{index}"
            basic = ((c_in, width, 3), (width, width, 3))
            bottleneck = ((c_in, width, 1), (width, width, 3), (width, c_out, 1))
            for i, (before, after, size) in enumerate(
                basic if depth in BASIC else bottleneck, start=1
            ):
                _add_conv(shapes, f"{block}.conv{i}", before, after, size, bias=False)
                _add_norm(shapes, f"{block}.bn{i}", after)
            if index == 0 and (stage > 0 or c_in != c_out):
                _add_conv(shapes, f"{block}.downsample.0", c_in, c_out, 1, bias=False)
                _add_norm(shapes, f"{block}.downsample.1", c_out)
            c_in = c_out
    return shapes


def official_shapes(depth: str, frames: int = 3) -> Shapes:
    """Every key of the official state dict and its shape."""
    shapes = backbone_shapes(depth)
    c0, c1, c2, c3 = (c if depth in BASIC else 4 * c for c in (64, 128, 256, 512))
    stacked = frames * WIDTH
    _add_conv(shapes, "K_r3.Key", c3, WIDTH, 3, bias=True)
    for side in ("left", "right"):
        _add_conv(shapes, f"co_att_x3.{side}_transform", stacked, stacked, 1, bias=True)
    _add_conv(shapes, "decoder.head", c3, WIDTH, 3, bias=True)
    _add_res_block(shapes, "decoder.l3")
    for level, channels in ((2, c2), (1, c1), (0, c0)):
        _add_conv(shapes, f"decoder.l{level}_head", channels, WIDTH, 3, bias=True)
        for block in (f"l{level}", f"e{level}", f"pd{level}.0"):
            _add_res_block(shapes, f"decoder.{block}")
        _add_conv(shapes, f"decoder.pd{level}.1", WIDTH, 1, 1, bias=True)
    for place in CASCADE:
        _add_conv(shapes, f"align.cr{place.strip('_')}", 2 * WIDTH, WIDTH, 3, bias=True)
        _add_conv(shapes, f"align.off2d{place}", WIDTH, 2 * DEFORM_GROUPS * TAPS, 3, bias=True)
        _add_conv(shapes, f"align.dconv{place}", WIDTH, WIDTH, 3, bias=True)
    for name, c_in, size in (
        ("temporal_attn1", WIDTH, 3), ("temporal_attn2", WIDTH, 3), ("feat_fusion", stacked, 1),
        ("spatial_attn1", stacked, 1), ("spatial_attn2", 2 * WIDTH, 1), ("spatial_attn3", WIDTH, 3),
        ("spatial_attn4", WIDTH, 1), ("spatial_attn5", WIDTH, 3), ("spatial_attn_l1", WIDTH, 1),
        ("spatial_attn_l2", 2 * WIDTH, 3), ("spatial_attn_l3", WIDTH, 3),
        ("spatial_attn_add1", WIDTH, 1), ("spatial_attn_add2", WIDTH, 1),
    ):  # fmt: skip
        _add_conv(shapes, f"fusion.{name}", c_in, WIDTH, size, bias=True)
    _add_res_block(shapes, "segmentation.reslayer")
    _add_conv(shapes, "segmentation.predlayer", WIDTH, 1, 1, bias=True)
    return shapes


# Gains relative to He scaling: with 1 the attention is one-hot, sigmoids saturate, or the alignment
# samples far away. Keys are prefixes of the last part of a name.
GAINS = {
    "Key": 0.12,
    "head": 0.02,  # its input is a product of three activations
    "l2_head": 0.5,
    "l1_head": 0.5,
    "l0_head": 0.5,
    "off2d": 0.4,
    "dconv": 0.7,  # no activation follows, so that sqrt(1 / fan_in) keeps the scale
    "temporal_attn": 0.3,
    "spatial_attn5": 0.5,
    "spatial_attn_add": 0.5,
    "predlayer": 0.4,
}


def random_state(depth: str, seed: int, frames: int = 3) -> Weights:
    """Return seeded float32 values for every official key, scaled so that no layer saturates."""
    generator = torch.Generator().manual_seed(seed)
    state: Weights = {}
    for name, shape in official_shapes(depth, frames).items():
        module, _, part = name.rpartition(".")
        layer = module.split(".")[-1]
        if part == "num_batches_tracked":
            state[name] = torch.tensor(1, dtype=torch.int64)
        elif len(shape) == 4:  # a convolution: He, std = sqrt(2 / fan_in)
            gain = math.sqrt(2.0 / math.prod(shape[1:]))
            gain *= next((gain for start, gain in GAINS.items() if layer.startswith(start)), 1.0)
            if layer == "conv2" and not module.startswith(BACKBONE):
                gain *= 0.3  # the last conv of a residual branch
            state[name] = gain * torch.randn(shape, generator=generator)
        elif part == "running_var":
            state[name] = 0.8 + 0.4 * torch.rand(shape, generator=generator)
        elif part == "weight":  # of a batch norm
            state[name] = 0.8 + 0.4 * torch.rand(shape, generator=generator)
            if layer == ("bn2" if depth in BASIC else "bn3"):  # a branch of one of many blocks
                stage = int(module.split("layer")[1][0])
                state[name] *= 0.5 / math.sqrt(BLOCKS[depth][stage - 1])
        else:  # running_mean and every bias
            state[name] = 0.1 * torch.randn(shape, generator=generator)
    return state


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """A convolution with "same" padding (every one in IMCNet has padding = size // 2)."""
    weight = w[f"{name}.weight"]
    return functional.conv2d(x, weight, w.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """Batch norm in eval mode: gamma (x - mean) / sqrt(var + 1e-5) + beta."""
    parts = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, var = (w[f"{name}.{part}"][:, None, None] for part in parts)
    return gamma * (x - mean) / torch.sqrt(var + 1e-5) + beta


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Resize bilinearly (align_corners) to the grid of another tensor."""
    return functional.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


def res_block(w: Weights, name: str, x: Tensor) -> Tensor:
    """x + conv2(relu(conv1(relu x)))."""
    return x + conv(w, f"{name}.conv2", torch.relu(conv(w, f"{name}.conv1", torch.relu(x))))


def residual(w: Weights, block: str, x: Tensor, stride: int) -> Tensor:
    """A block of the backbone: basic (the first conv strides) or bottleneck (the second does)."""
    last = 3 if f"{block}.conv3.weight" in w else 2
    y = x
    for i in range(1, last + 1):
        y = norm(
            w, f"{block}.bn{i}", conv(w, f"{block}.conv{i}", y, stride if i == last - 1 else 1)
        )
        y = y if i == last else torch.relu(y)
    if f"{block}.downsample.0.weight" in w:
        x = norm(w, f"{block}.downsample.1", conv(w, f"{block}.downsample.0", x, stride))
    return torch.relu(x + y)


def levels(w: Weights, frame: Tensor) -> list[Tensor]:
    """r0, r1, r2, r3 at 1/4, 1/8, 1/16, 1/32 of a normalised frame [1, 3, H, W]."""
    x = torch.relu(norm(w, f"{BACKBONE}.bn1", conv(w, f"{BACKBONE}.conv1", frame, 2)))
    x = functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    pyramid = []
    for stage in (1, 2, 3, 4):
        index = 0
        while f"{BACKBONE}.layer{stage}.{index}.conv1.weight" in w:
            stride = 2 if stage > 1 and index == 0 else 1
            x = residual(w, f"{BACKBONE}.layer{stage}.{index}", x, stride)
            index += 1
        pyramid.append(x)
    return pyramid


def similarity(w: Weights, coarsest: list[Tensor]) -> Tensor:
    """ACM: L^T R [n, n] of the frames' keys, stacked by channels."""
    keys = torch.cat([conv(w, "K_r3.Key", r3) for r3 in coarsest], dim=1)
    left = conv(w, "co_att_x3.left_transform", keys)[0].flatten(1)
    right = conv(w, "co_att_x3.right_transform", keys)[0].flatten(1)
    return left.T @ right


def affinity(w: Weights, coarsest: list[Tensor]) -> Tensor:
    """ACM: the similarity's softmax over L's positions [n, n], one for all frames; columns sum
    to 1."""
    return similarity(w, coarsest).softmax(dim=0)


def attend(r3: Tensor, weights: Tensor) -> Tensor:
    """att[:, j] = sum over i of r3[:, i] * weights[i, j]."""
    return (r3.flatten(2) @ weights).view(r3.shape)


def gate(r3: Tensor, att: Tensor) -> Tensor:
    """r3 * att * GAP(att)."""
    return r3 * att * att.mean(dim=(2, 3), keepdim=True)


def activation(gated: Tensor) -> Tensor:
    """The class activation map [1, 1, h, w], from 0 to 1 within the frame."""
    x = torch.relu(gated.mean(dim=1, keepdim=True))
    return (x - x.min()) / (x.max() - x.min() + 1e-6)


def perceive(w: Weights, pyramid: list[Tensor], att: Tensor) -> tuple[Tensor, list[Tensor]]:
    """APM of one frame: its feature [1, 64, h0, w0], and intermediate maps: the activation map,
    then the predictions at levels 2 and 1."""
    gated = gate(pyramid[3], att)
    p = res_block(w, "decoder.l3", conv(w, "decoder.head", gated))
    maps = [activation(gated)]
    for level in (2, 1, 0):
        r = pyramid[level]
        side = conv(w, f"decoder.l{level}_head", r * resize(maps[-1], r))
        p = res_block(
            w, f"decoder.e{level}", resize(p, r) + res_block(w, f"decoder.l{level}", side)
        )
        if level > 0:  # the prediction of level 0 only serves training
            hidden = res_block(w, f"decoder.pd{level}.0", p)
            maps.append(torch.sigmoid(conv(w, f"decoder.pd{level}.1", hidden)))
    return p, maps


def sample(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """x [C, h, w] at rows y and columns z [...], bilinear, 0 beyond the frame: [C, ...]."""
    height, width = x.shape[1:]
    total = x.new_zeros(len(x), *y.shape)
    for row in (y.floor(), y.floor() + 1):
        for column in (z.floor(), z.floor() + 1):
            weight = (1 - (y - row).abs()) * (1 - (z - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = (row.clamp(0, height - 1), column.clamp(0, width - 1))
            total += x[:, place[0].long(), place[1].long()] * (weight * inside)
    return total


def deform_conv(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, groups: int = DEFORM_GROUPS
) -> Tensor:
    """Deformable convolution, version 1 (no modulation), k3: x [1, C, h, w] -> [1, Co, h, w].

    offset  [1, groups * 18, h, w]: per group of channels, per tap in reading order, y then x
    """
    channels, height, width = x.shape[1:]
    y = torch.arange(height, dtype=x.dtype)[:, None]
    z = torch.arange(width, dtype=x.dtype)
    shifts = offset.view(groups, TAPS, 2, height, width)
    columns = []
    for group, part in enumerate(x[0].split(channels // groups)):
        for tap in range(TAPS):
            dy, dz = shifts[group, tap]
            columns.append(sample(part, y + tap // 3 - 1 + dy, z + tap % 3 - 1 + dz))
    gathered = torch.stack(columns).view(groups, TAPS, -1, height, width)
    gathered = gathered.transpose(1, 2).flatten(0, 1)  # [C, 9, h, w]
    out = torch.einsum("oct,cthw->ohw", weight.flatten(2), gathered)
    return (out + bias[:, None, None])[None]


def offsets(w: Weights, place: str, ref: Tensor, feat: Tensor) -> Tensor:
    """Offsets of alignment `place` of CASCADE: [1, 144, h, w]."""
    reduced = conv(w, f"align.cr{place.strip('_')}", torch.cat((ref, feat), dim=1))
    return conv(w, f"align.off2d{place}", reduced)


def align(w: Weights, ref: Tensor, neighbour: Tensor) -> Tensor:
    """Align a neighbour's feature with the centre's in four steps."""
    feat = neighbour
    for place in CASCADE:
        name = f"align.dconv{place}"
        offset = offsets(w, place, ref, feat)
        feat = deform_conv(feat, offset, w[f"{name}.weight"], w[f"{name}.bias"])
    return feat


def pooled(x: Tensor) -> Tensor:
    highest = functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    return torch.cat((highest, functional.avg_pool2d(x, kernel_size=3, stride=2, padding=1)), dim=1)


def fuse(w: Weights, feats: list[Tensor]) -> Tensor:
    """TSC: frames weighted by their similarity to the centre, then spatial attention over two
    coarser levels: [1, 64, h, w]."""

    def layer(name: str, x: Tensor) -> Tensor:
        return conv(w, f"fusion.{name}", x)

    centre = layer("temporal_attn1", feats[len(feats) // 2])
    weighted = []
    for feat in feats:
        likeness = (layer("temporal_attn2", feat) * centre).sum(dim=1, keepdim=True)
        weighted.append(feat * torch.sigmoid(likeness))
    x = torch.cat(weighted, dim=1)
    fused = torch.relu(layer("feat_fusion", x))
    fine = torch.relu(layer("spatial_attn1", x))
    half = torch.relu(layer("spatial_attn2", pooled(fine)))
    quarter = torch.relu(layer("spatial_attn_l1", half))
    quarter = torch.relu(layer("spatial_attn_l2", pooled(quarter)))
    quarter = torch.relu(layer("spatial_attn_l3", quarter))
    half = torch.relu(layer("spatial_attn3", half)) + resize(quarter, half)
    half = torch.relu(layer("spatial_attn4", half))
    attention = layer("spatial_attn5", resize(half, fused))
    added = layer("spatial_attn_add2", torch.relu(layer("spatial_attn_add1", attention)))
    return fused * torch.sigmoid(attention) * 2 + added


def segment(w: Weights, fused: Tensor) -> Tensor:
    """Probability at 1/4 of the frame [1, 1, h, w]."""
    hidden = res_block(w, "segmentation.reslayer", fused)
    return torch.sigmoid(conv(w, "segmentation.predlayer", hidden))


def transcribe(weights: Weights, frames: list[Tensor]) -> Tensor:
    """Probability [1, 1, H, W] in float64 for the middle one of three normalised frames
    [1, 3, H, W], sides multiples of 32."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    pyramids = [levels(w, frame.double()) for frame in frames]
    shared = affinity(w, [pyramid[3] for pyramid in pyramids])
    feats = [perceive(w, pyramid, attend(pyramid[3], shared))[0] for pyramid in pyramids]
    before, centre, after = feats
    fused = fuse(w, [align(w, centre, before), centre, align(w, centre, after)])
    return resize(segment(w, fused), frames[1])
