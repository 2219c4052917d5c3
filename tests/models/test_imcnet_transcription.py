"""The float64 transcription of IMCNet behaves like the network."""

from __future__ import annotations

import math

import imcnet_transcription as imcnet
import pytest
import torch
from imcnet_transcription import Weights, official_shapes, random_state, transcribe
from torch import Tensor
from torch.nn import functional


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture(scope="module")
def state() -> Weights:
    return random_state("resnet18", seed=0)


@pytest.fixture(scope="module")
def weights(state: Weights) -> Weights:
    return {name: tensor.double() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def frames() -> list[Tensor]:
    """Three normalised frames of 64x96: a coarse texture that moves, and noise."""
    texture = functional.interpolate(draw(1, 3, 8, 12, seed=1), size=(64, 96), mode="bicubic")
    moved = [torch.roll(texture, (step, 2 * step), dims=(2, 3)) for step in (-4, 0, 4)]
    return [frame + 0.1 * draw(1, 3, 64, 96, seed=i) for i, frame in enumerate(moved)]


@pytest.fixture(scope="module")
def probability(state: Weights, frames: list[Tensor]) -> Tensor:
    return transcribe(state, frames)


def test_keys_are_those_of_the_official_file() -> None:
    shapes = official_shapes("resnet101")
    # 104 convs with their norms; key, 2 transforms; 6 + 3 * 16; 3 * 8; 13 * 2; 6.
    assert len(shapes) == 104 * (1 + 5) + 2 + 4 + 54 + 24 + 26 + 6 == 740
    backbone = "feature_extractor.backbone"
    assert shapes[f"{backbone}.layer3.22.conv3.weight"] == (1024, 256, 1, 1)
    assert shapes[f"{backbone}.layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes[f"{backbone}.layer4.2.bn3.num_batches_tracked"] == ()
    assert shapes["K_r3.Key.weight"] == (64, 2048, 3, 3)
    assert shapes["co_att_x3.right_transform.bias"] == (192,)
    assert shapes["decoder.l2_head.weight"] == (64, 1024, 3, 3)
    assert shapes["decoder.pd0.1.weight"] == (1, 64, 1, 1)
    assert shapes["align.cr0.weight"] == shapes["align.cr.weight"] == (64, 128, 3, 3)
    assert shapes["align.off2d_2.weight"] == shapes["align.off2d.weight"] == (144, 64, 3, 3)
    assert shapes["fusion.spatial_attn_l2.weight"] == (64, 128, 3, 3)
    assert shapes["segmentation.reslayer.conv2.bias"] == (64,)
    assert not any("downsample" in name for name in shapes if not name.startswith(backbone))
    assert not any(".fc." in name for name in shapes)


def test_values_are_as_many_as_a_trunk_and_the_rest() -> None:
    shapes = official_shapes("resnet101")
    floating = {n: math.prod(s) for n, s in shapes.items() if not n.endswith("num_batches_tracked")}
    trunk = sum(n for name, n in floating.items() if name.startswith("feature_extractor."))
    # ResNet-101 has 44 549 160 parameters with its fc; each norm stores as many again.
    assert trunk == 44_549_160 - 2_049_000 + 2 * 52_672
    assert sum(floating.values()) == 47_967_364


@pytest.mark.parametrize(("depth", "channels"), [("resnet34", 512), ("resnet50", 2048)])
def test_other_depths_differ_in_the_trunk_and_its_readers(depth: str, channels: int) -> None:
    shapes, reference = official_shapes(depth), official_shapes("resnet101")
    assert shapes["decoder.head.weight"] == shapes["K_r3.Key.weight"] == (64, channels, 3, 3)
    names = {name for name in reference if not name.startswith("feature_extractor.")}
    assert names == {name for name in shapes if not name.startswith("feature_extractor.")}
    assert official_shapes(depth, frames=5)["fusion.feat_fusion.weight"] == (64, 320, 1, 1)


def test_random_weights_repeat_and_are_single_precision(state: Weights) -> None:
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == official_shapes(
        "resnet18"
    )
    again = random_state("resnet18", seed=0)
    assert all(torch.equal(again[name], state[name]) for name in state)
    counted = {name for name, tensor in state.items() if tensor.dtype != torch.float32}
    assert counted and all(name.endswith("num_batches_tracked") for name in counted)


@pytest.mark.slow
def test_probabilities_are_finite_and_say_something(probability: Tensor) -> None:
    assert probability.shape == (1, 1, 64, 96) and probability.dtype == torch.float64
    assert torch.isfinite(probability).all()
    assert probability.min() > 0.05 and probability.max() < 0.95
    assert probability.std() > 0.03


@pytest.mark.slow
def test_bottlenecks_give_as_much(frames: list[Tensor]) -> None:
    crops = [frame[:, :, :32, :64] for frame in frames]
    probability = transcribe(random_state("resnet50", seed=0), crops)
    assert probability.shape == (1, 1, 32, 64)
    assert torch.isfinite(probability).all() and probability.std() > 0.03


@pytest.mark.slow
def test_every_frame_is_heard_beside_the_affinity(state: Weights, frames: list[Tensor]) -> None:
    blind = state | {"K_r3.Key.weight": torch.zeros_like(state["K_r3.Key.weight"])}
    crops = [frame[:, :, :32, :64].clone().requires_grad_() for frame in frames]
    transcribe(blind, crops).sum().backward()
    for crop in crops:
        assert crop.grad is not None and crop.grad.abs().max() > 1e-4


@pytest.mark.slow
def test_every_weight_is_heard(state: Weights, frames: list[Tensor]) -> None:
    """All but the prediction of level 0, and the left bias, which adds the same to all of a
    softmax."""
    learned = {name: tensor.clone() for name, tensor in state.items()}
    floating = {name: t.requires_grad_() for name, t in learned.items() if t.is_floating_point()}
    transcribe(learned, [frame[:, :, :32, :64] for frame in frames]).sum().backward()
    unused = {name for name, tensor in floating.items() if tensor.grad is None}
    assert unused == {name for name in floating if name.startswith("decoder.pd0.")}
    silent = {n for n, t in floating.items() if t.grad is not None and t.grad.abs().max() < 1e-9}
    assert silent <= {"co_att_x3.left_transform.bias"}


def test_nothing_on_the_way_is_dead_or_saturated(weights: Weights, frames: list[Tensor]) -> None:
    pyramids = [imcnet.levels(weights, frame) for frame in frames]
    assert [level.shape[1:] for level in pyramids[0]] == [
        (64, 16, 24), (128, 8, 12), (256, 4, 6), (512, 2, 3)
    ]  # fmt: skip
    shared = imcnet.affinity(weights, [pyramid[3] for pyramid in pyramids])
    assert 0.2 < shared.amax(dim=0).median() < 0.9
    feats = []
    for pyramid in pyramids:
        feat, maps = imcnet.perceive(weights, pyramid, imcnet.attend(pyramid[3], shared))
        feats.append(feat)
        assert [x.shape[2:] for x in maps] == [(2, 3), (4, 6), (8, 12)]
        assert maps[0].min() == 0 and 0.999 < maps[0].max() < 1
        assert all(0.1 < x.std() < 0.45 for x in maps)
        assert 0.3 < feat.std() < 3
    for place in imcnet.CASCADE:
        offsets = imcnet.offsets(weights, place, feats[1], feats[0])
        assert offsets.shape == (1, 144, 16, 24) and 0.3 < offsets.std() < 3
    assert 0.1 < imcnet.fuse(weights, feats).std() < 3


def test_affinity_is_a_softmax_over_the_left_positions(weights: Weights) -> None:
    coarsest = [draw(1, 512, 3, 4, seed=i).relu() for i in range(3)]
    shared = imcnet.affinity(weights, coarsest)
    assert shared.shape == (12, 12)
    torch.testing.assert_close(shared.sum(dim=0), torch.ones(12).double())
    assert (shared.sum(dim=1) - 1).abs().max() > 0.01
    r3 = coarsest[0]
    mean = sum(r3[0, :, i // 4, i % 4] * shared[i, 7] for i in range(12))
    torch.testing.assert_close(imcnet.attend(r3, shared)[0, :, 1, 3], mean)


def test_similarity_is_symmetric_where_both_sides_are_one(weights: Weights) -> None:
    coarsest = [draw(1, 512, 3, 4).relu()] * 3
    two = imcnet.similarity(weights, coarsest)
    assert not torch.allclose(two, two.T)
    left = {
        name.replace("left", "right"): tensor for name, tensor in weights.items() if "left" in name
    }
    same = imcnet.similarity(weights | left, coarsest)
    torch.testing.assert_close(same, same.T)
    assert torch.linalg.eigvalsh(same).min() > -1e-9  # a matrix of inner products


def test_gate_and_activation_follow_their_formulas() -> None:
    r3, att = draw(1, 4, 2, 3, seed=1), draw(1, 4, 2, 3, seed=2)
    gated = imcnet.gate(r3, att)
    value = r3[0, 2, 1, 0] * att[0, 2, 1, 0] * att[0, 2].mean()
    torch.testing.assert_close(gated[0, 2, 1, 0], value)
    activation = imcnet.activation(gated)
    mean = gated[0].mean(dim=0).clamp(min=0)
    torch.testing.assert_close(
        activation[0, 0], (mean - mean.min()) / (mean.max() - mean.min() + 1e-6)
    )


def deform(x: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The deformable convolution with offsets [8, 9, 2] that are the same everywhere."""
    weight, bias = draw(16, 16, 3, 3, seed=3), draw(16, seed=4)
    offset = shifts.double().view(1, 144, 1, 1).expand(-1, -1, *x.shape[2:])
    return imcnet.deform_conv(x, offset, weight, bias), weight, bias


def test_zero_offsets_make_an_ordinary_convolution() -> None:
    x = draw(1, 16, 7, 9)
    out, weight, bias = deform(x, torch.zeros(8, 9, 2))
    torch.testing.assert_close(out, functional.conv2d(x, weight, bias, padding=1))


@pytest.mark.parametrize(
    ("group", "tap", "shift"), [(0, 0, (1, 0)), (5, 7, (-2, 3)), (7, 2, (0, 1))]
)
def test_one_offset_moves_one_tap_of_one_group(
    group: int, tap: int, shift: tuple[int, int]
) -> None:
    x = draw(1, 16, 7, 9)
    shifts = torch.zeros(8, 9, 2)
    shifts[group, tap] = torch.tensor(shift)
    out, weight, bias = deform(x, shifts)
    moved, kept = torch.zeros_like(weight), weight.clone()
    part = (slice(None), slice(2 * group, 2 * group + 2), tap // 3, tap % 3)
    moved[part], kept[part] = weight[part], 0
    dy, dx = shift
    far = functional.conv2d(functional.pad(x, (5,) * 4), moved)  # every shift of it, cut out
    wanted = functional.conv2d(x, kept, bias, padding=1)
    wanted = wanted + far[:, :, 4 + dy : 11 + dy, 4 + dx : 13 + dx]
    torch.testing.assert_close(out, wanted)


def test_samples_between_pixels_are_bilinear_and_zero_beyond_the_frame() -> None:
    x = draw(1, 16, 7, 9)
    one = torch.zeros(8, 9, 2)
    one[..., 0] = 1
    steps = [deform(x, amount * one)[0] for amount in (0.0, 0.25, 1.0)]
    torch.testing.assert_close(steps[1], 0.75 * steps[0] + 0.25 * steps[2])
    far, _, bias = deform(x, 30 * one)
    torch.testing.assert_close(far, bias[:, None, None].expand_as(far[0])[None])
    image = torch.arange(12.0).double().view(1, 3, 4)
    y, z = torch.tensor([1.5, -0.5, 2.75]), torch.tensor([2.25, 0.0, 3.5])
    samples = imcnet.sample(image, y.double(), z.double())
    assert samples[0].tolist() == pytest.approx([8.25, 0.0, 0.25 * 0.5 * 11])


def test_alignment_without_offsets_is_four_convolutions(weights: Weights) -> None:
    still = {n: t * 0 if ".off2d" in n else t for n, t in weights.items()}
    ref, feat = draw(1, 64, 8, 12, seed=1), draw(1, 64, 8, 12, seed=2)
    wanted = feat
    for place in imcnet.CASCADE:
        wanted = imcnet.conv(weights, f"align.dconv{place}", wanted)
    torch.testing.assert_close(imcnet.align(still, ref, feat), wanted)
    assert (imcnet.align(weights, ref, feat) - wanted).abs().max() > 0.1


def test_fusion_without_attention_is_a_convolution_of_the_weighted_frames(weights: Weights) -> None:
    silent = {
        name: tensor * 0 if name.startswith(("fusion.spatial", "fusion.temporal")) else tensor
        for name, tensor in weights.items()
    }
    feats = [draw(1, 64, 8, 12, seed=i) for i in range(3)]
    halved = imcnet.conv(weights, "fusion.feat_fusion", 0.5 * torch.cat(feats, dim=1))
    torch.testing.assert_close(imcnet.fuse(silent, feats), halved.relu())  # 2 sigmoid(0) = 1
    names = ("fusion.temporal_attn1.bias", "fusion.temporal_attn2.bias")
    alike = silent | {name: torch.ones(64).double() for name in names}  # likeness 64: kept whole
    whole = imcnet.conv(weights, "fusion.feat_fusion", torch.cat(feats, dim=1))
    torch.testing.assert_close(imcnet.fuse(alike, feats), whole.relu())


def test_resizing_puts_corner_on_corner() -> None:
    x = draw(1, 1, 3, 4)
    large = imcnet.resize(x, draw(1, 1, 5, 7))
    torch.testing.assert_close(large[..., ::2, ::2], x)
