"""ResNet: torchvision's names, its number of parameters, channels, strides and dilation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vosengine.models.backbone import ResNet, initialise

BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
DEPTHS = pytest.mark.parametrize("depth", list(BLOCKS))


def torchvision_shapes(depth: str, width: int = 64, layers: int = 3) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's state dict up to that layer."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_and_norm(conv: str, norm: str, c_in: int, c_out: int, size: int) -> None:
        shapes[f"{conv}.weight"] = (c_out, c_in, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (c_out,)
        shapes[f"{norm}.num_batches_tracked"] = ()

    bottleneck = depth in ("resnet50", "resnet101")
    conv_and_norm("conv1", "bn1", 3, width, 7)
    c_in = width
    for stage, blocks in enumerate(BLOCKS[depth][:layers], start=1):
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
@pytest.mark.slow
def test_resnet_has_torchvisions_names_and_shapes(depth: str) -> None:
    with torch.device("meta"):
        assert shapes_of(ResNet(depth)) == torchvision_shapes(depth)
        for kind in ("strided", "dilated"):
            whole = shapes_of(ResNet(depth, layer4=kind))
            assert whole == torchvision_shapes(depth, layers=4)
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
    assert pyramid.r5 is None
    for level, channels, stride in zip(pyramid[:3], net.channels, (4, 8, 16), strict=True):
        assert level.shape == (2, channels, 64 // stride, 96 // stride)


@DEPTHS
@pytest.mark.parametrize(("kind", "stride"), [("strided", 32), ("dilated", 16)])
def test_layer4_strides_or_is_dilated(depth: str, kind: str, stride: int) -> None:
    net = ResNet(depth, width=4, layer4=kind).eval()
    with torch.no_grad():
        pyramid = net(torch.rand(2, 3, 64, 96))
    assert len(net.channels) == 4
    assert pyramid.r5.shape == (2, net.channels[3], 64 // stride, 96 // stride)
    assert pyramid.r4.shape[2:] == (4, 6)
    assert net.layer4 is not None
    spread = [conv.dilation[0] for conv in net.layer4.modules() if isinstance(conv, nn.Conv2d)]
    wide = {"strided": 1, "dilated": 2}[kind]
    # torchvision: the first block of a dilated layer has the dilation of the layer before.
    later = [conv.dilation for block in net.layer4[1:] for conv in (block.conv2,)]
    assert net.layer4[0].conv2.dilation == (1, 1)
    assert later == [(wide, wide)] * (BLOCKS[depth][3] - 1)
    assert max(spread) == wide


@DEPTHS
def test_random_weights_neither_vanish_nor_explode(depth: str) -> None:
    torch.manual_seed(0)
    net = ResNet(depth, width=16, layer4="strided").eval()
    initialise(net)
    with torch.no_grad():
        levels = net(torch.randn(1, 3, 64, 64))
    assert all(0.3 < float(level.std()) < 30 for level in levels)


def test_a_bottlenecks_stride_is_on_its_3x3() -> None:
    with torch.device("meta"):
        first = ResNet("resnet50").layer2[0]
    assert [first.conv1.stride, first.conv2.stride, first.conv3.stride] == [(1, 1), (2, 2), (1, 1)]
    assert first.downsample[0].stride == (2, 2)
