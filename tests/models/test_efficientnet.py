"""EfficientNet-Lite: against TensorFlow's padding, its published sizes, and its pretraining."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from vosengine.config import LITE
from vosengine.models.backbone import Pyramid
from vosengine.models.efficientnet import (
    EfficientNetLite,
    MBConv,
    Neck,
    normalise_cells,
    pad_same,
    scaled_stages,
)
from vosengine.runtime.network import prepare_network
from vosengine.zoo.registry import build

LITES = ("efficientnet_lite0", "efficientnet_lite2")


def randomised(network: nn.Module) -> nn.Module:
    """With norms that are not the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return network


@pytest.mark.parametrize("side", [16, 17, 31, 32])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_tensorflows(side: int, kernel: int, stride: int) -> None:
    """ceil(side / stride) cells; the first window reaches as far outside as TensorFlow has it."""
    x = torch.arange(1.0, side + 1).expand(1, 1, side, side)
    padded = pad_same(x, kernel, stride)
    cells = -(-side // stride)
    total = max((cells - 1) * stride + kernel - side, 0)
    assert padded.shape[2:] == (side + total, side + total)
    assert int((padded[0, 0, side // 2] == 0).sum()) == total
    assert padded[0, 0, side // 2, total // 2] == 1
    assert functional.conv2d(padded, torch.ones(1, 1, kernel, kernel), stride=stride).shape[2:] == (
        cells,
        cells,
    )


@pytest.mark.parametrize(
    ("depth", "channels", "millions"),
    [
        ("efficientnet_lite0", (24, 40, 112, 320), 4.65),
        ("efficientnet_lite2", (24, 48, 120, 352), 6.09),
    ],
)
def test_channels_and_sizes_are_the_published_ones(
    depth: str, channels: tuple[int, ...], millions: float
) -> None:
    """With the last convolution and the classifier the parameters are as many as published."""
    network = EfficientNetLite(depth, layer4="strided")
    assert network.channels == channels
    count = sum(p.numel() for p in network.parameters())
    last = channels[3] * 1280 + 2 * 1280 + 1281 * 1000
    assert (count + last) / 1e6 == pytest.approx(millions, abs=0.005)
    maps = network(torch.randn(1, 3, 97, 131))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, -(-97 // s), -(-131 // s)) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def test_lite2_is_wider_and_deeper() -> None:
    repeats = [stage[0] for stage in scaled_stages("efficientnet_lite2")]
    assert repeats == [1, 3, 3, 4, 4, 5, 1]
    assert [stage[4] for stage in scaled_stages("efficientnet_lite0")] == [
        16, 24, 40, 80, 112, 192, 320,
    ]  # fmt: skip


def test_dilated_stays_at_stride_16() -> None:
    network = EfficientNetLite("efficientnet_lite0", layer4="dilated")
    r5 = network(torch.randn(1, 3, 64, 96)).r5
    assert r5 is not None
    assert r5.shape == (1, 320, 4, 6)


def test_keys_at_stride_8_join_both_maps() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite("efficientnet_lite0", key_stride=8)
    plain = EfficientNetLite("efficientnet_lite0")
    plain.load_state_dict(network.state_dict())
    frame = torch.randn(1, 3, 64, 96)
    joined, maps = network(frame), plain(frame)
    assert network.channels == (24, 40, 152)
    assert joined.r4.shape == (1, 152, 8, 12)
    torch.testing.assert_close(joined.r4[:, :40], normalise_cells(maps.r3))
    above = functional.interpolate(
        normalise_cells(maps.r4), scale_factor=2, mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(joined.r4[:, 40:], above * (40 / 112) ** 0.5)


def test_mask_channels_that_are_zero_change_nothing() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite("efficientnet_lite0", mask_channels=1)
    assert network.mask_conv is not None
    plain = EfficientNetLite("efficientnet_lite0")
    plain.load_state_dict(network.state_dict(), strict=False)
    frame, masks = torch.randn(1, 3, 32, 32), torch.zeros(2, 1, 32, 32)
    torch.testing.assert_close(network(frame, masks).r4, plain(frame).r4.expand(2, -1, -1, -1))


def test_norms_keep_their_statistics_in_training() -> None:
    network = EfficientNetLite("efficientnet_lite0").train()
    frames = torch.randn(2, 3, 32, 32)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    one = network(frames[:1]).r4
    torch.testing.assert_close(network(frames).r4[:1], one, rtol=1e-4, atol=1e-5)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("depth", LITES)
def test_the_fast_engine_computes_the_same(depth: str) -> None:
    torch.manual_seed(0)
    network = randomised(EfficientNetLite(depth, mask_channels=1, layer4="strided")).eval()
    frame, masks = torch.randn(1, 3, 65, 97), torch.rand(1, 1, 65, 97)
    with torch.no_grad():
        wanted = network.double()(frame.double(), masks.double())
        prepare_network(network.float(), torch.device("cpu"), torch.float32)
        result = network(frame, masks)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    for actual, expected in zip(result, wanted, strict=True):
        torch.testing.assert_close(actual, expected.float(), rtol=1e-3, atol=1e-4)


def test_a_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block = randomised(MBConv(8, 8, 5, 1, 6, 1)).eval().double()
    x = torch.randn(1, 8, 9, 7, dtype=torch.float64)
    assert block.conv1 is not None
    inner = block.bn1(functional.conv2d(x, block.conv1.weight)).clamp(0, 6)
    inner = functional.conv2d(inner, block.conv2.weight, padding=2, groups=48)
    inner = block.bn2(inner).clamp(0, 6)
    wanted = x + block.bn3(functional.conv2d(inner, block.conv3.weight))
    torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize("model", sorted(LITE))
def test_every_configuration_fits_16_mb(model: str) -> None:
    with torch.device("meta"):
        network = build(model, LITE[model], 0)
    assert 2 * sum(p.numel() for p in network.parameters()) < 16e6


def test_a_neck_reads_directions_not_sizes() -> None:
    """Cells of any size and sign become maps without a negative part, the deepest too."""
    network = EfficientNetLite("efficientnet_lite0", layer4="strided")
    neck = Neck(network.channels, (8, 8, 16, 16))
    maps = network(torch.randn(2, 3, 64, 96))
    outputs = neck(maps)
    assert [tuple(x.shape[1:]) for x in outputs] == [
        (8, 16, 24), (8, 8, 12), (16, 4, 6), (16, 2, 3),
    ]  # fmt: skip
    assert all((x >= 0).all() and (x > 0).any() for x in outputs)
    larger = neck(Pyramid(*(100 * x for x in maps if x is not None)))
    torch.testing.assert_close(larger, outputs, rtol=1e-3, atol=1e-3)
