"""The CPU emulation of CUDA: it must detect errors that would occur on a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cuda_on_cpu
import pytest
import torch

pytestmark = pytest.mark.skipif(cuda_on_cpu.missing is not None, reason=str(cuda_on_cpu.missing))

TESTS = Path(__file__).resolve().parents[1]
FORWARDS, BACKWARDS, SHUFFLED = 0, 1, 7


@pytest.fixture
def emulated() -> Iterator[ModuleType]:
    module = cuda_on_cpu.load()
    yield module
    module.set_order(FORWARDS)


def reversed_by_blocks(module: ModuleType, order: int, barrier: bool) -> bool:
    values = torch.arange(4 * 96, dtype=torch.float32)
    out = torch.full_like(values, torch.nan)
    module.set_order(order)
    module.reverse(values.data_ptr(), out.data_ptr(), 4, 96, barrier)
    return torch.equal(out, values.view(4, 96).flip(1).flatten())


@pytest.mark.parametrize("order", [FORWARDS, BACKWARDS, SHUFFLED])
def test_a_barrier_holds_in_every_order(emulated: ModuleType, order: int) -> None:
    assert reversed_by_blocks(emulated, order, barrier=True)


@pytest.mark.parametrize("order", [FORWARDS, BACKWARDS, SHUFFLED])
def test_a_missing_barrier_shows(emulated: ModuleType, order: int) -> None:
    assert not reversed_by_blocks(emulated, order, barrier=False)


@pytest.mark.parametrize("threads", [32, 96])
def test_shuffles_stay_in_their_warp(emulated: ModuleType, threads: int) -> None:
    values = torch.randn(threads)
    out = torch.empty(threads)
    emulated.sum_of_warp(values.data_ptr(), out.data_ptr(), threads)
    wanted = values.view(-1, 32).sum(dim=1, keepdim=True).expand(-1, 32).flatten()
    torch.testing.assert_close(out, wanted)


def test_a_deadlock_is_an_error(emulated: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="deadlock"):
        emulated.half_wait(torch.empty(32).data_ptr())


def test_shared_memory_starts_as_nan(emulated: ModuleType) -> None:
    out = torch.zeros(64)
    emulated.unset(out.data_ptr(), 64)
    assert out.isnan().all()


@pytest.mark.slow
def test_what_is_not_aligned_ends_the_process(emulated: ModuleType) -> None:
    values, out = torch.arange(8.0), torch.zeros(9)
    emulated.copy_pairs(values.data_ptr(), out.data_ptr())
    assert torch.equal(out[:8], values)
    code = (
        "import torch, cuda_on_cpu; given = torch.zeros(9); out = torch.zeros(8);"
        "cuda_on_cpu.load().copy_pairs(given.data_ptr() + 4, out.data_ptr())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=TESTS, check=False
    )
    assert done.returncode != 0
    assert "misaligned" in done.stderr


def test_too_many_threads_are_an_error(emulated: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="1 to 1024 threads"):
        emulated.unset(torch.zeros(1025).data_ptr(), 1025)


@pytest.mark.parametrize(("dtype", "code"), [(torch.float16, 1), (torch.bfloat16, 2)])
def test_narrow_floats_round_as_torch_does(
    emulated: ModuleType, dtype: torch.dtype, code: int
) -> None:
    values = torch.cat((torch.randn(900) * 10 ** (4 * torch.randn(900)), torch.tensor([1e-7, 7e4])))
    out = torch.empty_like(values)
    emulated.round_trip(values.data_ptr(), out.data_ptr(), len(values), code)
    torch.testing.assert_close(out, values.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
