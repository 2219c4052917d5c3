"""`bench/objects.py`: what it writes of both models, in small frames."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

import_module("onnx")  # bench/ has a file of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

objects = import_module("objects")


@pytest.mark.parametrize(
    ("model", "tables"), [("giel", ("full", "fast")), ("dmn_aoa", ("objects",))]
)
def test_more_objects_beside_one(
    model: str, tables: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "SIZE", (48, 64))
    monkeypatch.setattr(objects, "GIEL_COUNTS", (1, 2))
    monkeypatch.setattr(objects, "DMN_COUNTS", (1, 2))
    options = [model, "--device", "cpu", "--rounds", "1", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["objects.py", *options])
    objects.main()
    (file,) = tmp_path.glob(f"*-objects-{model}-cpu.json")
    report = json.loads(file.read_text())
    for table in tables:
        one, two = report[table]
        assert (one["objects"], two["objects"]) == (1, 2)
        assert one["step_over_one_object"] == 1.0
        assert one["step"]["p50_ms"] > one["encode"]["p50_ms"]
        assert two["gflop"] >= one["gflop"]
