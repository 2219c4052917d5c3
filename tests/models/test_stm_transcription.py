"""The float64 transcription of STM behaves like a segmenter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stm_transcription import State, official_shapes, random_state_dict, transcribe

Clip = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # frames [T,H,W,3], frame 0's ids [H,W]


@pytest.fixture(scope="module")
def state() -> State:
    return random_state_dict(0)


@pytest.fixture(scope="module")
def clip() -> Clip:
    """Five frames of 40x57 (pads 4+4 and 3+4) with two drifting ellipses, and frame 0's ids."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :57]
    wave = 60 * np.sin(y / 5) * np.cos(x / 7)
    frames, mask = [], np.zeros((40, 57), np.uint8)
    for t in range(5):
        frame = 127 + wave[..., None] * (1.0, -0.5, 0.7)
        for object_id, (cy, cx) in enumerate([(14 + t, 17 + 1.5 * t), (26 - t, 40 - t)], start=1):
            inside = ((y - cy) / 7) ** 2 + ((x - cx) / 9) ** 2 < 1
            frame[inside] = np.roll((220, 60, 30), object_id)
            if t == 0:
                mask[inside] = object_id
        frames.append(np.clip(frame + rng.normal(0, 12, frame.shape), 0, 255).astype(np.uint8))
    return np.stack(frames), mask


@pytest.fixture(scope="module")
def output(state: State, clip: Clip) -> NDArray[np.float64]:
    return transcribe(state, *clip)


def test_keys_are_those_of_the_official_file(state: State) -> None:
    shapes = official_shapes()
    # Per encoder 43 convs and norms (1 + 5 keys), mean, std; 2 mask convs; 4 heads; 14 convs.
    trunk = (1 + 3 * (3 + 4 + 6) + 3) * (1 + 5)
    assert len(shapes) == (trunk + 2) * 2 + 2 + 4 * 2 + 14 * 2 == 558
    assert shapes["Encoder_M.conv1_o.weight"] == (64, 1, 7, 7)
    assert shapes["Encoder_Q.res4.5.conv3.weight"] == (1024, 256, 1, 1)
    assert shapes["Encoder_M.res3.0.downsample.0.weight"] == (512, 256, 1, 1)
    assert shapes["KV_Q_r4.Value.weight"] == (512, 1024, 3, 3)
    assert shapes["Decoder.RF3.convFS.weight"] == (256, 512, 3, 3)
    assert shapes["Decoder.pred2.bias"] == (2,)
    assert not any("downsample" in name for name in shapes if name.startswith("Decoder"))
    assert not any(part in name for name in shapes for part in ("fc.", "layer4", "res5", "module."))
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes


def test_parameters_are_as_many_as_two_trunks_and_a_decoder() -> None:
    # ResNet-50 up to layer3 has 8 543 296 parameters: 25 557 032 less layer4 and fc.
    stored = ("running_mean", "running_var", "num_batches_tracked", ".mean", ".std")
    learned = {n: math.prod(s) for n, s in official_shapes().items() if not n.endswith(stored)}
    trunk = sum(count for name, count in learned.items() if name.startswith("Encoder_Q"))
    assert trunk == 25_557_032 - 14_964_736 - 2_049_000
    assert sum(learned.values()) == 2 * trunk + 2 * 64 * 49 + 2 * 5_898_880 + 10_034_946


def test_random_weights_repeat_and_are_single_precision(state: State) -> None:
    again = random_state_dict(0)
    assert all(torch.equal(again[name], state[name]) for name in state)
    counted = {name for name, tensor in state.items() if tensor.dtype != torch.float32}
    assert all(name.endswith("num_batches_tracked") for name in counted)


@pytest.mark.slow
def test_probabilities_are_finite_sum_to_one_and_say_something(
    output: NDArray[np.float64], clip: Clip
) -> None:
    assert output.shape == (5, 3, 40, 57)
    assert output.dtype == np.float64
    assert np.isfinite(output).all()
    np.testing.assert_allclose(output.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(output[0].argmax(axis=0), clip[1])
    later = output[1:]
    assert (later.max(axis=1) > 0.999).mean() < 0.1  # not saturated
    assert later.std(axis=(0, 2, 3)).min() > 0.05  # nor flat
    assert np.bincount(later.argmax(axis=1).ravel(), minlength=3).min() > 0.02 * later[:, 0].size


def test_permuting_the_objects_permutes_the_rows(
    state: State, clip: Clip, output: NDArray[np.float64]
) -> None:
    frames, mask = clip
    swapped = transcribe(state, frames[:3], np.array([0, 2, 1], np.uint8)[mask])
    np.testing.assert_allclose(swapped, output[:3, [0, 2, 1]], atol=1e-10)
    assert np.abs(output[1:, 1] - output[1:, 2]).max() > 0.1


@pytest.mark.slow
def test_the_memory_schedule_matters_from_the_fourth_frame_on(
    state: State, clip: Clip, output: NDArray[np.float64]
) -> None:
    # Frame 3 reads {0, 1, 2} when every frame is kept and {0, 2} when every fifth is.
    change = np.abs(transcribe(state, *clip, memory_every=1) - output).max(axis=(1, 2, 3))
    np.testing.assert_array_equal(change[:3], 0)
    assert change[3:].min() > 0.01


def test_the_official_eleven_rows_cost_less_than_a_millionth(
    state: State, clip: Clip, output: NDArray[np.float64]
) -> None:
    eleven = transcribe(state, clip[0][:3], clip[1], unused_rows=8)
    change = np.abs(eleven - output[:3]).max()
    assert 0 < change < 1e-6


def test_certain_pixels_stay_finite(state: State, clip: Clip) -> None:
    loud = {**state, "Decoder.pred2.weight": 100 * state["Decoder.pred2.weight"]}
    sure = transcribe(loud, clip[0][:2], clip[1])[1]
    np.testing.assert_allclose(sure.sum(axis=0), 1, atol=1e-12)
    assert (sure.max(axis=0) > 1 - 1e-6).any()
    assert sure.min() > 1e-15  # the clamp's floor, 1e-7 over 1e7
