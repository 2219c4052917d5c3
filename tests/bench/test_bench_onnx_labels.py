"""`bench/onnx_labels.py`: what it writes of an export whose labels are torch's, and of one whose
are not."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from exported import Export, weights_of
from typed import LENGTH, SIZE, write_files

from vosengine.evaluation import find_annotated

pytestmark = pytest.mark.slow


import_module("onnx")  # bench/ has a file of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

onnx_labels = import_module("onnx_labels")  # it moves its folder to the end of the path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return write_files(folder)


def test_an_export_beside_torch(
    data: Path, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export("munet")
    asked = []

    def kept(model: str, weights: str, into: Path, ops: str) -> dict[str, list[str]]:
        asked.append((model, ops))
        into.symlink_to(folder)
        return {"operators": []}

    monkeypatch.setattr(onnx_labels, "export", kept)
    options = ["--data", str(data), "munet", "--weights", str(weights_of(folder, "munet"))]
    options += ["--ops", "standard,contrib", "--threads", "1", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["onnx_labels.py", *options])
    onnx_labels.main()
    (file,) = tmp_path.glob("*-onnx-labels-cpu.json")
    (model,) = json.loads(file.read_text())["models"]
    assert asked == [("munet", "standard"), ("munet", "contrib")]
    assert list(model["exports"]) == ["standard"]  # this one has no operators of "contrib"
    assert model["frames"] == LENGTH
    point = model["exports"]["standard"]["a"]
    assert point["differs"] <= point["worst_frame"] < onnx_labels.MOST
    assert point["iou"] > 0.99 and abs(point["j"] - model["torch"]["a"]) < 0.01


def test_labels_that_differ_are_counted(data: Path) -> None:
    (clip,) = find_annotated(data)
    base = np.zeros((LENGTH, *SIZE), np.uint8)
    base[:, :10, :10] = 1
    labels = base.copy()
    labels[1, :10, :10] = 2  # another object in one frame
    labels[2, :10, :20] = 1
    point = onnx_labels.compare(labels, base, clip)
    pixels = base[0].size
    assert point["differs"] == pytest.approx(200 / pixels / LENGTH)
    assert point["worst_frame"] == pytest.approx(100 / pixels)
    assert point["iou"] == pytest.approx(LENGTH / (LENGTH + 1))
