"""Independent implementation of MUNet over ResNet-18 in torch functions, for the tests.

Follows the paper's sections 3.1 to 3.3 step by step: objects share no computation, the cost volume
is stored, the motion feature has the width of Table 1. Works on a flat dict of tensors under
vosengine's state-dict names, in their dtype; nothing of vosengine is imported.
Letters: O objects, T memory frames, h x w the stride-16 grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = w[f"{name}.weight"]
    return functional.conv2d(x, weight, w.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    parts = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, var = (w[f"{name}.{part}"][:, None, None] for part in parts)
    return gamma * (x - mean) / torch.sqrt(var + 1e-5) + beta


def resnet18(w: Weights, net: str, frame: Tensor, masks: Tensor | None = None) -> list[Tensor]:
    """r2, r3, r4 [B, C, h, w]."""
    x = conv(w, f"{net}.conv1", frame, 2)
    if masks is not None:
        x = x + conv(w, f"{net}.mask_conv", masks, 2)
    x = functional.max_pool2d(torch.relu(norm(w, f"{net}.bn1", x)), 3, 2, 1)
    levels = []
    for stage in (1, 2, 3):
        for block in (f"{net}.layer{stage}.0", f"{net}.layer{stage}.1"):
            stride = 2 if stage > 1 and block.endswith(".0") else 1
            y = torch.relu(norm(w, f"{block}.bn1", conv(w, f"{block}.conv1", x, stride)))
            y = norm(w, f"{block}.bn2", conv(w, f"{block}.conv2", y))
            if f"{block}.downsample.0.weight" in w:
                x = norm(w, f"{block}.downsample.1", conv(w, f"{block}.downsample.0", x, stride))
            x = torch.relu(x + y)
        levels.append(x)
    return levels


def res_block(w: Weights, name: str, x: Tensor) -> Tensor:
    return x + conv(w, f"{name}.conv2", torch.relu(conv(w, f"{name}.conv1", torch.relu(x))))


def decode(w: Weights, name: str, x: Tensor, r3: Tensor, r2: Tensor) -> Tensor:
    """STM's decoder, computed whole for every object: two logits [O, 2, 4h, 4w]."""
    m = res_block(w, f"{name}block4", conv(w, f"{name}conv", x))
    for level, skip in ((3, r3), (2, r2)):
        side = conv(w, f"{name}skip{level}.conv", skip.expand(len(x), -1, -1, -1))
        side = res_block(w, f"{name}skip{level}.block", side)
        enlarged = functional.interpolate(m, scale_factor=2, mode="bilinear", align_corners=False)
        m = res_block(w, f"{name}block{level}", side + enlarged)
    return conv(w, f"{name}predict", torch.relu(m))


def motion_of(now: Tensor, before: Tensor, radius: int, temperature: float) -> Tensor:
    """(d_x, d_y, confidence) [1, 3, h, w] of features [1, C, h, w]; beyond the frame C = 0."""
    _, channels, height, width = now.shape
    g_now, g_before = (x / x.norm(dim=1, keepdim=True) for x in (now, before))
    side = 2 * radius + 1
    windows = functional.unfold(g_before, side, padding=radius).view(channels, side**2, -1)
    cost = (windows * g_now.view(channels, 1, -1)).sum(dim=0)  # [side^2, h w]
    weights = torch.softmax(temperature * cost, dim=0).view(side, side, -1)
    offsets = torch.arange(-radius, radius + 1, dtype=now.dtype)
    d_x = (weights * offsets[None, :, None]).sum(dim=(0, 1))
    d_y = (weights * offsets[:, None, None]).sum(dim=(0, 1))
    return torch.stack((d_x, d_y, cost.amax(dim=0))).view(1, 3, height, width)


def attend(w: Weights, motion: Tensor, semantic: Tensor, fusion: str) -> Tensor:
    x = motion
    for layer in range(7):
        x = torch.relu(conv(w, f"motion.layers.{layer}", x))
    feature = conv(w, "motion.expand", x)
    if fusion == "add":
        return semantic + feature
    return semantic * torch.sigmoid(conv(w, "motion.attention", feature)) + semantic


def transcribe(
    w: Weights,
    frames: list[Tensor],
    masks: list[Tensor],
    *,
    radius: int = 12,
    fusion: str = "attention",
) -> Tensor:
    """Two logits per object [O, 2, 4h, 4w] for the last of the frames [1, 3, H, W], given the masks
    [O, H, W] of all frames before it, every one of which is remembered."""
    keys, values = [], []
    for frame, planes in zip(frames[:-1], masks, strict=True):
        r4 = resnet18(w, "reference_encoder", frame, planes[:, None])[2]
        keys.append(conv(w, "reference_head.key", r4))
        values.append(conv(w, "reference_head.value", r4))
    r2, r3, semantic = resnet18(w, "query_encoder", frames[-1])
    before = resnet18(w, "query_encoder", frames[-2])[2]
    reduced = [conv(w, "reduce", x) for x in (semantic, before)]
    motion = motion_of(*reduced, radius, float(w["temperature"]))
    feature = attend(w, motion, semantic, fusion)
    key, value = conv(w, "query_head.key", feature), conv(w, "query_head.value", feature)
    k, v = torch.stack(keys, dim=2).flatten(2), torch.stack(values, dim=2).flatten(2)
    scores = k.transpose(1, 2) @ key.flatten(2) / key.shape[1] ** 0.5  # O Thw hw
    readout = (v @ scores.softmax(dim=1)).view(-1, *value.shape[1:])
    joined = torch.cat((readout, value.expand_as(readout)), dim=1)
    return decode(w, "decoder.", joined, r3, r2)
