"""The refinement network against a float64 transcription, its cost, and models without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vosengine.config import TargetAwareConfig
from vosengine.models.backbone import Pyramid
from vosengine.models.target_aware.refiner import (
    ChannelAttention,
    NoRefiner,
    Refiner,
    ResidualBlock,
    SegmentationEncoder,
    make_refiner,
)

CHANNELS = 8, 12, 16, 20  # of layer1..layer4
SIDES = (25, 31), (13, 16), (7, 8), (4, 4)
COARSE = 7, 8
SIZE = 99, 123

Weights = dict[str, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pyramid() -> Pyramid:
    sizes = enumerate(zip(CHANNELS, SIDES, strict=True))
    return Pyramid(*(draw(1, c, *side, seed=i) for i, (c, side) in sizes))


def weights_of(module: torch.nn.Module) -> Weights:
    """The module's weights, randomised so that every bias has an effect."""
    module.double()
    for i, (name, weight) in enumerate(sorted(module.named_parameters())):
        scale = weight[0].numel() ** -0.5 if name.endswith("weight") else 0.3
        weight.data.copy_(1.5 * scale * draw(*weight.shape, seed=100 + i))
    return dict(module.named_parameters())


# The transcription: one function per block of the paper, every target by itself.


def conv(w: Weights, name: str, x: Tensor) -> Tensor:
    weight = w[f"{name}.weight"]
    return functional.conv2d(x, weight, w.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def encode(w: Weights, at: str, reduced: Tensor, score: Tensor) -> Tensor:
    x = torch.cat((reduced, resized(score, reduced.shape[2:])), dim=1)
    for layer in ("conv1", "conv2", "conv3"):
        x = conv(w, at + layer, x).relu()
    return x


def residual(w: Weights, at: str, x: Tensor) -> Tensor:
    h = conv(w, f"{at}conv1", x)
    return (h + conv(w, f"{at}conv3", conv(w, f"{at}conv2", h).relu())).relu()


def attend(w: Weights, at: str, deeper: Tensor, shallow: Tensor) -> Tensor:
    means = [functional.adaptive_avg_pool2d(x, 1) for x in (shallow, deeper)]
    gate = conv(w, f"{at}conv2", conv(w, f"{at}conv1", torch.cat(means, dim=1)).relu())
    return shallow * gate.sigmoid() + resized(deeper, shallow.shape[2:])


def refine(w: Weights, maps: Pyramid, coarse: Tensor, size: tuple[int, int]) -> Tensor:
    x = None
    for i, feature in enumerate(reversed([m for m in maps if m is not None])):
        hidden = conv(w, f"reductions.{i}.conv1", feature).relu()
        reduced = conv(w, f"reductions.{i}.conv2", hidden)
        h = encode(w, f"levels.{i}.encoder.", reduced, coarse)
        h = residual(w, f"levels.{i}.block1.", h)
        deeper = functional.adaptive_avg_pool2d(reduced, 1) if x is None else x
        h = attend(w, f"levels.{i}.attention.", deeper, h)
        x = residual(w, f"levels.{i}.block2.", h)
    assert x is not None
    x = conv(w, "upsample1", resized(x, (2 * x.shape[2], 2 * x.shape[3]))).relu()
    return conv(w, "upsample2", resized(x, size))[:, 0]


def close(actual: Tensor, wanted: Tensor) -> None:
    assert wanted.std() > 1e-3
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_encoder_is_its_transcription() -> None:
    module, reduced, score = SegmentationEncoder(6), draw(1, 6, 7, 8), draw(3, 1, 7, 8, seed=1)
    weights = weights_of(module)
    encoded = module(reduced, score)
    for track in range(3):
        close(encoded[track], encode(weights, "", reduced, score[track, None])[0])


@torch.no_grad()
def test_the_residual_block_is_its_transcription() -> None:
    module, x = ResidualBlock(6), draw(2, 6, 7, 8)
    weights = weights_of(module)
    assert "conv3.bias" not in weights
    close(module(x), residual(weights, "", x))


@torch.no_grad()
@pytest.mark.parametrize("side", [(4, 5), (1, 1)])
def test_the_attention_is_its_transcription(side: tuple[int, int]) -> None:
    module, deeper, shallow = ChannelAttention(6), draw(2, 6, *side), draw(2, 6, 7, 8, seed=1)
    weights = weights_of(module)
    close(module(deeper, shallow), attend(weights, "", deeper, shallow))


@torch.no_grad()
def test_the_whole_network_is_its_transcription_for_every_track() -> None:
    module, coarse = Refiner(CHANNELS, 6), draw(3, 1, *COARSE, seed=9)
    weights = weights_of(module)
    reduced = module.reduce(pyramid())
    assert [tuple(x.shape) for x in reduced] == [(1, 6, *side) for side in reversed(SIDES)]
    refined = module(coarse, reduced, SIZE)
    assert refined.shape == (3, *SIZE)
    for track in range(3):
        close(refined[track], refine(weights, pyramid(), coarse[track, None], SIZE)[0])


@torch.no_grad()
def test_no_tracks_give_no_logits() -> None:
    for config in (TargetAwareConfig(refiner_channels=6), TargetAwareConfig(refiner="none")):
        module = make_refiner(config, CHANNELS).double()
        none = module(draw(0, 1, *COARSE), module.reduce(pyramid()), SIZE)
        assert none.shape == (0, *SIZE)


def test_without_a_refiner_the_score_is_upsampled_and_changes_sign_at_one_half() -> None:
    module = make_refiner(TargetAwareConfig(refiner="none"), CHANNELS)
    assert isinstance(module, NoRefiner) and not list(module.parameters())
    coarse = draw(2, 1, *COARSE)
    logits = module(coarse, module.reduce(pyramid()), SIZE)
    upsampled = resized(coarse, SIZE)[:, 0]
    assert torch.equal(logits > 0, upsampled > 0.5)
    near = torch.tensor([[[[0.49, 0.51]]]], dtype=torch.float64)
    torch.testing.assert_close(module(near, [], (1, 2)), near[:, 0].logit(), rtol=1e-3, atol=0)
    torch.testing.assert_close(logits / 4 + 0.5, upsampled)


def gigaflops(function: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


@pytest.mark.slow
def test_the_published_size_costs_what_it_should() -> None:
    """At 473 x 473 over ResNet-101: 13.4 GFLOP for one track with the frame's part. Of that 2.4
    are the frame's alone: the reductions, and the first convolutions as far as they see them."""
    side, widths = TargetAwareConfig().tracker_size, (256, 512, 1024, 2048)
    with torch.device("meta"):
        module = make_refiner(TargetAwareConfig(), widths)
        levels = zip(widths, (119, 60, 30, 15), strict=True)
        maps = Pyramid(*(torch.empty(1, width, cells, cells) for width, cells in levels))
        reduced = module.reduce(maps)
        frame = gigaflops(lambda: module.reduce(maps))
        tracks = [
            gigaflops(lambda k=k: module(torch.empty(k, 1, 30, 30), reduced, (side, side)))
            for k in (1, 2)
        ]
    assert frame + tracks[0] == pytest.approx(13.4, rel=0.01)
    assert tracks[1] - tracks[0] == pytest.approx(11.0, rel=0.01)
