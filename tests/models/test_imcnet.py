"""IMCNet: its equations, streaming compared with whole clips, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make, tiny_config, to_the_end
from torch import Tensor, nn

from vosengine.config import IMAGENET_MEAN, IMAGENET_STD, IMCNetConfig
from vosengine.engine.segmenter import Segmenter
from vosengine.errors import ConfigError, InputError
from vosengine.frames import prepare
from vosengine.models.imcnet import Affinity, Fusion, IMCNet, Propagation, activation_map
from vosengine.training.synthetic import Clip
from vosengine.types import Geometry
from vosengine.zoo.registry import build

NEIGHBOURS = {"N = 1, step 4": {}, "N = 2, step 1": {"neighbours": 2, "step": 1}}


def offline(
    segmenter: Segmenter, frames: Sequence[np.ndarray], sees: tuple[int, ...]
) -> list[Tensor]:
    """Probabilities [H, W] of every frame, each computed from its own clip without a cache."""
    method = segmenter.method
    geometry = Geometry.fit(frames[0].shape[:2], size=None, multiple=32)
    left, _, top, _ = geometry.padding
    height, width = geometry.frame

    def prepared(index: int) -> Tensor:
        frame = torch.from_numpy(frames[min(max(index, 0), len(frames) - 1)])
        return prepare(frame, geometry, IMAGENET_MEAN, IMAGENET_STD, segmenter.dtype)[None]

    answers = []
    for t in range(len(frames)):
        clip = [prepared(t + offset) for offset in sees]
        if segmenter.dtype == torch.float64:
            features = method.encode(torch.cat(clip))
            seen = [type(features)(*(x[i : i + 1] for x in features)) for i in range(len(sees))]
        else:  # convolutions of a batch round otherwise: up to 2e-5 in what comes out of this net
            seen = [method.encode(frame) for frame in clip]
        with torch.no_grad():
            whole = method.foreground(seen)[0, 0]
        answers.append(whole[top : top + height, left : left + width])
    return answers


@pytest.mark.parametrize("length", [1, 2, 4, 5, 10])
@pytest.mark.parametrize("changes", NEIGHBOURS.values(), ids=NEIGHBOURS)
@pytest.mark.slow
def test_streamed_is_the_whole_clip_at_once(
    changes: dict[str, int], length: int, clip: Clip
) -> None:
    segmenter = make("imcnet", changes=changes)
    frames = clip.frames[:length]
    results = to_the_end(segmenter, frames)
    assert [result.frame_index for result in results] == list(range(length))
    wanted = offline(segmenter, frames, segmenter.method.sees)
    for result, probability in zip(results, wanted, strict=True):
        assert result.ids == (1,)
        background, foreground = result.probabilities
        # A batch and a single frame are summed in other orders: up to 5.05e-5 on a processor with
        # AVX2 alone. In float64 both agree to 1e-11 (below).
        assert (foreground - probability).abs().max() < 1e-4
        torch.testing.assert_close(background, 1 - foreground, rtol=0, atol=1e-6)
        assert torch.equal(result.labels, (foreground > background).to(torch.uint8))
    assert torch.stack(wanted).std() > 0.01


@pytest.mark.slow
def test_foreground_begins_at_the_configured_threshold(clip: Clip) -> None:
    plain = to_the_end(make("imcnet"), clip.frames)[4].probabilities[1]
    threshold = float(plain.median())
    segmenter = make("imcnet", changes={"threshold": threshold})
    result = to_the_end(segmenter, clip.frames)[4]
    odds = plain / (1 - plain) * (1 - threshold) / threshold
    torch.testing.assert_close(result.probabilities[1], odds / (1 + odds), rtol=0, atol=1e-5)
    differ = result.labels != (plain > threshold)
    assert not differ[(plain - threshold).abs() > 1e-5].any()
    assert 0.4 < float(result.labels.float().mean()) < 0.6


@pytest.mark.slow
def test_in_float64_streamed_and_whole_agree_to_rounding(clip: Clip) -> None:
    segmenter = make("imcnet")
    segmenter.method.double()
    segmenter.dtype = torch.float64
    answers: list[Tensor] = []
    real = segmenter.method.foreground
    segmenter.method.foreground = lambda seen: answers.append(real(seen)) or answers[-1]
    to_the_end(segmenter, clip.frames)
    segmenter.method.foreground = real
    for result, wanted in zip(answers, offline(segmenter, clip.frames, (-4, 0, 4)), strict=True):
        assert (result[0, 0, 15:80, 14:113] - wanted).abs().max() < 1e-11


def test_answers_come_four_frames_late_and_flush_gives_the_rest(clip: Clip) -> None:
    segmenter = make("imcnet")
    assert segmenter.latency == 4
    answers = [segmenter.step(frame) for frame in clip.frames]
    assert [a and a.frame_index for a in answers] == [None] * 4 + list(range(6))
    assert [result.frame_index for result in segmenter.flush()] == [6, 7, 8, 9]
    assert segmenter.flush() == []
    with pytest.raises(InputError, match="flushed"):
        segmenter.step(clip.frames[0])
    segmenter.reset()
    assert segmenter.flush() == []  # before any frame
    assert segmenter.step(clip.frames[0]) is None


@pytest.mark.parametrize("changes", NEIGHBOURS.values(), ids=NEIGHBOURS)
@pytest.mark.slow
def test_online_answers_at_once_with_the_newest_frame_for_the_future(
    changes: dict[str, int], clip: Clip
) -> None:
    segmenter = make("imcnet", changes=changes, online=True)
    assert segmenter.latency == 0
    results = [segmenter.step(frame) for frame in clip.frames]
    assert segmenter.flush() == []
    sees = tuple(min(0, offset) for offset in segmenter.method.sees)
    for result, wanted in zip(results, offline(segmenter, clip.frames, sees), strict=True):
        assert result is not None
        assert (result.probabilities[1] - wanted).abs().max() < 5e-5


def test_the_backbone_runs_once_a_frame(clip: Clip) -> None:
    segmenter = make("imcnet")
    shapes = []
    segmenter.method.backbone.register_forward_hook(lambda m, inputs, out: shapes.append(inputs[0]))
    to_the_end(segmenter, clip.frames)
    assert [tuple(frame.shape) for frame in shapes] == [(1, 3, 96, 128)] * 10


def test_the_ring_never_holds_more_than_the_window(clip: Clip) -> None:
    segmenter = make("imcnet")
    for frame in (*clip.frames, *clip.frames):
        segmenter.step(frame)
        assert len(segmenter.ring) <= 8  # nine frames while a step works
    assert [pending.index for pending in segmenter.ring] == list(range(12, 20))


def test_a_frame_without_any_foreground(clip: Clip) -> None:
    segmenter = make("imcnet")
    segmenter.method.predict.bias.fill_(-1000.0)
    results = to_the_end(segmenter, clip.frames[:6])
    assert len(results) == 6
    for result in results:
        assert not result.labels.any()
        assert result.ids == (1,)
        assert result.probabilities[1].max() < 1e-6
        assert result.probabilities.isfinite().all()


def test_a_memory_policy_or_proposals_are_refused() -> None:
    with pytest.raises(ConfigError, match="memory: imcnet has no memory"):
        make("imcnet", memory="every-5")
    with pytest.raises(ConfigError, match="proposals: imcnet takes none"):
        make("imcnet", proposals=lambda frame, index: None)


@pytest.mark.parametrize(
    ("asked", "network"),
    [(None, (64, 96)), ("native", (96, 128)), (48, (64, 96)), ((96, 64), (96, 64))],
)
def test_the_size_is_the_configs_native_or_the_callers(
    asked: Any, network: tuple[int, int], clip: Clip
) -> None:
    segmenter = make("imcnet", changes={"size": (64, 96)}, size=asked, online=True)
    result = segmenter.step(clip.frames[0])
    assert segmenter.geometry is not None
    assert segmenter.geometry.network == network
    assert result is not None
    assert result.labels.shape == (65, 99)


def test_the_published_size_is_480_square() -> None:
    assert IMCNetConfig().size == (480, 480)
    with torch.device("meta"):
        assert IMCNet(IMCNetConfig()).size == (480, 480)


# The equations


def test_affinity_is_the_equation_in_float64() -> None:
    """S = L^T R over all positions of all frames' stacked keys, softmax over L's, applied to each
    frame's own map."""
    torch.manual_seed(0)
    module = Affinity(3, 4).double()
    keys = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    maps = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    stacked = keys.reshape(12, 6).numpy()
    weights = {name: tensor.numpy() for name, tensor in module.state_dict().items()}

    def transform(side: str) -> np.ndarray:
        matrix = weights[f"{side}.weight"][:, :, 0, 0]
        return matrix @ stacked + weights[f"{side}.bias"][:, None]

    scores = transform("left").T @ transform("right")  # [L, R]
    shares = np.exp(scores) / np.exp(scores).sum(axis=0)
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    wanted = np.stack([frame.reshape(5, 6).numpy() @ shares for frame in maps])
    with torch.no_grad():
        # Beside another stream, which has no part in it.
        result = module(torch.stack((keys, -keys)), torch.stack((maps, 2 * maps)))[0]
    np.testing.assert_allclose(result.numpy(), wanted.reshape(3, 5, 2, 3), rtol=1e-10)
    assert shares.max() > 2 / 6  # not the mean


def test_gating_is_the_equation_in_float64() -> None:
    """w = r * att * GAP(att); its mean channel without negatives, scaled to 0..1 frame by frame."""
    random = np.random.default_rng(0)
    maps, attention = random.normal(size=(2, 3, 4, 5, 6))  # two of [3 frames, 4, 5, 6]
    weighted = np.zeros_like(maps)
    wanted = np.zeros((3, 1, 5, 6))
    for frame in range(3):
        for channel in range(4):
            pooled = attention[frame, channel].sum() / 30
            weighted[frame, channel] = maps[frame, channel] * attention[frame, channel] * pooled
        mean = np.maximum(weighted[frame].sum(axis=0) / 4, 0)
        wanted[frame, 0] = (mean - mean.min()) / (mean.max() - mean.min() + 1e-6)
    activation = activation_map(torch.from_numpy(weighted))
    np.testing.assert_allclose(activation.numpy(), wanted, rtol=1e-12)
    module = Propagation((4, 4, 4, 4), 8).double().eval()
    inputs: list[Tensor] = []
    module.conv.register_forward_hook(lambda m, args, out: inputs.append(args[0]))
    skips = [torch.zeros(3, 4, 5 * s, 6 * s, dtype=torch.float64) for s in (8, 4, 2)]
    with torch.no_grad():
        _, gates = module([*skips, torch.from_numpy(maps)], torch.from_numpy(attention))
    np.testing.assert_allclose(inputs[0].numpy(), weighted, rtol=1e-12)
    np.testing.assert_allclose(gates[0].numpy(), wanted, rtol=1e-9)
    assert [tuple(gate.shape[2:]) for gate in gates] == [(5, 6), (10, 12), (20, 24)]


def test_training_has_the_finest_side_map_too() -> None:
    module = Propagation((4, 4, 4, 4), 8).train()
    maps = [torch.randn(3, 4, 3 * s, 3 * s) for s in (8, 4, 2, 1)]
    _, gates = module(maps, torch.randn(3, 4, 3, 3))
    assert [gate.shape[2] for gate in gates] == [3, 6, 12, 24]


def test_fusion_weighs_a_frame_by_its_likeness_to_the_centre() -> None:
    """A neighbour with an opposite embedding has no effect; the order of frames has one."""
    torch.manual_seed(0)
    fusion = Fusion(3, 4).double()
    aligned = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        fusion.centre.weight.zero_()
        fusion.centre.bias.fill_(1000.0)
        fusion.frame.weight.zero_()
        fusion.frame.weight[:, :, 1, 1] = torch.eye(4)
        fusion.frame.bias.zero_()
        aligned[0] = -aligned[0].abs() - 0.1
        aligned[1:] = aligned[1:].abs() + 0.1
        before = fusion(aligned[None])
        aligned[0] *= 3
        assert torch.equal(fusion(aligned[None]), before)
        aligned[2] *= 3
        assert (fusion(aligned[None]) - before).abs().max() > 0.1


@pytest.mark.parametrize("alignments", [0, 1, 4, 6])
@pytest.mark.parametrize("fusion", ["tsc", "conv3"])
def test_the_cascades_length_and_the_fusion_are_options(
    alignments: int, fusion: str, clip: Clip
) -> None:
    config = tiny_config("imcnet", alignments=alignments, fusion=fusion)
    method = build("imcnet", config)
    assert len(method.alignments) == alignments
    calls = []
    for layer in method.alignments:
        layer.register_forward_hook(lambda m, inputs, out: calls.append(inputs[1].shape[0]))
    segmenter = Segmenter("imcnet", config=config, device="cpu")
    for layer in segmenter.method.alignments:
        layer.register_forward_hook(lambda m, inputs, out: calls.append(inputs[1].shape[0]))
    results = to_the_end(segmenter, clip.frames[:2])
    assert calls == [2] * (2 * alignments)  # both neighbours in one call
    assert all(result.probabilities.isfinite().all() for result in results)


def test_alignment_moves_the_neighbours_only() -> None:
    torch.manual_seed(0)
    method = build("imcnet", tiny_config("imcnet"))
    features = torch.randn(3, 16, 8, 8)
    aligned = method.align(features[None])[0]
    assert torch.equal(aligned[1], features[1])
    for index in (0, 2):
        assert (aligned[index] - features[index]).abs().max() > 0.01
    # A layer that neither looks aside nor mixes channels leaves them where they are.
    for layer in method.alignments:
        for conv in (layer.offset, layer.deform):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
        layer.deform.weight[:, :, 1, 1] = torch.eye(16)
    torch.testing.assert_close(method.align(features[None])[0], features)


@pytest.mark.slow
def test_a_stream_stops_and_resumes_within_the_latency(clip: Clip, tmp_path: Path) -> None:
    for cut in (2, 4, 7):
        whole, first, second = make("imcnet"), make("imcnet"), make("imcnet")
        wanted = to_the_end(whole, clip.frames)
        before = [r for r in map(first.step, clip.frames[:cut]) if r is not None]
        first.save_state(tmp_path / "stream.safetensors")
        second.load_state(tmp_path / "stream.safetensors")
        results = [*before, *to_the_end(second, clip.frames[cut:])]
        assert [r.frame_index for r in results] == list(range(10))
        for a, b in zip(results, wanted, strict=True):
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.probabilities, b.probabilities)
