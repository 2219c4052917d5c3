"""`vosengine bench`: what is measured and compared, and tables on narrow terminals."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import ship_small, small_demo
from rich.console import Console
from typer.testing import CliRunner

from vosengine.benchmark import Plan, drawn_scene, measure_point, measure_rates
from vosengine.benchmark.measure import NO_ROOM, NOT_COMPILED, Cell, Point, Runner, begin, compare
from vosengine.benchmark.published import published_of, published_rows
from vosengine.benchmark.report import COLUMNS, rows_of, tables_of
from vosengine.benchmark.roofline import Rates
from vosengine.benchmark.scenes import GivenProposals, Scene
from vosengine.benchmark.stages import StageClock, clocked
from vosengine.benchmark.variants import OURS, OURS_FP32, REFERENCE, VARIANTS, Variant
from vosengine.cli import app as cli
from vosengine.cli import bench as cli_bench
from vosengine.errors import ConfigError, DeviceError
from vosengine.kernels.dispatch import Op
from vosengine.runtime import has_bf16
from vosengine.zoo.registry import list_models

SIZE = 64, 96
CPU = torch.device("cpu")
PLAN = Plan(memory_frames=2, warm_up=0, steps=2)
QUICK = tuple(variant for variant in VARIANTS if not variant.compiled)  # that takes minutes
DTYPES = (torch.float32, torch.bfloat16) if has_bf16(CPU) else (torch.float32,)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return drawn_scene(SIZE)


@pytest.fixture(scope="module")
def rates() -> Rates:
    return measure_rates(CPU, DTYPES)


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plan]:
    """PLAN with trained weights, with a small working size."""
    folder = tmp_path_factory.mktemp("weights")
    return lambda model: replace(PLAN, weights=str(small_demo(folder, model)))


@pytest.fixture
def point_of(scene: Scene, rates: Rates, plan_of: Callable[[str], Plan]) -> Callable[..., Point]:
    """Measure these variants of a model with some objects."""

    def measure(model: str, objects: int, variants: Sequence[Variant]) -> Point:
        return measure_point(model, objects, scene, CPU, plan_of(model), rates, variants)

    return measure


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["bench", "--device", "cpu", *arguments])


@pytest.mark.parametrize("model", list_models())
def test_every_model_is_timed_and_keeps_its_labels(
    model: str, point_of: Callable[..., Point]
) -> None:
    point = point_of(model, 2 if model != "imcnet" else 1, QUICK)
    cells = {cell.variant: cell for cell in point.cells}
    assert list(cells) == [variant.name for variant in QUICK]
    ran = [cell for cell in cells.values() if cell.fault is None]
    assert {REFERENCE, OURS} <= {cell.variant for cell in ran}
    for cell in ran:
        assert len(cell.milliseconds) == len(cell.labels) == PLAN.steps
        assert min(cell.milliseconds) > 0
        assert sum(cell.stages.values()) == pytest.approx(1, abs=1e-3)
        assert len(np.unique(cell.labels[-1])) > 1 or model in ("imcnet", "dmn_aoa")
    assert cells[REFERENCE].differs is None
    exact = cells[OURS] if cells[OURS_FP32].fault else cells[OURS_FP32]
    assert exact.precision == "fp32" and exact.differs is not None and exact.differs < 1e-4
    assert cells[OURS].iou is not None and cells[OURS].iou > 0.9  # a boundary is much of it here
    assert point.roofline is not None and point.roofline.gflop > 0.1 and point.roofline.mib > 0.5


def test_stages_are_those_of_the_paper(point_of: Callable[..., Point]) -> None:
    point = point_of("dmn_aoa", 1, VARIANTS[-1:])
    assert {"BFE", "OPG", "OTG", "AM", "MRN"} <= set(point.cells[0].stages)
    assert point.roofline is None  # without the reference variant its work is not known
    point = point_of("target_aware", 1, VARIANTS[-1:])
    assert {"D-Net", "T-Net"} <= set(point.cells[0].stages)


def test_a_clock_counts_every_moment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 4.0, 10.0])  # outer begins, inner begins, inner ends, outer ends
    monkeypatch.setattr("vosengine.benchmark.stages.time.perf_counter", lambda: next(moments))
    clock = StageClock(CPU)
    with clock.stage("outer"), clock.stage("inner"):
        pass
    assert clock.milliseconds == {"inner": 3000.0, "outer": 7000.0}
    assert clock.shares() == {"outer": 0.7, "inner": 0.3}


def test_clocks_are_taken_away_again(scene: Scene, plan_of: Callable[[str], Plan]) -> None:
    segmenter = begin("stm", VARIANTS[-1], 1, scene, CPU, plan_of("stm"))
    call, attributes = Op.__call__, set(vars(segmenter))
    with clocked(segmenter) as clock:
        segmenter.step(scene.frame(0), scene.prompt(1))
    seen = dict(clock.milliseconds)
    segmenter.step(scene.frame(1))
    assert clock.milliseconds == seen
    assert Op.__call__ is call and set(vars(segmenter)) == attributes


def test_without_room_the_cell_says_so_and_the_others_go_on(
    point_of: Callable[..., Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Runner.step

    def fails_for_one(self: Runner) -> None:
        if self.variant.name == REFERENCE:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self)

    monkeypatch.setattr(Runner, "step", fails_for_one)
    point = point_of("stm", 1, QUICK)
    faults = {cell.variant: cell.fault for cell in point.cells}
    assert faults[REFERENCE] == NO_ROOM and faults["ours"] is None
    assert point.roofline is None
    rows = rows_of({"points": [point.as_json()], "published": []})
    assert any(NO_ROOM in row for row in rows) and all(len(row) == len(COLUMNS) for row in rows)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # in torch itself
def test_a_compiler_that_is_missing_or_fails_is_one_cells_fault(
    point_of: Callable[..., Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The C++ compiler of torch.compile; for example, gcc 12 fails on MUNet's AVX-512 code."""
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    compiled = Variant("compiled fp32", "eager", "fp32", "reference", compiled=True)
    point = point_of("imcnet", 1, (compiled, VARIANTS[1]))
    faults = {cell.variant: cell.fault for cell in point.cells}
    assert faults == {"compiled fp32": NOT_COMPILED, REFERENCE: None}


@pytest.fixture(scope="module")
def imcnet_cells(scene: Scene, rates: Rates, plan_of: Callable[[str], Plan]) -> list[Any]:
    variants = [
        variant for variant in VARIANTS if variant.name in ("published fp32", REFERENCE, "ours")
    ]
    point = measure_point("imcnet", 1, scene, CPU, plan_of("imcnet"), rates, variants)
    cells: list[Any] = point.as_json()["cells"]
    return cells


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_figure_is_cut_off_on_any_terminal(imcnet_cells: list[Any], width: int) -> None:
    """Columns that do not fit are omitted, and listed."""
    (cell, *others) = copy.deepcopy(imcnet_cells)
    for other in others:
        other |= {f"{name}_ms": 12345.6 for name in ("p50", "p90", "p95", "p99", "mean")}
    paper = asdict(published_of("dmn_aoa")[0])
    model = {
        "model": "imcnet",
        "weights": "random",
        "points": [{"size": (480, 854), "objects": 1, "cells": [cell, *others], "roofline": None}],
        "published": [paper],
    }
    (table,) = tables_of({"environment": {"device": "a processor"}, "models": [model]}, width)
    screen = Console(width=width, file=StringIO())
    screen.print(table)
    text = screen.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text and "480x854, 1 object" in text
    assert f"{paper['milliseconds']:.0f}" in text and cell["fault"].split()[-1] in text
    columns = text.count("12345.6") // 2
    assert columns == (1 if width == 60 else 3 if width < 140 else 5)
    assert ("no room for" in text) == (width < 140)


def test_another_error_is_raised(
    point_of: Callable[..., Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Runner) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Runner, "step", fails)
    with pytest.raises(RuntimeError, match="a defect"):
        point_of("stm", 1, VARIANTS[-1:])


def test_labels_are_held_against_the_reference_way() -> None:
    true = np.zeros((4, 5), np.uint8)
    true[:2] = 1
    other = true.copy()
    other[1, :] = 0
    cells = [Cell(REFERENCE, 1, (4, 5), labels=[true]), Cell("ours", 1, (4, 5), labels=[other])]
    compare(cells)
    assert cells[1].differs == 0.25 and cells[1].iou == 0.5
    assert cells[0].differs is None


def test_prompts_and_proposals_have_that_many_objects(scene: Scene) -> None:
    for count in (1, 2, 3, 5, 10):
        prompt = scene.prompt(count)
        assert set(np.unique(prompt)) == {0, *range(1, count + 1)}
        proposals = GivenProposals(prompt, CPU)(None, 0)
        assert len(proposals.masks) == count + 3
        for index in range(count):
            assert torch.equal(proposals.masks[index], torch.from_numpy(prompt == index + 1))


def test_frames_go_to_and_fro(scene: Scene) -> None:
    count = len(scene.frames)
    there = [scene.frame(index) for index in range(count)]
    back = [scene.frame(2 * (count - 1) - index) for index in range(count)]
    assert all(a is b for a, b in zip(there, back, strict=True))


def test_every_paper_that_prints_a_time_has_its_row() -> None:
    assert {row.model for row in published_rows()} == set(list_models()) - {"imcnet"}
    (dmn,) = published_of("dmn_aoa")
    assert dmn.milliseconds == 150 and sum(dmn.modules.values()) == pytest.approx(154)
    assert all(row.hardware and row.caveat and row.source for row in published_rows())


def test_the_command_writes_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship_small(monkeypatch, tmp_path / "weights", "munet", "imcnet")
    files = {name: tmp_path / f"out/bench.{name}" for name in ("json", "md", "png")}
    outcome = run(
        *("--model", "munet,imcnet", "--weights", "demo", "--sizes", "64x96,96x64"),
        *("--objects", "1,2", "--memory-frames", "2", "--warm-up", "0", "--steps", "2"),
        *(
            "--frames",
            "12",
            "--no-compiled",
            "--output-json",
            str(files["json"]),
            "--output-md",
            str(files["md"]),
        ),
        *("--chart", str(files["png"])),
    )
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(files["json"].read_text())
    munet, imcnet = result["models"]
    where = [(tuple(point["size"]), point["objects"]) for point in munet["points"]]
    assert where == [((64, 96), 1), ((64, 96), 2), ((96, 64), 2)]
    assert [point["objects"] for point in imcnet["points"]] == [1, 1]
    assert munet["weights"] == "munet.demo"
    stream = munet["stream"]
    assert len(stream["milliseconds"]) == 12 and stream["at"] == [0, 10, 11]
    assert len(set(stream["state_mib"])) == 1 and stream["state_mib"][0] > 0
    text = files["md"].read_text()
    assert "MUNet, table 2" in text and "RTX 2080 Ti" in text and "| 156 |" in text
    assert files["png"].read_bytes().startswith(b"\x89PNG")


def test_the_command_is_told_without_paths() -> None:
    arguments = ["bench", "--model", "stm", "--output-json", "/here/a.json", "--chart=/here/b.png"]
    assert cli_bench._command([*arguments, "--quick"]) == "vosengine bench --model stm --quick"


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (("--model", "unet"), ConfigError, "wanted one of stm, munet"),
        (("--model", "stm,unet"), ConfigError, "given 'unet'"),
    ],
)
def test_what_is_not_there_is_said_first(
    words: tuple[str, ...], error: type[Exception], says: str, tmp_path: Path
) -> None:
    outcome = run(*words, "--output-json", str(tmp_path / "bench.json"))
    assert isinstance(outcome.exception, error) and says in str(outcome.exception)
    assert not (tmp_path / "bench.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_asking_for_one_is_an_error() -> None:
    outcome = CliRunner().invoke(cli.app, ["bench", "--model", "stm", "--device", "cuda"])
    assert isinstance(outcome.exception, DeviceError)


@pytest.mark.parametrize(
    "words",
    [(), ("--model", "stm", "--all"), ("--model", "stm", "--objects", "0"),
     ("--model", "stm", "--objects", "x"), ("--model", "stm", "--sizes", "480")],
)  # fmt: skip
def test_what_cannot_be_understood_is_refused(words: tuple[str, ...]) -> None:
    assert run(*words).exit_code == 2
