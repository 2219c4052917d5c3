"""The networks: every model's four verbs, and the decoder and MUNet against a transcription."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FOLLOWERS, WITH_HARD_MASKS, WITH_MEMORY, make, tiny_config
from munet_transcription import Weights, attend, decode, transcribe
from quick_streams import everything_in
from torch import Tensor, nn

import vosengine.models.munet as munet_module
from vosengine.config import IMAGENET_MEAN, IMAGENET_STD
from vosengine.frames import prepare
from vosengine.kernels import use_backend
from vosengine.models.backbone import Pyramid
from vosengine.models.blocks import Decoder, MatchingState
from vosengine.models.method import Method, tensors_in
from vosengine.models.munet import MotionAttention
from vosengine.types import Geometry, Masks
from vosengine.zoo.registry import build, list_models

SIZE = 45, 61  # padded to 48 x 64
GEOMETRY = Geometry.fit(SIZE, size=None, multiple=16)
MODELS = pytest.mark.parametrize("model", FOLLOWERS)
EVERY_MODEL = pytest.mark.parametrize("model", list_models())


def tiny(model: str, **changes: Any) -> Method[Any, Any]:
    """A tiny network whose norms are not the identity, so that omitting one is detected."""
    method = build(model, tiny_config(model, **changes))
    generator = torch.Generator().manual_seed(1)
    for layer in method.modules():
        if isinstance(layer, nn.BatchNorm2d):
            size = layer.weight.shape
            layer.running_mean.copy_(0.1 * torch.randn(size, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(size, generator=generator))
            layer.bias.copy_(0.1 * torch.randn(size, generator=generator))
    return method


def image(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def prepared(seed: int = 0, geometry: Geometry = GEOMETRY) -> Tensor:
    """A prepared frame, [1, 3, H, W]."""
    frame = torch.from_numpy(image(seed))
    return prepare(frame, geometry, IMAGENET_MEAN, IMAGENET_STD, torch.float32)[None]


def soft_masks(objects: int, seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    planes = torch.randn(1 + objects, *GEOMETRY.network, generator=generator)
    return Masks((2 * planes).softmax(dim=0), tuple(range(objects)))


def seen_at(method: Method[Any, Any], frames: list[Tensor], index: int) -> list[Any]:
    """Features of the method's window for that frame."""
    last = len(frames) - 1
    return [method.encode(frames[min(max(index + offset, 0), last)]) for offset in method.sees]


def without_candidates(features: Any) -> Any:
    """Features of whole frames only, since the number of proposals varies."""
    return features._replace(candidates=()) if hasattr(features, "candidates") else features


def started(method: Method[Any, Any], objects: int, max_objects: int = 4) -> tuple[Any, list[Any]]:
    """The state after a first frame with that many objects, and the window of the second."""
    frames = [prepared(0), prepared(1)]
    state = method.start(GEOMETRY, max_objects)
    method.remember(seen_at(method, frames, 0), soft_masks(objects), state)
    return state, seen_at(method, frames, 1)


def fingerprint(state: object) -> str:
    digest = hashlib.sha256()
    for tensor in everything_in(state):
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


# Every model


@MODELS
@pytest.mark.parametrize("objects", [1, 3])
def test_the_four_verbs_and_their_shapes(model: str, objects: int) -> None:
    method = tiny(model)
    state, seen = started(method, objects)
    assert isinstance(seen[0], method.features)
    assert all(
        t.shape[0] == 1 for features in seen for t in tensors_in(without_candidates(features))
    )
    assert state.object_count == objects
    scores = method.segment(seen, state)
    assert scores.logits.shape == (objects, *GEOMETRY.cells(scores.stride))
    assert scores.logits.isfinite().all()
    assert scores.logits.std() > 0.01
    method.remember(seen, soft_masks(objects + 1, seed=1), state)  # one more starts here
    assert state.object_count == objects + 1
    again = method.segment(seen, state)
    assert again.logits.shape == (objects + 1, *GEOMETRY.cells(scores.stride))
    state.forget(0)
    assert method.segment(seen, state).logits.shape == scores.logits.shape


@MODELS
@pytest.mark.parametrize("policy", ["every-5", "afb"])
def test_segment_reads_the_state_and_never_writes_it(model: str, policy: str) -> None:
    method = tiny(model)
    if model in WITH_MEMORY:
        memory = dataclasses.replace(method.config.memory, policy=policy, budget=500)
        method.config = dataclasses.replace(method.config, memory=memory)
    elif policy == "afb":
        pytest.skip(f"{model} has a memory of its own")
    state, seen = started(method, 2)
    kept, before = fingerprint(seen), fingerprint(state)
    assert len(everything_in(state)) > 3
    first = method.segment(seen, state)
    assert fingerprint(state) == before
    assert torch.equal(method.segment(seen, state).logits, first.logits)
    assert fingerprint(state) == before
    method.remember(seen, soft_masks(2, seed=1), state)
    assert fingerprint(state) != before
    assert fingerprint(seen) == kept


@EVERY_MODEL
def test_frames_are_encoded_in_a_batch_as_one_by_one(model: str) -> None:
    method = tiny(model)
    geometry = Geometry.fit(SIZE, size=None, multiple=method.stride)
    frames = prepared(0, geometry), prepared(1, geometry)
    together = method.encode(torch.cat(frames))
    alone = (tensors_in(without_candidates(method.encode(frame))) for frame in frames)
    one_by_one = map(torch.cat, zip(*alone, strict=True))
    for batch, alone in zip(tensors_in(without_candidates(together)), one_by_one, strict=True):
        assert (batch - alone).abs().max() <= 1e-5 * alone.abs().max()


@MODELS
def test_the_order_of_the_objects_does_not_matter(model: str) -> None:
    method, order = tiny(model), [2, 0, 1]
    frames = [prepared(0), prepared(1)]
    logits = []
    for rows in ([0, 1, 2, 3], [0, *(1 + o for o in order)]):
        state = method.start(GEOMETRY, 3)
        masks = Masks(soft_masks(3).probabilities[rows], (0, 1, 2))
        method.remember(seen_at(method, frames, 0), masks, state)
        logits.append(method.segment(seen_at(method, frames, 1), state).logits)
    torch.testing.assert_close(logits[1], logits[0][order], rtol=1e-4, atol=1e-4)
    assert (logits[0][0] - logits[0][1]).abs().max() > 0.05  # they do differ


@MODELS
def test_the_ids_of_the_objects_do_not_matter(model: str) -> None:
    first = np.zeros(SIZE, np.uint8)
    first[5:20, 6:30], first[22:40, 25:55] = 1, 2
    answers = []
    for ids in ([0, 1, 2], [0, 200, 7]):
        segmenter = make(model, max_objects=3)
        later = 1 if model in WITH_HARD_MASKS else 3
        prompts = [np.array(ids, np.uint8)[first], *(None,) * later]
        results = [segmenter.step(image(t), prompt) for t, prompt in enumerate(prompts)]
        results = [r for r in (*results, *segmenter.flush()) if r is not None]
        rows = [0, *(1 + sorted(ids[1:]).index(object_id) for object_id in ids[1:])]
        answers.append(torch.stack([result.probabilities[rows] for result in results]))
        for result in results:
            wanted = torch.tensor([0, *result.ids])[result.probabilities.argmax(dim=0)]
            assert torch.equal(result.labels.long(), wanted)
    # Rounding grows from frame to frame, as the masks are remembered: 1.4e-4 in the third.
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=2e-3)
    assert answers[0][1:].std(dim=(0, 2, 3)).min() > 0.02


@MODELS
def test_the_decoders_skips_are_computed_once_a_frame_for_all_objects(model: str) -> None:
    segmenter = make(model, max_objects=3)
    decoder = getattr(segmenter.method, "decoder", None)
    if not isinstance(decoder, Decoder):
        pytest.skip(f"{model} has another decoder")
    calls = {decoder.skip3: 0, decoder.skip2: 0, decoder: 0}
    for module in calls:
        module.register_forward_hook(lambda m, *_: calls.__setitem__(m, calls[m] + 1))
    prompt = np.zeros(SIZE, np.uint8)
    prompt[5:15, 5:15], prompt[20:30, 5:15], prompt[20:40, 30:50] = 1, 2, 3
    for frame in range(3):
        segmenter.step(image(frame), prompt if frame == 0 else None)
    assert list(calls.values()) == [3, 3, 2]  # no object to decode in the first


@EVERY_MODEL
def test_a_seed_gives_the_same_network_and_touches_no_other_randomness(model: str) -> None:
    config = tiny_config(model)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    states = [build(model, config, seed).state_dict() for seed in (3, 3, 4)]
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@EVERY_MODEL
def test_a_built_network_is_for_inference(model: str) -> None:
    method = build(model, tiny_config(model))
    assert not any(module.training for module in method.modules())
    assert not any(parameter.requires_grad for parameter in method.parameters())


# The decoder


def weights_of(method: nn.Module) -> Weights:
    return {name: tensor.double() for name, tensor in method.state_dict().items()}


def test_the_decoder_cut_in_two_is_the_decoder_in_one_piece() -> None:
    torch.manual_seed(0)
    decoder = Decoder(12, (6, 10), 8).double()
    x = torch.randn(3, 12, 3, 4, dtype=torch.float64)
    r3 = torch.randn(1, 10, 6, 8, dtype=torch.float64)
    r2 = torch.randn(1, 6, 12, 16, dtype=torch.float64)
    with torch.no_grad():
        logits = decoder(x, *decoder.skips(Pyramid(r2, r3, torch.empty(0))))
        pair = decode(weights_of(decoder), "", x, r3, r2)
    assert logits.shape == (3, 12, 16)
    torch.testing.assert_close(logits.sigmoid(), pair.softmax(dim=1)[:, 1], rtol=0, atol=1e-12)
    assert logits.std() > 0.01


# MUNet


def test_the_motion_network_is_table_1_of_the_paper() -> None:
    with torch.device("meta"):
        motion = MotionAttention(1024, "attention")
    table = [
        (3, 3, 7),
        (3, 16, 1),
        (16, 16, 3),
        (16, 32, 1),
        (32, 32, 3),
        (32, 32, 1),
        (32, 64, 3),
        (64, 1024, 1),
    ]
    layers = [*motion.layers, motion.expand]
    assert [(c.in_channels, c.out_channels, *c.kernel_size) for c in layers] == [
        (c_in, c_out, size, size) for c_in, c_out, size in table
    ]
    assert all(c.stride == (1, 1) and c.bias is not None for c in layers)
    assert motion.attention.weight.shape == (1, 1024, 1, 1)


@pytest.mark.parametrize("fusion", ["attention", "add"])
def test_the_collapsed_attention_is_the_two_steps_of_the_paper(fusion: str) -> None:
    torch.manual_seed(0)
    module = MotionAttention(40, fusion).double()
    motion, semantic = (torch.randn(2, c, 5, 7, dtype=torch.float64) for c in (3, 40))
    for layer in module.layers:
        layer.weight.data *= 3  # torch's own start would shrink eight layers to their biases
    weights = {f"motion.{name}": tensor for name, tensor in weights_of(module).items()}
    wanted = attend(weights, motion, semantic, fusion)
    with torch.no_grad():
        result = module(motion, semantic)
    assert (result - wanted).abs().max() < 1e-10
    spread = (wanted - semantic if fusion == "add" else wanted / semantic).std(dim=(2, 3))
    assert spread.min() > 1e-3  # the motion is heard


def test_fusion_add_has_no_attention() -> None:
    assert MotionAttention(8, "add").attention is None
    assert not any("motion.attention" in name for name in tiny("munet", fusion="add").state_dict())


def test_the_motion_is_of_this_frame_against_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[Tensor, Tensor]] = []
    real = munet_module.correlate_frames

    def spy(query: Tensor, previous: Tensor, **options: object) -> Tensor:
        calls.append((query, previous))
        assert options["radius"] == 12
        assert options["outside"] == "zero"
        assert float(options["temperature"]) == 20
        return real(query, previous, **options)

    monkeypatch.setattr(munet_module, "correlate_frames", spy)
    segmenter = make("munet", max_objects=1)
    prompt = np.zeros(SIZE, np.uint8)
    prompt[5:20, 6:30] = 1
    for frame in range(4):
        segmenter.step(image(frame), prompt if frame == 0 else None)
    reduced = [segmenter.method.encode(prepared(frame)).reduced for frame in range(4)]
    assert len(calls) == 3
    for index, (query, previous) in enumerate(calls, start=1):
        torch.testing.assert_close(query, reduced[index])
        torch.testing.assert_close(previous, reduced[index - 1])


def test_frames_that_do_not_move_have_no_displacement_and_full_confidence() -> None:
    method = tiny("munet")
    generator = torch.Generator().manual_seed(0)
    features = method.encode(torch.randn(1, 3, 160, 192, generator=generator))
    motion = munet_module.correlate_frames(
        features.reduced, features.reduced, radius=3, temperature=2000.0
    )
    inside = motion[:, :, 3:-3, 3:-3]
    assert inside.numel() > 0
    assert inside[:, :2].abs().max() < 0.02
    assert (motion[:, 2] - 1).abs().max() < 1e-5


@pytest.mark.parametrize("fusion", ["attention", "add"])
def test_munet_is_its_transcription(fusion: str) -> None:
    method = tiny("munet", fusion=fusion)
    frames = [prepared(seed) for seed in range(3)]
    masks = [soft_masks(2, seed) for seed in range(2)]
    with torch.no_grad():
        planes = [m.probabilities[1:].double() for m in masks]
        wide = [frame.double() for frame in frames]
        pair = transcribe(weights_of(method), wide, planes, fusion=fusion)
    wanted = pair[:, 1] - pair[:, 0]
    assert wanted.std() > 0.05
    for dtype, backend, tolerance in (
        (torch.float64, "reference", 1e-9),
        (torch.float32, "auto", 1e-4),
    ):
        method.to(dtype)
        given_frames = [frame.to(dtype) for frame in frames]
        state: MatchingState = method.start(GEOMETRY, 2)
        with use_backend(backend), torch.no_grad():
            for index in range(2):
                method.remember(seen_at(method, given_frames, index), masks[index], state)
            logits = method.segment(seen_at(method, given_frames, 2), state).logits
        assert logits.dtype == dtype
        assert (logits - wanted).abs().max() <= tolerance * max(1, float(wanted.abs().max()))
