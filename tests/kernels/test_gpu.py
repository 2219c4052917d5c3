"""Chips and tensors that the GPU backends support."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from vosengine.kernels import gpu


@pytest.mark.parametrize(
    ("archs", "chip", "runs"),
    [
        ("80", 80, True),
        ("80", 86, True),  # same generation, newer
        ("86", 80, False),
        ("80", 75, False),
        ("80;86", 90, True),  # the last one's PTX
        ("80;90a", 90, True),
        ("80;90a", 100, False),  # no PTX that others may run
        ("90a", 100, False),
        ("75;80;86;89;90a;100a;120", 103, False),
        ("75;80;86;89;90a;100a;120", 121, True),
        ("75;80;86;89;90a;100a;120", 130, True),
        ("75;80;86;89;90a;100a;120", 70, False),
    ],
)
def test_what_a_build_runs_on(archs: str, chip: int, runs: bool) -> None:
    assert gpu.runs_on(archs, chip) is runs


@pytest.mark.parametrize(
    ("chip", "entry"), [(80, "a"), (86, "a"), (90, "b"), (103, "b"), (120, "c"), (75, "a")]
)
def test_a_chip_without_a_table_takes_the_nearest_older(
    monkeypatch: pytest.MonkeyPatch, chip: int, entry: str
) -> None:
    monkeypatch.setattr(gpu, "capability", lambda device: chip)
    assert gpu.for_chip({80: "a", 90: "b", 120: "c"}, torch.device("cuda")) == entry


class OnGpu:
    """The attributes of a tensor that unsupported reasons read."""

    def __init__(self, dtype: torch.dtype = torch.float16) -> None:
        self.device, self.dtype, self.requires_grad = torch.device("cuda:0"), dtype, False


@pytest.mark.skipif(gpu.missing is not None, reason=str(gpu.missing))
def test_triton_refuses_old_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "capability", lambda device: 75)
    assert gpu.triton_unsupported(OnGpu()) == "wants sm_80 or newer, given sm_75"  # type: ignore[arg-type]
    monkeypatch.setattr(gpu, "capability", lambda device: 80)
    assert gpu.triton_unsupported(OnGpu()) is None  # type: ignore[arg-type]
    assert "wants tensors on an NVIDIA GPU" in str(gpu.triton_unsupported(torch.zeros(1)))


class Compiled:
    """The attributes of the extension that unsupported reasons read."""

    cuda_device_type = staticmethod(lambda: "cuda")
    cuda_archs = staticmethod(lambda: "75;80;90a")


def test_cuda_says_what_it_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.extension, "missing", None)
    monkeypatch.setattr(gpu.extension, "_C", Compiled)
    for chip, dtype, message in (
        (70, torch.float16, "built for 75;80;90a, and this GPU is sm_70"),
        (75, torch.bfloat16, "sm_75 emulates bfloat16"),
        (100, torch.float16, "this GPU is sm_100"),
    ):
        monkeypatch.setattr(gpu, "capability", lambda device, chip=chip: chip)
        assert message in str(gpu.cuda_unsupported(OnGpu(dtype)))  # type: ignore[arg-type]
    monkeypatch.setattr(gpu, "capability", lambda device: 75)
    assert gpu.cuda_unsupported(OnGpu()) is None  # type: ignore[arg-type]
    assert "wants tensors on an NVIDIA GPU" in str(gpu.cuda_unsupported(torch.zeros(1)))
    monkeypatch.setattr(gpu.extension, "_C", object())
    assert "built without CUDA" in str(gpu.cuda_unsupported(torch.zeros(1)))


def test_launches_go_to_the_device_of_the_first_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []

    @contextmanager
    def device(index: int) -> Iterator[None]:
        entered.append(index)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.Tensor, "get_device", int)  # a tensor's number is its device
    first, second = torch.zeros(1), torch.ones(1)

    @gpu.on_its_device
    def run(a: torch.Tensor, *, scale: float, b: torch.Tensor) -> torch.Tensor:
        return a + scale * b

    assert run(first, scale=2.0, b=second) == run(a=first, scale=2.0, b=second) == 2
    assert entered == [0, 0]
