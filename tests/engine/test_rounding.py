"""Half precision: which weights are rounded, and that rounding errors cancel."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_streams import SIZE, assert_sound, begin, play, rectangle
from torch import nn
from torch.nn import functional

from vosengine import Segmenter
from vosengine.config import LITE
from vosengine.config.small import SMALL
from vosengine.models.backbone import ResNet
from vosengine.runtime import prepare_network
from vosengine.runtime.rounding import RUN, round_network, rounded
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.zoo.registry import build, list_models
from vosengine.zoo.weights import load

HALVES = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # half a unit, relative
CPU = torch.device("cpu")


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([(), (1, 1), (3, 3), (5, 1), (7, 7)]),
    st.sampled_from(list(HALVES)),
)
def test_errors_cancel_along_every_run(
    seed: int, outputs: int, inputs: int, kernel: tuple[int, ...], dtype: torch.dtype
) -> None:
    """After every weight of a run the cumulative error is at most the rounding of that weight."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(outputs, inputs, *kernel)).astype(np.float32)
    result = rounded(torch.from_numpy(weight), dtype)
    assert result.shape == weight.shape and result.dtype == dtype
    taps = int(np.prod(kernel))
    for row, wanted in zip(result.double().flatten(1).numpy(), weight, strict=True):
        for start in range(0, inputs * taps, RUN * taps):
            part = slice(start, start + RUN * taps)
            original = wanted.astype(np.float64).reshape(-1)[part]
            error = np.cumsum(row[part] - original)
            largest = np.abs(row[part]) * HALVES[dtype] + 2.0**-24
            assert (np.abs(error) <= 1.01 * largest + 1e-6).all()


def test_weights_that_need_no_rounding_are_left() -> None:
    weight = torch.randn(8, 20, 3, 3).to(torch.bfloat16)
    assert torch.equal(rounded(weight.float(), torch.bfloat16), weight)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_convolution_of_a_smooth_map_moves_less(size: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 64, size, size)
    coarse = torch.rand(1, 64, 6, 8) + 0.5  # positive, as behind a ReLU
    x = functional.interpolate(coarse, (48, 64), mode="bilinear")
    exact = functional.conv2d(x, weight)

    def error(of: torch.Tensor) -> float:
        return float((functional.conv2d(x, of.float()) - exact).square().mean().sqrt())

    assert error(rounded(weight, torch.bfloat16)) < 0.6 * error(weight.bfloat16())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_stays_in_float32(device: str) -> None:
    """Stems, and on a CPU the norms; the decision is tested for all devices."""
    network = build("stm", SMALL["stm"])
    stems = {id(m.conv1) for m in network.modules() if isinstance(m, ResNet)}
    stems |= {id(m.mask_conv) for m in network.modules() if isinstance(m, ResNet)}
    before = copy.deepcopy(network.state_dict())
    round_network(network, torch.device(device), torch.bfloat16)
    wide = 0
    for name, module in network.named_modules():
        keeps = id(module) in stems or (isinstance(module, nn.GroupNorm) and device == "cpu")
        wide += keeps
        for own, tensor in module.named_parameters(recurse=False):
            assert tensor.dtype == (torch.float32 if keeps else torch.bfloat16), (name, own)
            if keeps:
                assert torch.equal(tensor, before[f"{name}.{own}"])
    norms = sum(isinstance(module, nn.GroupNorm) for module in network.modules())
    assert wide == 3 + (norms if device == "cpu" else 0)


@pytest.mark.parametrize("masks", [0, 2])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_resnet_in_bfloat16_takes_float32_and_gives_bfloat16(masks: int, norm: str) -> None:
    torch.manual_seed(0)
    network = ResNet("resnet18", 16, masks, norm=norm).eval().requires_grad_(False)
    frame, planes = torch.randn(1, 3, 64, 96), torch.rand(2, 2, 64, 96)
    inputs = (frame, planes) if masks else (frame,)
    exact = network(*inputs)
    half = prepare_network(network, CPU, torch.bfloat16)
    for output, wanted in zip(half(*inputs)[:3], exact[:3], strict=True):
        assert output.dtype == torch.bfloat16
        error = (output.float() - wanted).norm() / wanted.norm()
        assert error < 0.02


def test_the_eager_engine_narrows_everything() -> None:
    network = prepare_network(
        ResNet("resnet18", 8).eval().requires_grad_(False), CPU, torch.bfloat16, "eager"
    )
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert network(torch.randn(1, 3, 32, 32)).r4.dtype == torch.bfloat16


@pytest.mark.slow
def test_a_trained_encoder_moves_less_than_by_rounding_to_the_nearest() -> None:
    """Keys of a procedural frame, averaged over 8 x 8 cells, since masks depend on many cells."""
    frame = torch.from_numpy(make_clip(ClipConfig(frames=1), seed=3).frames[0])
    x = (frame.permute(2, 0, 1)[None].float() / 255 - 0.45) / 0.225
    method, _ = load("stm", None, None)
    method = method.eval().requires_grad_(False)

    def keys(network: nn.Module) -> torch.Tensor:
        key, _ = network.query_head(network.query_encoder(x).r4)
        return functional.avg_pool2d(key.float(), 8)

    exact = keys(method)
    plain = keys(prepare_network(copy.deepcopy(method), CPU, torch.bfloat16, "eager"))
    compensated = keys(prepare_network(copy.deepcopy(method), CPU, torch.bfloat16))
    assert (compensated - exact).norm() < 0.8 * (plain - exact).norm()


def test_heads_that_decide_between_objects_stay_in_float32() -> None:
    segmenter = begin("dmn_aoa", precision="bf16")
    dtypes = {name: tensor.dtype for name, tensor in segmenter.method.state_dict().items()}
    heads = {name: dtype for name, dtype in dtypes.items() if "_head." in name or "_proj" in name}
    assert set(heads.values()) == {torch.float32}
    assert dtypes["refine.align.weight"] == dtypes["base.reduce4.0.weight"] == torch.bfloat16


@pytest.mark.parametrize("model", list_models())
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.slow
def test_a_stream_in_half_precision_is_sound_and_goes_on_from_a_file(
    model: str, precision: str, tmp_path: Path
) -> None:
    """The state has several dtypes: frames and keys of objects are wider than maps."""
    frames = np.random.default_rng(0).integers(0, 256, (6, *SIZE, 3), np.uint8)
    first, second = (begin(model, precision=precision) for _ in range(2))
    prompts = (rectangle(4, 6, 20, 24) if first.method.takes_mask else None, None, None)
    for frame, mask in zip(frames, prompts, strict=False):
        first.step(frame, mask)
    first.save_state(tmp_path / "stream.safetensors")
    second.load_state(tmp_path / "stream.safetensors")
    one, other = (play(segmenter, frames[3:]) for segmenter in (first, second))
    for result, expected in zip(one, other, strict=True):
        assert_sound(result)
        assert torch.equal(result.labels, expected.labels)


@pytest.mark.parametrize("model", ["stm", "munet", "giel"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_memory_that_shares_features_holds_in_half_precision(model: str, precision: str) -> None:
    """Its stem reads the frame as well, so it stays in float32, as an encoder's does."""
    narrow = {"key_channels": 16, "value_channels": 16, "decoder_channels": 16, "size": None}
    config = replace(LITE[model], **narrow)  # type: ignore[arg-type]
    segmenter = Segmenter(model, config=config, device="cpu", precision=precision)
    memory = segmenter.method.mask_encoder
    assert memory.conv1.weight.dtype == memory.mask_conv.weight.dtype == torch.float32
    assert memory.join.weight.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    frames = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8)
    for result in play(segmenter, frames, {0: rectangle(4, 6, 20, 24)}):
        assert_sound(result)
