"""`bench/int8.py`: what it writes of an export and of a form of it in int8."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
from exported import Export, weights_of
from typed import SIZE, write_files

import_module("onnx")  # bench/ has a file of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

int8 = import_module("int8")  # it moves its folder to the end of the path


@pytest.mark.slow
def test_int8_beside_float32(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export("munet", ops="vosengine")
    (tmp_path / "files").mkdir()
    data = write_files(tmp_path / "files")
    shutil.copytree(folder, tmp_path / "exports" / "munet")  # the ranges are written beside it
    for name, value in {
        "CALIBRATED": ("a",),
        "RECORDED": slice(1, 3),
        "SIZE": SIZE,
        "OBJECTS": 1,
        "WARM_UP": 1,
        "THREADS": 1,
    }.items():
        monkeypatch.setattr(int8, name, value)
    options = ["munet", "--data", data, "--weights", weights_of(folder, "munet"), "--steps", "2"]
    options += ["--variants", "remember", "--exports", tmp_path / "exports", "--folder", tmp_path]
    monkeypatch.setattr(sys, "argv", ["int8.py", *map(str, options)])
    int8.main()
    (file,) = tmp_path.glob("*-int8-cpu.json")
    written = json.loads(file.read_text())
    assert written["calibrated"] == {"a": [1, 3]}
    rows = written["models"][0]["rows"]
    assert list(rows) == ["eager", "fp32", "remember"]
    assert rows["fp32"]["iou"] == 1.0 and rows["fp32"]["times_as_fast_as_fp32"] == 1.0
    assert 0.5 < rows["remember"]["iou"] < 1
    assert abs(rows["remember"]["mean_j"] - rows["fp32"]["mean_j"]) < 0.2
    quantised = tmp_path / "exports" / "munet-0"
    unlike = [
        graph.name
        for graph in folder.glob("*.onnx")
        if graph.read_bytes() != (quantised / graph.name).read_bytes()
    ]
    assert unlike == ["remember.onnx"]
