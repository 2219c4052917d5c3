"""The fast engine computes the same function as the eager one."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_streams import begin, play
from torch import nn

from vosengine.allocation import keep_freed_memory
from vosengine.cli import app as cli
from vosengine.config import STMConfig
from vosengine.engine.segmenter import Segmenter
from vosengine.errors import ConfigError
from vosengine.models.backbone import ResNet, initialise
from vosengine.models.convolve import convolve, fused_in, pack_convolutions
from vosengine.runtime import ENGINES, fold_batch_norms, prepare_network
from vosengine.training.synthetic import Clip
from vosengine.zoo.registry import build, entry, list_models


def lively(network: nn.Module) -> nn.Module:
    """Give norms random statistics: those of a new network are nearly the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data = torch.rand(tensor.shape, generator=generator).double() + 0.5
            for tensor in (module.bias, module.running_mean):
                tensor.data = torch.randn(tensor.shape, generator=generator).double()
    return network


@pytest.mark.parametrize("depth", ["resnet18", "resnet50"])
@pytest.mark.parametrize("masks", [0, 2])
@pytest.mark.parametrize("key_stride", [16, 8])
def test_a_folded_resnet_is_the_same_function(depth: str, masks: int, key_stride: int) -> None:
    network = ResNet(depth, 8, masks, key_stride=key_stride)
    initialise(network)
    network = lively(network.double().eval().requires_grad_(False))
    frame = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    planes = (torch.rand(2, masks, 64, 96, dtype=torch.float64),) if masks else ()
    wanted = network(frame, *planes)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    folded = copy.deepcopy(network)
    assert fold_batch_norms(folded) == norms > 0
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for got, want in zip(folded(frame, *planes), wanted, strict=True):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", list_models())
@pytest.mark.slow
def test_no_batch_norm_of_a_model_is_left(model: str) -> None:
    with torch.device("meta"):
        method = build(model, entry(model).config())
        fold_batch_norms(method)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in method.modules())


def test_group_norms_stay() -> None:
    network = ResNet("resnet18", 8, norm="group")
    before = sum(isinstance(m, nn.GroupNorm) for m in network.modules())
    assert fold_batch_norms(network) == 0
    assert sum(isinstance(m, nn.GroupNorm) for m in network.modules()) == before


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 0, 1), (3, 2, 1, 1), (3, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fused_convolution_is_what_it_stands_for(
    dtype: torch.dtype, shape: tuple[int, ...], adds: bool, relu: bool
) -> None:
    """Compared in float64 with separate operations; fused sums are rounded only once."""
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 40, *shape).requires_grad_(False)
    holder = nn.ModuleList([conv.to(dtype).to(memory_format=torch.channels_last)])
    exact = copy.deepcopy(conv).double()
    pack_convolutions(holder)
    for size in ((1, 24, 13, 18), (3, 24, 20, 9)):  # packed for the first, used for both
        x = torch.randn(size).to(dtype).to(memory_format=torch.channels_last)
        add = torch.randn_like(conv(x)) if adds else None
        wanted = exact(x.double()) + (0 if add is None else add.double())
        wanted = wanted.relu() if relu else wanted
        plain = convolve(x, conv, add=add, relu=relu)
        with torch.no_grad():
            fused = convolve(x, conv, nn.Identity(), add=add, relu=relu)
        assert fused.dtype == dtype
        assert (conv.packed._weight is not None) == (dtype in fused_in())
        off, worst = (fused - wanted).abs().max(), (plain - wanted).abs().max()
        assert off <= 1.1 * worst + 1e-6


@pytest.mark.parametrize("groups", [1, 24])
def test_relu6_and_depthwise_convolutions_are_fused_too(groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 48, 5, 2, 2, groups=groups).requires_grad_(False)
    conv = conv.to(memory_format=torch.channels_last)
    x = (8 * torch.randn(2, 24, 13, 18)).to(memory_format=torch.channels_last)
    wanted = conv(x).clamp(0, 6)
    assert (wanted == 6).any() and (wanted == 0).any()
    pack_convolutions(nn.Sequential(conv))
    with torch.no_grad():
        fused = convolve(x, conv, relu6=True)
    assert conv.packed._weight is not None
    torch.testing.assert_close(fused, wanted, rtol=1e-5, atol=1e-5)


def test_without_bfloat16_in_the_processor_a_convolution_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """oneDNN does not emulate bfloat16, unlike torch's own convolution."""
    conv = nn.Conv2d(8, 16, 3).bfloat16().requires_grad_(False)
    pack_convolutions(nn.Sequential(conv))
    monkeypatch.setattr("vosengine.models.convolve.fused_in", lambda: (torch.float32,))
    x = torch.randn(1, 8, 6, 7).bfloat16()
    with torch.no_grad():
        assert torch.equal(convolve(x, conv, relu=True), conv(x).relu())
    assert conv.packed._weight is None


def test_a_packed_convolution_before_a_norm_or_with_a_gradient_is_left_as_it_is() -> None:
    conv, norm = nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(2, 16)
    x = torch.randn(1, 8, 6, 7)
    wanted = norm(conv(x)).relu()
    pack_convolutions(nn.Sequential(conv))
    with torch.no_grad():
        assert torch.equal(convolve(x, conv, norm, relu=True), wanted)
    convolve(x, conv, relu=True).sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.abs().sum() > 0


FAULTS = """
    import resource, sys, torch
    from vosengine.allocation import keep_freed_memory

    print(keep_freed_memory())
    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8):
            torch.empty(2**26, dtype=torch.uint8).fill_(1)  # 64 MiB, freed at once
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(min(faults() for _ in range(4)))  # of 131072 pages
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
@pytest.mark.parametrize("setting", ["1", "0"])
@pytest.mark.slow
def test_freed_memory_is_kept_unless_that_is_refused(setting: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FAULTS)],
        env={**os.environ, "VOSENGINE_KEEP_FREED_MEMORY": setting},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = ran.stdout.split()
    assert kept == str(setting == "1")
    assert (int(faults) < 10_000) == (setting == "1")


def test_the_command_line_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: done.append("kept"))
    monkeypatch.setattr(cli, "app", lambda: done.append("ran"))
    cli.main()
    assert done == ["kept", "ran"]


def test_a_segmenter_leaves_malloc_as_it_is(small: Clip) -> None:
    before = keep_freed_memory.cache_info()  # of a process that has asked for it, or has not
    begin("stm").step(small.frames[0], small.masks[0])
    assert keep_freed_memory.cache_info() == before


@pytest.mark.slow
def test_both_engines_give_the_same_answers(any_model: str, small: Clip) -> None:
    """In float64, since random networks that store thresholded masks propagate every flip."""
    answers = []
    for engine in ENGINES:
        segmenter = begin(any_model, engine="eager")
        segmenter.dtype = torch.float64
        segmenter.runs_on.method = prepare_network(
            segmenter.method.double(), segmenter.device, segmenter.dtype, engine
        )
        answers.append(play(segmenter, small.frames, {0: small.masks[0]}))
    for one, other in zip(*answers, strict=True):
        for a, b in ((one.labels, other.labels), (one.probabilities, other.probabilities)):
            assert float(((a.double() - b.double()).abs() > 1e-5).double().mean()) < 1e-3


@pytest.mark.slow
def test_a_stream_saved_by_one_engine_goes_on_in_the_other(tmp_path: Path, small: Clip) -> None:
    config = STMConfig(backbone="resnet18", width=8, key_channels=8, value_channels=16)
    ends = []
    for engine in ("eager", "fast"):
        segmenter = Segmenter("stm", config=config, device="cpu", precision="fp32", engine=engine)
        if engine == "eager":
            segmenter.step(small.frames[0], small.masks[0])
            segmenter.save_state(tmp_path / "stream")
        else:
            segmenter.load_state(tmp_path / "stream")
        ends.append(segmenter.step(small.frames[1]).numpy())
    assert np.mean(ends[0] == ends[1]) > 0.999


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="fast or eager, given 'warp'"):
        Segmenter("stm", engine="warp")
