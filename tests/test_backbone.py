"""ResNet up to layer3: torchvision's names, its number of parameters, channels and strides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vosengine.models.backbone import ResNet

BLOCKS = {
    "resnet18": (2, 2, 2),
    "resnet34": (3, 4, 6),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
}
DEPTHS = pytest.mark.parametrize("depth", list(BLOCKS))


def torchvision_shapes(depth: str, width: int = 64) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's state dict up to layer3."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_and_norm(conv: str, norm: str, c_in: int, c_out: int, size: int) -> None:
        shapes[f"{conv}.weight"] = (c_out, c_in, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (c_out,)
        shapes[f"{norm}.num_batches_tracked"] = ()

    bottleneck = depth in ("resnet50", "resnet101")
    conv_and_norm("conv1", "bn1", 3, width, 7)
    c_in = width
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        inner = width * 2 ** (stage - 1)
        c_out = 4 * inner if bottleneck else inner
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            basic = [(c_in, inner, 3), (inner, inner, 3)]
            wide = [(c_in, inner, 1), (inner, inner, 3), (inner, c_out, 1)]
            for i, sizes in enumerate(wide if bottleneck else basic, start=1):
                conv_and_norm(f"{name}.conv{i}", f"{name}.bn{i}", *sizes)
            if block == 0 and (stage > 1 or bottleneck):
                conv_and_norm(f"{name}.downsample.0", f"{name}.downsample.1", c_in, c_out, 1)
            c_in = c_out
    return shapes


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@DEPTHS
def test_resnet_has_torchvisions_names_and_shapes(depth: str) -> None:
    with torch.device("meta"):
        assert shapes_of(ResNet(depth)) == torchvision_shapes(depth)
        with_masks = shapes_of(ResNet(depth, mask_channels=2))
    assert with_masks.pop("mask_conv.weight") == (64, 2, 7, 7)
    assert with_masks == torchvision_shapes(depth)


def test_resnet50_up_to_layer3_has_the_published_number_of_parameters() -> None:
    def block(c_in: int, width: int, downsample: bool) -> int:
        convs = c_in * width + 9 * width * width + 4 * width * width
        return convs + 12 * width + downsample * (c_in + 2) * 4 * width

    stem = 3 * 64 * 49 + 2 * 64
    layer1 = block(64, 64, True) + 2 * block(256, 64, False)
    layer2 = block(256, 128, True) + 3 * block(512, 128, False)
    layer3 = block(512, 256, True) + 5 * block(1024, 256, False)
    assert stem + layer1 + layer2 + layer3 == 8_543_296
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet("resnet50").parameters()) == 8_543_296


@DEPTHS
def test_resnet_channels_and_strides(depth: str) -> None:
    net = ResNet(depth, width=4).eval()
    expansion = 4 if depth in ("resnet50", "resnet101") else 1
    with torch.no_grad():
        pyramid = net(torch.rand(2, 3, 64, 96))
    assert net.channels == (4 * expansion, 8 * expansion, 16 * expansion)
    for level, channels, stride in zip(pyramid, net.channels, (4, 8, 16), strict=True):
        assert level.shape == (2, channels, 64 // stride, 96 // stride)


def test_a_bottlenecks_stride_is_on_its_3x3() -> None:
    with torch.device("meta"):
        first = ResNet("resnet50").layer2[0]
    assert [first.conv1.stride, first.conv2.stride, first.conv3.stride] == [(1, 1), (2, 2), (1, 1)]
    assert first.downsample[0].stride == (2, 2)
