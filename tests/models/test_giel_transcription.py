"""The float64 transcription of GIEL follows the paper's equations."""

from __future__ import annotations

import math

import giel_transcription as giel
import munet_transcription as munet
import numpy as np
import pytest
import torch
from giel_transcription import Parts, Weights, support_set, transcribe
from numpy.typing import NDArray
from random_weights import RandomWeights
from torch import Tensor
from torch.nn import functional

WIDTH, KEY, VALUE, LABEL, DECODER, COARSE = 4, 8, 10, 5, 7, 9
HEIGHT, ACROSS, OBJECTS = 48, 64, 3
CELLS = 3 * 4
Labels = NDArray[np.uint8]


def draw_decoder(d: RandomWeights, name: str, r2: int, r3: int) -> None:
    d.conv(f"{name}.conv", 2 * VALUE, DECODER, 3)
    d.conv(f"{name}.skip3.conv", r3, DECODER, 3)
    d.conv(f"{name}.skip2.conv", r2, DECODER, 3)
    for block in ("block4", "skip3.block", "block3", "skip2.block", "block2"):
        d.conv(f"{name}.{block}.conv1", DECODER, DECODER, 3)
        d.conv(f"{name}.{block}.conv2", DECODER, DECODER, 3)
    d.conv(f"{name}.predict", DECODER, 1, 3)


def draw_weights(bottleneck: bool = False) -> Weights:
    d = RandomWeights(0)
    r2, r3, r4 = d.resnet("query_encoder", WIDTH, bottleneck)
    d.resnet("support_encoder", WIDTH, bottleneck)
    d.conv("support_encoder.mask_conv", 1, WIDTH, 7, bias=False)
    d.conv("query_head.key", r4, KEY, 1)
    d.conv("query_head.value", r4, VALUE, 1)
    d.conv("label_encoder.conv1", 3, LABEL, 7, bias=False)
    d.norm("label_encoder.bn1", LABEL)
    d.conv("label_encoder.conv2", LABEL, VALUE, 5, bias=False)
    d.norm("label_encoder.bn2", VALUE)
    d.conv("attention.summarise", KEY, KEY, 1)
    d.linear("attention.mix1", 3 * KEY, KEY)
    d.linear("attention.mix2", KEY, KEY // 2)
    d.linear("attention.weigh", KEY // 2, 1)
    draw_decoder(d, "global_decoder", r2, r3)
    draw_decoder(d, "instance_decoder", r2, r3)
    d.conv("coarse.0", 2 * VALUE, COARSE, 1)
    d.conv("coarse.2", COARSE, 1, 1)
    return d.named


@pytest.fixture(scope="module")
def weights() -> Weights:
    return {name: tensor.double() for name, tensor in draw_weights().items()}


@pytest.fixture(scope="module")
def frames() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(4, 3, 6, 8, generator=generator).double()
    return list(functional.interpolate(coarse, size=(HEIGHT, ACROSS), mode="bicubic")[:, None])


@pytest.fixture(scope="module")
def labels() -> list[Labels]:
    """Three bars that move to the right."""
    masks = []
    for t in range(3):
        slots = np.zeros((HEIGHT, ACROSS), np.uint8)
        for slot in range(1, OBJECTS + 1):
            slots[14 * slot - 10 : 14 * slot - 2, 8 + 9 * t : 30 + 9 * t] = slot
        masks.append(slots)
    return masks


@pytest.fixture(scope="module")
def unions(labels: list[Labels]) -> list[Labels]:
    return [(slots > 0).astype(np.uint8) for slots in labels]


Clip = tuple[Weights, list[Tensor], list[Labels], list[Labels], list[int]]


@pytest.fixture(scope="module")
def clip(
    weights: Weights, frames: list[Tensor], labels: list[Labels], unions: list[Labels]
) -> Clip:
    return weights, frames, labels, unions, [0, 1, 2]


@pytest.fixture(scope="module")
def full(clip: Clip) -> tuple[Tensor, Parts]:
    return transcribe(*clip)


@pytest.fixture(scope="module")
def fast(clip: Clip) -> tuple[Tensor, Parts]:
    return transcribe(*clip, variant="fast")


def test_shapes_are_the_papers(full: tuple[Tensor, Parts], fast: tuple[Tensor, Parts]) -> None:
    logits, parts = full
    assert logits.shape == parts.instance_maps.shape == (OBJECTS, HEIGHT // 4, ACROSS // 4)
    assert parts.global_map.shape == logits.shape[1:] and parts.coarse_maps is None
    assert parts.support_keys.shape == (3, KEY, 3, 4)
    assert parts.support_values.shape == (3, VALUE, 3, 4)
    assert parts.query_key.shape == (KEY, 3, 4) and parts.query_value.shape == (VALUE, 3, 4)
    assert parts.affinity.shape == (3 * CELLS, CELLS) and parts.frame_weights.shape == (3,)
    assert parts.label_embedding.shape == parts.instance_values.shape == (OBJECTS, 3, VALUE, 3, 4)
    assert parts.instance_readouts.shape == (OBJECTS, VALUE, 3, 4)
    assert fast[1].coarse_maps is not None and fast[1].coarse_maps.shape == (OBJECTS, 3, 4)
    assert fast[0].shape == logits.shape
    tensors = [x for x in (logits, *parts) if x is not None]
    assert all(x.dtype == torch.float64 and torch.isfinite(x).all() for x in tensors)
    assert logits.std() > 0.05 and (logits[0] - logits[1]).abs().max() > 0.05


def test_bottlenecks_work_and_a_second_run_is_equal(clip: Clip) -> None:
    weights = draw_weights(bottleneck=True)
    once, again = (transcribe(weights, *clip[1:], variant="fast")[0] for _ in range(2))
    assert torch.equal(once, again) and torch.isfinite(once).all() and once.std() > 0.05


def test_affinity_is_a_softmax_over_all_frames_with_ln_w(full: tuple[Tensor, Parts]) -> None:
    parts = full[1]
    torch.testing.assert_close(parts.affinity.sum(dim=0), torch.ones(CELLS).double())
    torch.testing.assert_close(parts.frame_weights.sum(), torch.tensor(1.0).double())
    assert parts.frame_weights.std() > 1e-3
    column, keys, query = 7, parts.support_keys, parts.query_key
    odds = [
        float(parts.frame_weights[i])
        * math.exp(float(keys[i, :, y, x] @ query[:, 1, 3]) / math.sqrt(KEY))
        for i in range(3)
        for y in range(3)
        for x in range(4)
    ]
    wanted = torch.tensor(odds, dtype=torch.float64) / sum(odds)
    torch.testing.assert_close(parts.affinity[:, column], wanted)


def test_the_ways_of_weighing_differ_as_they_should(clip: Clip) -> None:
    parts = {
        way: transcribe(*clip, variant="fast", temporal=way)[1]
        for way in ("none", "bias", "premul", "postmul")
    }
    none, shares = parts["none"].affinity, parts["bias"].frame_weights
    assert torch.equal(parts["none"].frame_weights, torch.ones(3).double())
    per_row = shares.repeat_interleave(CELLS)[:, None]
    torch.testing.assert_close(parts["postmul"].affinity, none * per_row)
    biased = none * per_row
    torch.testing.assert_close(parts["bias"].affinity, biased / biased.sum(dim=0))
    scaled = parts["none"].support_keys * shares[:, None, None, None]
    wanted = giel.affinity(scaled, parts["none"].query_key, torch.ones(3), "none", KEY**-0.5)
    torch.testing.assert_close(parts["premul"].affinity, wanted)
    sharp = transcribe(*clip, variant="fast", scale=1.0)[1].affinity
    assert sharp.amax(dim=0).mean() > parts["bias"].affinity.amax(dim=0).mean()
    unweighed = {n: t * 0 if n.startswith("attention.weigh") else t for n, t in clip[0].items()}
    even = transcribe(unweighed, *clip[1:], variant="fast")[1]
    torch.testing.assert_close(even.frame_weights, torch.full((3,), 1 / 3).double())
    torch.testing.assert_close(even.affinity, none)


def test_label_channels_are_own_others_and_background(labels: list[Labels]) -> None:
    channels = giel.label_tensor(labels[0], 2)
    np.testing.assert_array_equal(channels[0], labels[0] == 2)
    np.testing.assert_array_equal(channels[1], (labels[0] == 1) | (labels[0] == 3))
    np.testing.assert_array_equal(channels[2], labels[0] == 0)
    assert channels.sum(dim=0).eq(1).all()


def test_labels_are_encoded_by_two_strided_convolutions(weights: Weights) -> None:
    label = giel.label_tensor(np.arange(32 * 48).reshape(32, 48) % 4, 1)
    embedded = giel.label_embedding(weights, label)
    assert embedded.shape == (VALUE, 2, 3) and embedded.min() < 0
    torch.testing.assert_close(
        giel.label_embedding(weights, label, "sigmoid"), 1 / (1 + torch.exp(-embedded))
    )
    layers = {
        "conv1": torch.nn.Conv2d(3, LABEL, 7, 4, 3, bias=False),
        "bn1": torch.nn.BatchNorm2d(LABEL),
        "relu": torch.nn.ReLU(),
        "conv2": torch.nn.Conv2d(LABEL, VALUE, 5, 4, 2, bias=False),
        "bn2": torch.nn.BatchNorm2d(VALUE),
    }
    for name, layer in layers.items():
        prefix = f"label_encoder.{name}."
        own = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
        layer.double().load_state_dict(own, strict=False)
    net = torch.nn.Sequential(*layers.values()).eval()
    with torch.no_grad():
        torch.testing.assert_close(net(label[None])[0], embedded)


def test_values_are_multiplied_and_read_with_one_affinity(full: tuple[Tensor, Parts]) -> None:
    parts = full[1]
    d, i, c, y, x = 2, 1, 4, 2, 3
    product = parts.support_values[i, c, y, x] * parts.label_embedding[d, i, c, y, x]
    torch.testing.assert_close(parts.instance_values[d, i, c, y, x], product)
    for values, readout in (
        (parts.support_values, parts.global_readout),
        (parts.instance_values[d], parts.instance_readouts[d]),
    ):
        flat = values[:, c].flatten()  # frame by frame, row by row
        wanted = sum(float(flat[m] * parts.affinity[m, 11]) for m in range(3 * CELLS))
        assert float(readout[c, 2, 3]) == pytest.approx(wanted)
    joined = giel.global_embedding(parts.query_value, parts.support_values, parts.affinity)
    assert torch.equal(joined, torch.cat((parts.query_value, parts.global_readout)))


@pytest.mark.parametrize("variant", ["full", "fast"])
def test_logits_are_those_of_the_product(clip: Clip, variant: str) -> None:
    logits, parts = transcribe(*clip, variant=variant)
    product = torch.sigmoid(parts.instance_maps) * torch.sigmoid(parts.global_map)
    torch.testing.assert_close(torch.sigmoid(logits), product)
    alone, same = transcribe(*clip, variant=variant, product=False)
    assert torch.equal(alone, parts.instance_maps) and torch.equal(
        same.global_map, parts.global_map
    )


def test_the_logit_of_a_product_stays_finite() -> None:
    """A product of near certainties has the smaller logit, or ln 2 less where both are equal."""
    maps = torch.tensor([[80.0, 80.0, -80.0, -80.0, 700.0]]).double()
    foreground = torch.tensor([80.0, 20.0, 0.0, -80.0, 700.0]).double()
    logits = giel.final_logits(maps, foreground)[0]
    ln2 = math.log(2)
    wanted = [80 - ln2, 20, -80 - ln2, -160, 700 - ln2]
    torch.testing.assert_close(
        logits, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_coarse_maps_are_enlarged_by_four(fast: tuple[Tensor, Parts]) -> None:
    coarse, maps = fast[1].coarse_maps, fast[1].instance_maps
    assert coarse is not None
    torch.testing.assert_close(maps[:, 0, 0], coarse[:, 0, 0])  # beyond the outer cells' centres
    # Row 6 is 1.125 cells down (half-pixel centres), column 3 is 0.375 across.
    rows = 0.875 * coarse[:, 1] + 0.125 * coarse[:, 2]
    torch.testing.assert_close(maps[:, 6, 3], 0.625 * rows[:, 0] + 0.375 * rows[:, 1])


def test_the_coarse_network_sees_one_cell_at_a_time(weights: Weights) -> None:
    embedding = torch.randn(2 * VALUE, 3, 4, generator=torch.Generator().manual_seed(3)).double()
    first, last = (weights[f"coarse.{i}.weight"][:, :, 0, 0] for i in (0, 2))
    hidden = (first @ embedding[:, 2, 1] + weights["coarse.0.bias"]).clamp(min=0)
    wanted = last[0] @ hidden + weights["coarse.2.bias"][0]
    torch.testing.assert_close(giel.coarse_map(weights, embedding)[2, 1], wanted)


def test_encoders_and_decoders_are_stms(clip: Clip, full: tuple[Tensor, Parts]) -> None:
    """MUNet has the same blocks; its transcription was written independently."""
    weights, frames, _, unions, _ = clip
    mask = torch.as_tensor(unions[1]).double()
    r4 = munet.resnet18(weights, "support_encoder", frames[1], mask[None, None])[2]
    torch.testing.assert_close(giel.encode(weights, "support_encoder", frames[1], mask)[2], r4)
    r2, r3, _ = munet.resnet18(weights, "query_encoder", frames[3])
    x = torch.cat((full[1].query_value, full[1].global_readout))[None]
    wanted = munet.decode(weights, "global_decoder.", x, r3, r2)[0, 0]
    torch.testing.assert_close(full[1].global_map, wanted)


def test_permuting_the_slots_permutes_the_maps(clip: Clip, full: tuple[Tensor, Parts]) -> None:
    weights, frames, labels, unions, support = clip
    moved = [np.array([0, 3, 1, 2])[slots] for slots in labels]  # slot 1 becomes 3, 2 becomes 1
    logits, parts = transcribe(weights, frames, moved, unions, support)
    torch.testing.assert_close(logits, full[0][[1, 2, 0]])
    torch.testing.assert_close(parts.global_map, full[1].global_map)


def test_an_object_that_is_not_there_yet_has_an_empty_channel(clip: Clip) -> None:
    weights, frames, labels, unions, support = clip
    more = transcribe(weights, frames, labels, unions, support, variant="fast", objects=4)[1]
    late = giel.label_tensor(labels[1], 4)
    assert late[0].eq(0).all() and torch.equal(late[1], torch.as_tensor(unions[1]).double())
    torch.testing.assert_close(more.label_embedding[3, 1], giel.label_embedding(weights, late))


def test_only_the_support_is_heard(clip: Clip, fast: tuple[Tensor, Parts]) -> None:
    weights, frames, labels, unions, _ = clip
    noise = [frames[0], frames[1] + 5, *frames[2:]]
    empty = [labels[0], labels[1] * 0, labels[2]]
    one = transcribe(weights, frames, labels, unions, [0, 2], variant="fast")[0]
    two = transcribe(weights, noise, empty, unions, [0, 2], variant="fast")[0]
    assert torch.equal(one, two) and not torch.equal(one, fast[0])
    masked = [unions[0], unions[1] * 0, unions[2]]
    other = transcribe(weights, frames, labels, masked, [0, 1, 2], variant="fast")[0]
    assert (other - fast[0]).abs().max() > 1e-3


def test_attention_is_the_network_of_figure_3(weights: Weights) -> None:
    generator = torch.Generator().manual_seed(2)
    keys = torch.randn(4, KEY, 3, 4, generator=generator).double()
    keys = keys + torch.arange(-2, 2).view(4, 1, 1, 1)

    def conv1(name: str, x: Tensor) -> Tensor:
        weight, bias = weights[f"attention.{name}.weight"], weights[f"attention.{name}.bias"]
        return functional.conv2d(x, weight.view(*weight.shape[:2], 1, 1), bias)

    pooled = functional.adaptive_avg_pool2d(conv1("summarise", keys).relu(), 1)
    first, query = pooled[:1].expand(3, -1, -1, -1), pooled[3:].expand(3, -1, -1, -1)
    x = torch.cat((first, pooled[:3], query), dim=1)
    scores = conv1("weigh", conv1("mix2", conv1("mix1", x).relu()).relu())
    result = giel.frame_weights(weights, keys[:3], keys[3])
    torch.testing.assert_close(result, scores.flatten().softmax(dim=0))
    assert result.std() > 0.01


def test_the_first_frame_weighs_on_every_other(clip: Clip, full: tuple[Tensor, Parts]) -> None:
    keys, query = full[1].support_keys, full[1].query_key
    same = giel.frame_weights(clip[0], torch.stack((keys[0], keys[1], keys[1])), query)
    torch.testing.assert_close(same[1], same[2])
    first = giel.frame_weights(clip[0], torch.stack((keys[2], keys[0], keys[1])), query)
    ratios = full[1].frame_weights[0] / full[1].frame_weights[1], first[1] / first[2]
    assert not torch.isclose(*ratios)  # the same two frames beside another first one


def test_every_weight_is_heard(clip: Clip) -> None:
    """All but what adds the same to every frame's score, which a softmax cannot see: the last bias
    of the attention, and those before while every frame lights the same units."""
    with_gradient: set[str] = set()
    for variant in ("full", "fast"):
        learned = {name: tensor.clone().requires_grad_() for name, tensor in clip[0].items()}
        transcribe(learned, *clip[1:], variant=variant)[0].pow(2).sum().backward()
        with_gradient |= {
            n for n, t in learned.items() if t.grad is not None and t.grad.abs().max() > 1e-9
        }
    silent = set(clip[0]) - with_gradient
    assert "attention.weigh.bias" in silent
    assert silent <= {f"attention.{layer}.bias" for layer in ("mix1", "mix2", "weigh")}


def test_shared_decoders_and_separate_heads_follow_the_names(
    clip: Clip, full: tuple[Tensor, Parts]
) -> None:
    weights = clip[0]
    shared = {n: t for n, t in weights.items() if not n.startswith("instance_decoder.")}
    same = {
        n.replace("global_decoder.", "instance_decoder."): t
        for n, t in shared.items()
        if n.startswith("global_decoder.")
    }
    logits = transcribe(shared, *clip[1:])[0]
    assert torch.equal(logits, transcribe(shared | same, *clip[1:])[0])
    assert not torch.allclose(logits, full[0])
    heads = {
        n.replace("query_head.", "support_head."): 2 * t
        for n, t in weights.items()
        if n.startswith("query_head.")
    }
    parts = transcribe(weights | heads, *clip[1:], variant="fast")[1]
    torch.testing.assert_close(parts.support_keys, 2 * full[1].support_keys)
    torch.testing.assert_close(parts.support_values, 2 * full[1].support_values)
    torch.testing.assert_close(parts.query_value, full[1].query_value)


def test_support_is_everything_then_first_last_and_centres() -> None:
    assert support_set(1) == [0] and support_set(5) == [0, 1, 2, 3, 4]
    assert support_set(6) == [0, 1, 3, 4, 5]  # centres of 1..4: 0.67, 2, 3.33 of 4
    assert support_set(6, literal=True) == [0, 1, 2, 4, 5]  # of 1..5: 0.625, 1.875, 3.125, 4.375
    assert support_set(32) == [0, 6, 16, 26, 31] and support_set(32, size=2) == [0, 31]
    assert support_set(41, literal=True) == [0, 6, 16, 26, 36]
    assert support_set(32, prompted=(0, 9, 31, 40)) == [0, 6, 9, 16, 26, 31]


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("size", [3, 5, 6])
def test_support_has_its_size_and_lies_in_the_past(size: int, literal: bool) -> None:
    for t in range(1, 80):
        chosen = support_set(t, size, literal)
        assert len(chosen) == min(t, size) and chosen[0] == 0 and chosen[-1] < t
        assert literal or chosen[-1] == t - 1
