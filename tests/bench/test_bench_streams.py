"""`vosengine bench --streams`: many streams on one engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exported import ship_small
from many_streams import open_engine
from typer.testing import CliRunner

from vosengine.benchmark import drawn_scene, measure_streams
from vosengine.cli.app import app

SMALL = ("--sizes", "32x48", "--steps", "2", "--warm-up", "0", "--weights", "demo")


def test_a_row_counts_what_it_says() -> None:
    engine = open_engine("stm", max_batch=2)
    row = measure_streams(engine, drawn_scene((48, 64)), 2, 3, warm_up=1, rounds=4)
    assert (row["streams"], row["max_batch"]) == (3, 2)
    assert row["pages"] == 3 * 2 * 2  # the first frame, and one of those after it
    assert row["frame"]["p50_ms"] <= row["frame"]["p99_ms"]
    # In a round the last stream waits for those before it.
    assert 3e3 / row["frames_per_second"] >= row["frame"]["p50_ms"]
    assert engine.pools.used == 0  # the streams were closed


def test_the_command_writes_a_row_for_every_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship_small(monkeypatch, tmp_path / "weights", "stm", "imcnet")
    file = tmp_path / "out" / "streams.json"
    options = ["--model", "stm,imcnet", "--streams", "1,2", "--max-batch", "2", "--objects", "1"]
    options += ["--output-json", str(file), *SMALL]
    outcome = CliRunner().invoke(app, ["bench", "--device", "cpu", *options])
    assert outcome.exit_code == 0, outcome.output
    assert "frames/s" in outcome.stdout
    report = json.loads(file.read_text())
    assert [model["model"] for model in report["models"]] == ["stm", "imcnet"]
    for model in report["models"]:
        assert [(row["streams"], row["max_batch"]) for row in model["streams"]] == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-batch", "2"), "--max-batch needs --streams"),
        (("--streams", "0"), "wanted counts of 1..255"),
        (("--streams", "2", "--output-md", "a.md"), "markdown: --streams writes JSON only"),
        (("--streams", "2", "--chart", "a.png"), "chart: --streams writes JSON only"),
    ],
)
def test_what_does_not_go_together(words: tuple[str, ...], message: str) -> None:
    outcome = CliRunner().invoke(
        app, ["bench", "--model", "stm", "--device", "cpu", *SMALL, *words]
    )
    assert outcome.exit_code != 0
    assert message in outcome.output + str(outcome.exception)
