"""D-Net: its parts against transcriptions of the paper, dependencies, and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vosengine.config import TargetAwareConfig
from vosengine.models.backbone import initialise
from vosengine.models.target_aware.dnet import ASPP, DNet, DNetFeatures, Guidance

HEADS = pytest.mark.parametrize("heads", ["separable", "dense"])
SQUEEZES = pytest.mark.parametrize("squeeze", ["pair", "literal"])


def tiny(**changes: Any) -> TargetAwareConfig:
    narrow: dict[str, Any] = {
        "backbone": "resnet18",
        "width": 8,
        "aspp_channels": 16,
        "squeeze_reduction": 4,
        "saliency_channels": 12,
        "instance_channels": 10,
        "saliency_skips": (6, 5),
        "instance_skips": (4, 3),
    }
    return TargetAwareConfig(**{**narrow, **changes})


def shake_norms(module: nn.Module) -> None:
    """Give every norm random statistics and weights instead of 0 and 1."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.2, 0.2)


def build(config: TargetAwareConfig | None = None) -> DNet:
    torch.manual_seed(3)
    net = DNet(config or tiny()).eval().requires_grad_(False)
    initialise(net)
    shake_norms(net)
    for module in net.modules():
        if isinstance(module, Guidance):  # gains that spread over 0..1, not all about a half
            module.reduce.weight *= 4
            module.expand.weight *= 4
    return net


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], **near: float) -> None:
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, **near)


# ASPP


def functional_norm(x: torch.Tensor, block: nn.Sequential, dilation: int = 1) -> torch.Tensor:
    conv, norm = block[0], block[1]
    assert conv.bias is None
    x = functional.conv2d(
        x, conv.weight, padding=dilation * (conv.weight.shape[2] // 2), dilation=dilation
    )
    shape = (1, -1, 1, 1)
    x = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return functional.relu(x * norm.weight.view(shape) + norm.bias.view(shape))


def test_aspp_is_its_five_branches_joined() -> None:
    torch.manual_seed(1)
    aspp = ASPP(5, 4, (2, 3, 5)).eval().requires_grad_(False)
    shake_norms(aspp)
    x = draw(2, 5, 9, 13)
    branches = [functional_norm(x, aspp.point)]
    branches += [
        functional_norm(x, conv, rate) for conv, rate in zip(aspp.atrous, (2, 3, 5), strict=True)
    ]
    mean = functional_norm(functional.adaptive_avg_pool2d(x, 1), aspp.pool)
    branches.append(mean.repeat(1, 1, 9, 13))
    torch.testing.assert_close(aspp(x), functional_norm(torch.cat(branches, dim=1), aspp.join))


def test_aspp_sees_where_its_rates_reach() -> None:
    """Without the global mean a cell depends on itself and on rings at 6, 12 and 18 cells."""
    torch.manual_seed(1)
    net = DNet(tiny())
    aspp = net.guide_aspp.eval()
    nn.init.zeros_(aspp.pool[1].weight)
    x = draw(1, 64, 41, 41).requires_grad_()
    aspp(x)[0, :, 20, 20].sum().backward()
    assert x.grad is not None
    seen = {(int(y) - 20, int(x) - 20) for y, x in x.grad.abs().sum(dim=1)[0].nonzero()}
    assert seen == {(y * r, x * r) for r in (6, 12, 18) for y in (-1, 0, 1) for x in (-1, 0, 1)}


# Guidance


def equations_3_to_7(
    module: Guidance, x: torch.Tensor, guidance: torch.Tensor, pair: Sequence[torch.Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """X^ and alpha in float64 numpy, one frame at a time."""
    w1, w2 = (layer.weight.double().numpy() for layer in (module.reduce, module.expand))
    feature, other = x.double().numpy(), guidance.double().numpy()
    mixed, alphas = np.empty_like(feature), []
    for b in range(len(feature)):
        c = np.concatenate([maps[b].double().numpy().mean(axis=(1, 2)) for maps in pair])
        z = (w2 @ np.maximum(w1 @ c, 0)).reshape(2, -1)
        z = np.exp(z - z.max(axis=0))
        alpha, beta = z / z.sum(axis=0)
        mixed[b] = alpha[:, None, None] * feature[b] + beta[:, None, None] * other[b]
        alphas.append(alpha)
    return mixed, np.array(alphas)


def features_and_guidance(net: DNet) -> tuple[DNetFeatures, torch.Tensor]:
    dtype = net.saliency_guidance.reduce.weight.dtype
    features = net.encode(draw(2, 3, 64, 96, seed=1).to(dtype))
    saliency = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    return features, net.guide(draw(2, 3, 64, 96, seed=2).to(dtype), saliency)


@SQUEEZES
def test_guidance_is_equations_3_to_7(squeeze: str) -> None:
    net = build(tiny(squeeze=squeeze)).double()
    features, guidance = features_and_guidance(net)
    x, y = features.saliency, features.instance
    pairs = ((x, y), (x, y)) if squeeze == "literal" else ((x, guidance), (y, guidance))
    saliency, alpha = equations_3_to_7(net.saliency_guidance, x, guidance, pairs[0])
    instance, _ = equations_3_to_7(net.instance_guidance, y, guidance, pairs[1])
    assert alpha.min() < 0.3 and alpha.max() > 0.7

    guided = net(features, guidance)
    mixed = features._replace(
        saliency=torch.from_numpy(saliency), instance=torch.from_numpy(instance)
    )
    assert_same(guided, net(mixed, None), rtol=1e-10, atol=1e-10)


@SQUEEZES
def test_alpha_and_beta_sum_to_one(squeeze: str) -> None:
    """Guidance equal to both features does not change them."""
    net = build(tiny(squeeze=squeeze))
    features, guidance = features_and_guidance(net)
    features = features._replace(saliency=guidance, instance=guidance)
    assert_same(net(features, guidance), net(features, None), rtol=1e-4, atol=1e-4)


def test_the_first_frame_passes_as_if_alpha_were_one() -> None:
    net = build()
    features, guidance = features_and_guidance(net)
    first = net(features, None)
    assert any(
        not torch.allclose(a, b) for a, b in zip(first, net(features, guidance), strict=True)
    )
    for module in (net.saliency_guidance, net.instance_guidance):
        module.reduce.weight.fill_(1)
        module.expand.weight[:16] = 1e3
        module.expand.weight[16:] = -1e3
    assert_same(net(features, guidance), first)


@pytest.mark.parametrize("guide", ["own", "shared"])
def test_guidance_depends_on_frame_and_saliency(guide: str) -> None:
    net = build(tiny(guide=guide))
    if guide == "shared":
        assert not any(name.startswith("guide_backbone") for name in net.state_dict())
        nn.init.normal_(net.guide_mask.weight)
    frame, saliency = draw(1, 3, 64, 96, seed=4), torch.zeros(1, 1, 16, 24)
    saliency[:, :, 4:12, 4:12] = 1
    guidance = net.guide(frame, saliency)
    assert guidance.shape == (1, 16, 4, 6)
    assert not torch.allclose(guidance, net.guide(frame, torch.zeros_like(saliency)))
    assert not torch.allclose(guidance, net.guide(draw(1, 3, 64, 96, seed=5), saliency))
    deep = net.encode(frame).deep
    assert (deep is None) == (guide == "own")
    assert_same([guidance], [net.guide(frame, saliency, deep)])
    if deep is not None:  # the frame is not seen twice
        assert_same([guidance], [net.guide(frame * 0, saliency, deep)])
    at_frame_size = functional.interpolate(saliency, scale_factor=4, mode="bilinear")
    assert_same([guidance], [net.guide(frame, at_frame_size)])


@pytest.mark.parametrize("part", ["aspp", "guidance", "head"])
def test_each_task_has_weights_of_its_own(part: str) -> None:
    net = build()
    frame = draw(1, 3, 64, 96)
    guidance = net.guide(frame, torch.rand(1, 1, 16, 24))
    before = net(net.encode(frame), guidance)
    for weight in getattr(net, f"instance_{part}").parameters():
        weight *= -1
    after = net(net.encode(frame), guidance)
    assert torch.equal(before.saliency, after.saliency)
    assert not torch.allclose(before.heatmap, after.heatmap)


# The whole network


@HEADS
def test_shapes_of_features_and_maps(heads: str) -> None:
    net = build(tiny(heads=heads, squeeze_reduction=1000))  # a hidden layer of one
    features = net.encode(draw(2, 3, 64, 96))
    assert features.saliency.shape == features.instance.shape == (2, 16, 4, 6)
    channels = {"separable": (6, 5, 4, 3), "dense": (16, 8, 16, 8)}[heads]
    assert tuple(skip.shape[1] for skip in features[2:6]) == channels
    maps = net(features, net.guide(draw(2, 3, 64, 96), torch.rand(2, 1, 64, 96)))
    assert [tuple(tensor.shape) for tensor in maps] == [(2, c, 16, 24) for c in (1, 1, 2)]


def test_the_instance_head_gives_heat_then_offset() -> None:
    net = build()
    net.instance_head.predict.weight.zero_()
    net.instance_head.predict.bias.copy_(torch.tensor([-5.0, 1.0, 2.0]))
    maps = net(net.encode(draw(1, 3, 32, 32)), None)
    assert (maps.heatmap == -5).all()
    assert (maps.offset[:, 0] == 1).all() and (maps.offset[:, 1] == 2).all()


@HEADS
def test_a_head_reaches_as_far_as_its_5x5_convolutions(heads: str) -> None:
    net = build(tiny(heads=heads))
    features = net.encode(draw(1, 3, 160, 160))
    skips = [skip.clone().requires_grad_() for skip in features[2:4]]
    maps = net(features._replace(saliency_skip3=skips[0], saliency_skip2=skips[1]), None)
    maps.saliency[0, 0, 20, 20].backward()
    for skip, reach in zip(skips, (range(5, 15), range(16, 25)), strict=True):
        assert skip.grad is not None
        rows = skip.grad.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0]
        assert rows.tolist() == list(reach)


@HEADS
def test_a_batch_is_its_frames_one_by_one(heads: str) -> None:
    net = build(tiny(heads=heads, guide="shared"))
    frames, saliency = draw(3, 3, 64, 96), torch.rand(3, 1, 16, 24)
    features, guidance = net.encode(frames), net.guide(frames, saliency)
    maps = net(features, guidance)
    near = {"rtol": 1e-4, "atol": 1e-4}
    for i in range(3):
        one = net.encode(frames[i : i + 1])
        assert_same(one, [tensor[i : i + 1] for tensor in features], **near)
        guided = net.guide(frames[i : i + 1], saliency[i : i + 1])
        assert_same([guided], [guidance[i : i + 1]], **near)
        assert_same(net(one, guided), [tensor[i : i + 1] for tensor in maps], **near)


def test_the_papers_network_has_94_million_parameters() -> None:
    """A ResNet-50 without its classifier has 25 557 032 - 2 049 000 parameters."""
    resnet = 23_508_032
    aspp = 2048 * 256 * (1 + 3 * 9 + 1) + 5 * 2 * 256 + 5 * 256 * 256 + 2 * 256
    guidance = 512 * 32 + 32 * 512

    def conv(c_in: int, c_out: int, area: int = 1) -> int:
        return area * c_in * c_out + 2 * c_out  # and its norm

    def separable(c_in: int, c_out: int) -> int:
        return conv(1, c_in, 25) + conv(c_in, c_out)

    def head(skip3: int, skip2: int, width: int, c_out: int) -> int:
        skips = conv(512, skip3) + conv(256, skip2)
        wide = separable(256 + skip3, width) + separable(width + skip2, width)
        return skips + wide + separable(width, width) + (width + 1) * c_out

    shared = 2 * resnet + 64 * 49 + 3 * aspp + 2 * guidance
    expected = shared + head(64, 32, 256, 1) + head(32, 16, 128, 3)
    dense = conv(256 + 512, 256, 25) + conv(256 + 256, 256, 25) + conv(256, 256, 25)
    dense_expected = shared + 2 * dense + 257 * (1 + 3)
    assert (expected, dense_expected) == (94_086_036, 113_354_948)
    with torch.device("meta"):
        assert sum(p.numel() for p in DNet(TargetAwareConfig()).parameters()) == expected
        net = DNet(TargetAwareConfig(heads="dense"))
        assert sum(p.numel() for p in net.parameters()) == dense_expected


@pytest.mark.parametrize(("heads", "expected"), [("separable", 372e9), ("dense", 989e9)])
@pytest.mark.slow
def test_the_papers_network_costs_what_the_design_says(heads: str, expected: float) -> None:
    """At 480 x 864; a multiply-add counts as 2."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = DNet(TargetAwareConfig(heads=heads)).eval()
        frame = torch.zeros(1, 3, 480, 864)
        maps = net(net.encode(frame), net.guide(frame, torch.zeros(1, 1, 120, 216)))
    assert maps.saliency.shape == (1, 1, 120, 216)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


@pytest.mark.slow
def test_random_weights_of_full_width_give_maps_that_vary() -> None:
    torch.manual_seed(0)
    net = DNet(TargetAwareConfig()).eval().requires_grad_(False)
    initialise(net)
    frame = draw(1, 3, 64, 96)
    first = net(net.encode(frame), None)
    second = net(net.encode(frame), net.guide(frame, torch.sigmoid(first.saliency)))
    for tensor in (*first, *second):
        assert tensor.isfinite().all()
        assert 0.02 < tensor.std() < 50
