"""The programs of bench/gpu_check.sh and of the timings, with the CPU as the device."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention

from vosengine.kernels import (
    OPS,
    Op,
    correlate_frames,
    deform_conv,
    match_proposals,
    pool_regions,
    read_memory,
)
from vosengine.kernels.cases import Case
from vosengine.kernels.parity import cases_of, check_parity
from vosengine.kernels.poison import poisoned

BENCH = Path(__file__).resolve().parents[2] / "bench"
# They are programs: they import each other by bare names. One is called as the package `onnx` is,
# which therefore is imported before.
import_module("onnx")
sys.path.insert(0, str(BENCH))

baselines = import_module("baselines")
candidates = import_module("candidates")
ceilings = import_module("ceilings")
compiling = import_module("compiling")
costs = import_module("costs")
gpu_cases = import_module("gpu_cases")
gpu_parity = import_module("gpu_parity")
gpu_sanitize = import_module("gpu_sanitize")
memory_baselines = import_module("memory_baselines")
odd_shapes = import_module("odd_shapes")
summary = import_module("summary")
timings = import_module("kernels")
torchvision_baselines = import_module("torchvision_baselines")

CPU = torch.device("cpu")


def case_of(op: Op, name: str) -> Case:
    return next(case for case in cases_of(op) if case.name == name)


def posing(op: Op, run: Callable[..., Any]) -> Op:
    """The op with another function as its C++ backend."""
    stand_in = SimpleNamespace(unsupported=lambda *_, **__: None, run=run)
    return Op(op.reference, op.contract, cpu=stand_in)


def tally_of(run: Callable[..., Any]) -> Any:
    """Run gpu_parity on a backend of match_proposals."""
    tallies: dict[tuple[str, ...], Any] = {}
    case = gpu_parity.fresh(case_of(match_proposals, "odd sizes"), 7)
    gpu_parity.check(posing(match_proposals, run), case, CPU, tallies)
    return tallies["match_proposals", "cpu", "float32"]


def unwritten(similarity: torch.Tensor, **options: Any) -> torch.Tensor:
    """Writes all but the last column."""
    out = torch.empty(similarity.shape, dtype=similarity.dtype)
    out[:, :-1] = match_proposals.reference(similarity, **options)[:, :-1]
    return out


def unsteady() -> Callable[..., torch.Tensor]:
    """Changes the last bit in every second call."""
    count = iter(range(1 << 20))

    def run(similarity: torch.Tensor, **options: Any) -> torch.Tensor:
        out = match_proposals.reference(similarity, **options)
        return torch.where(out > 0, out * (1 + 2e-7 * (next(count) % 2)), out)

    return run


def test_memory_is_poisoned_inside_alone() -> None:
    before = torch.empty
    with poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.zeros(2, dtype=torch.float16)).isnan().all()
        assert torch.zeros(1).new_empty(2, dtype=torch.uint8).eq(255).all()
    assert torch.empty is before
    with poisoned(number=3.0):
        assert torch.empty(2, dtype=torch.bfloat16).eq(3).all()


def test_fresh_inputs_show_a_right_backend_right() -> None:
    tally = tally_of(match_proposals.reference)
    assert (tally.calls, tally.faults, tally.unsteady) == (1, [], [])


def test_fresh_inputs_show_what_nobody_wrote() -> None:
    tally = tally_of(unwritten)
    assert len(tally.faults) == 1
    assert "seed 7" in tally.faults[0]
    assert len(tally.unsteady) == 1  # the second run finds another poison


def test_other_bits_are_said_but_no_fault() -> None:
    tally = tally_of(unsteady())
    assert tally.faults == []
    assert tally.unsteady == ["odd sizes, seed 7"]


def test_seeds_draw_other_inputs() -> None:
    case = case_of(match_proposals, "odd sizes")
    one, other, again = (
        gpu_parity.fresh(case, seed).arguments()["similarity"] for seed in (1, 2, 1)
    )
    assert not torch.equal(one, other)
    assert torch.equal(one, again)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_odd_shapes_are_valid_and_differ(op: Op) -> None:
    cases = [odd_shapes.odd_case(op.name, seed) for seed in range(8)]
    if op.name == "fit_target":  # has no GPU backend, and shapes at random condition it badly
        assert cases == [None] * 8
        return
    shapes = set()
    for case in cases:
        arguments = case.arguments()
        op.contract(**arguments)
        shapes.add(str([timings.described(value) for value in arguments.values()]))
    assert len(shapes) > 4


def test_the_parity_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_parity, "OPS", (match_proposals,))
    arguments = ["gpu_parity", "--device", "cpu", "--seeds", "0", "--shapes", "3", "--first", "5"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--folder", str(tmp_path)])
    gpu_parity.main()
    assert "--first 5 repeats this" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*-parity-cpu.json"))) == 1

    wrong = posing(match_proposals, lambda similarity, **_: similarity + 1)
    monkeypatch.setattr(gpu_parity, "OPS", (wrong,))
    with pytest.raises(SystemExit, match="parity rule"):
        gpu_parity.main()


def test_what_the_sanitizer_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(gpu_sanitize.CASES) == {op.name for op in OPS}
    for op in OPS:
        names = {case.name for case in cases_of(op)}
        assert names >= set(gpu_sanitize.CASES[op.name])
    compiled = sum("cpu" in op.backends for op in OPS)
    assert gpu_sanitize.run(CPU, ("cpu",)) >= 2 * compiled - 1
    assert gpu_sanitize.run(CPU, ("cuda",)) == 0


def test_costs_by_hand() -> None:
    arguments = {
        "query_key": torch.zeros(10, 4),
        "memory_key": torch.zeros(2, 7, 4),
        "memory_value": torch.zeros(2, 3, 7, 5),
        "scale": 1.0,
        "length": torch.tensor([7, 2], dtype=torch.int32),
    }
    cost = costs.cost_of("read_memory", arguments, torch.zeros(2, 3, 10, 5))
    assert cost.flop == 2 * 10 * (7 + 2) * (4 + 3 * 5)
    assert cost.bytes == 4 * (9 * (4 + 3 * 5) + 10 * 4 + 2 + 2 * 3 * 10 * 5)

    frames = case_of(correlate_frames, "odd sizes").arguments()
    valid = correlate_frames.reference(
        torch.ones(1, 1, 9, 13), torch.ones(1, 1, 9, 13), radius=3, temperature=0.0
    )
    assert valid.shape[1] == 3
    inside = sum(
        0 <= y + dy < 9 and 0 <= x + dx < 13
        for y in range(9)
        for x in range(13)
        for dy in range(-3, 4)
        for dx in range(-3, 4)
    )
    assert costs.FLOP["correlate_frames"](frames) == 2 * 2 * 33 * inside


def test_every_timed_case_has_a_cost() -> None:
    for op in OPS:
        for case in candidates.bench_cases(op, heavy=False)[:1]:
            cost = costs.cost_of(op.name, case.arguments(), torch.zeros(1))
            assert cost.bytes > 4
            assert cost.flop is None or cost.flop > 0


def test_targets_are_cases() -> None:
    for op in OPS:
        names = {case.name for case in candidates.bench_cases(op, heavy=True)}
        assert names >= set(gpu_cases.TARGETS.get(op.name, ()))
        for case in gpu_cases.GPU_CASES.get(op.name, ()):
            assert case.bench
    small = gpu_cases.GPU_CASES["read_memory"][2].arguments()
    read_memory.contract(**small)


def test_rates_are_judged_by_the_nearer_ceiling() -> None:
    top = ceilings.Ceilings(matmul_tflops=100.0, copy_gb_per_s=1000.0, matmul="", copy="")
    bound = top.judge(costs.Cost(flop=5e10, bytes=1e6), 1.0)  # 50 TFLOP/s, 1 GB/s
    assert (bound["bound"], bound["of_ceiling"], bound["tflops"]) == ("matmul", 0.5, 50.0)
    bound = top.judge(costs.Cost(flop=None, bytes=8e8), 1.0)  # 800 GB/s
    assert (bound["bound"], bound["of_ceiling"], bound["gb_per_s"]) == ("copy", 0.8, 800.0)


PEERS = {
    "math": memory_baselines.sdpa_by(SDPBackend.MATH),
    "flash": memory_baselines.sdpa_by(SDPBackend.FLASH_ATTENTION),
    "flex": memory_baselines.flex(flex_attention),
}


@pytest.mark.parametrize("name", ["math", "flex"])
@pytest.mark.parametrize("case", ["sets", "a query per group"])
@pytest.mark.filterwarnings("ignore")  # flex_attention wants to be compiled
def test_peers_of_read_memory_agree(name: str, case: str) -> None:
    verdict = check_parity(posing(read_memory, PEERS[name]), case_of(read_memory, case), "cpu")
    assert verdict.fault is None


def test_a_refusal_says_why() -> None:
    """Flash attention requires keys and values of equal width."""
    with pytest.raises(RuntimeError, match=r"No available kernel.*; .*same last dimension"):
        check_parity(posing(read_memory, PEERS["flash"]), case_of(read_memory, "odd sizes"), "cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["bias", "sets, bias"])
def test_flex_attention_looks_up_bias(case: str) -> None:
    peer = posing(read_memory, PEERS["flex"])
    assert check_parity(peer, case_of(read_memory, case), "cpu").fault is None


@pytest.mark.filterwarnings("ignore")
def test_lengths_are_followed() -> None:
    """Finite beyond a length, and no length 0: supported by all baselines."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        made = case_of(read_memory, "odd sizes").make(generator)
        return {**made, "length": torch.tensor([100, 3], dtype=torch.int32)}

    case = Case("lengths", make)
    for name in ("math", "flex"):
        assert check_parity(posing(read_memory, PEERS[name]), case, "cpu").fault is None, name


def test_split_value_joins_its_parts() -> None:
    def make(generator: torch.Generator) -> dict[str, Any]:
        key, value = (torch.randn(2, 40, c, generator=generator) for c in (16, 64))
        query = torch.randn(9, 16, generator=generator)
        return {"query_key": query, "memory_key": key, "memory_value": value, "scale": 0.25}

    peer = posing(read_memory, memory_baselines.split_value)
    assert check_parity(peer, Case("four parts", make), "cpu").fault is None
    with pytest.raises(RuntimeError, match="not a multiple"):
        check_parity(peer, case_of(read_memory, "odd sizes"), "cpu")


def test_torchvision_is_asked_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's signatures, implemented by our reference."""

    def roi_align(
        maps: torch.Tensor,
        boxes: torch.Tensor,
        size: int,
        scale: float,
        sampling: int,
        aligned: bool,
    ) -> torch.Tensor:
        return pool_regions.reference(
            (maps,),
            boxes[:, 1:],
            strides=(round(1 / scale),),
            frame=boxes[:, 0].int(),
            size=size,
            sampling=sampling,
            aligned=aligned,
        )

    monkeypatch.setattr(torchvision_baselines, "roi_align", roi_align, raising=False)
    monkeypatch.setattr(
        torchvision_baselines, "deform_conv2d", deform_conv.reference, raising=False
    )
    rivals = torchvision_baselines.TORCHVISION
    for name in ("with planes", "not aligned", "size 5, sampling 3"):
        peer = posing(pool_regions, rivals["pool_regions"])
        assert check_parity(peer, case_of(pool_regions, name), "cpu").fault is None, name
    peer = posing(deform_conv, rivals["deform_conv"])
    assert check_parity(peer, case_of(deform_conv, "v1"), "cpu").fault is None


def test_half_precision_reaches_a_baseline_in_float32() -> None:
    seen = []

    def baseline(similarity: torch.Tensor) -> torch.Tensor:
        seen.append(similarity.dtype)
        return similarity + 1

    tensor = torch.zeros(2, dtype=torch.bfloat16)
    assert baselines.in_float32(baseline)(similarity=tensor).dtype == torch.bfloat16
    kept = baselines.in_float32(baseline, rounded=False)(similarity=tensor)
    assert kept.dtype == torch.float32
    assert baselines.in_float32(baseline)(similarity=tensor.double()).dtype == torch.float64
    assert seen == [torch.float32, torch.float32, torch.float64]


def slow(**_: Any) -> torch.Tensor:
    time.sleep(5)
    raise AssertionError("nothing stopped it")


def refuses(**_: Any) -> torch.Tensor:
    raise RuntimeError("only squares")


def test_one_case_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    peers = {
        "right": match_proposals.reference,
        "far": lambda similarity, **_: similarity + 1,
        "refuses": refuses,
        "absent": "not installed",
        "slow": compiling.Compiled(slow, 0.05),
        "compiled": compiling.Compiled(match_proposals.reference, 5),
    }
    monkeypatch.setattr(candidates, "peers_of", lambda *_: peers)
    case = case_of(match_proposals, "odd sizes")
    top = ceilings.Ceilings(1.0, 1.0, "", "")
    measured = timings.measure(match_proposals, case, CPU, torch.float32, 3, ceilings=top)
    assert set(measured["results"]) == {"cpu", "reference", "right", "compiled"}
    cpu_times = measured["results"]["cpu"]
    assert cpu_times["p20_ms"] <= cpu_times["p50_ms"] <= cpu_times["p80_ms"] <= cpu_times["p95_ms"]
    assert set(cpu_times["times_as_fast_as"]) == {"reference", "right", "compiled"}
    assert (cpu_times["runs"], cpu_times["bound"]) == (3, "copy")
    reasons = measured["not_timed"]
    assert reasons["absent"] == "not installed"
    assert "only squares" in reasons["refuses"]
    assert "not done after 0.05 s" in reasons["slow"]
    assert reasons["far"].startswith(candidates.FAR)
    assert set(measured["compile_seconds"]) == {"compiled"}
    assert summary.row(measured, "float32")[3] == "cpu"


def test_a_wrong_backend_of_ours_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "peers_of", lambda *_: {})
    wrong = posing(match_proposals, lambda similarity, **_: similarity + 1)
    measured = timings.measure(wrong, case_of(match_proposals, "odd sizes"), CPU, torch.float32, 1)
    assert measured["not_timed"]["cpu"].startswith(candidates.WRONG)
    assert "cpu" not in measured["results"]


def test_a_compile_is_stopped() -> None:
    with pytest.raises(compiling.CompileTookTooLong), compiling.time_limit(0.05):
        time.sleep(5)
    with compiling.time_limit(60):
        pass  # and the alarm is gone with the block
