"""Shared exports (tests/support/exported.py) are written once and atomically."""

from __future__ import annotations

from pathlib import Path

import exported
import pytest

from vosengine.onnx import ExportOptions


@pytest.fixture
def exported_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were exported, one after another; `stm` cannot be."""
    models: list[str] = []

    def write(model: str, options: ExportOptions) -> None:
        models.append(model)
        (options.out / "a.onnx").touch()
        if model == "stm":
            raise RuntimeError("no room")

    monkeypatch.setattr(exported, "BUILT", tmp_path / "exports")
    monkeypatch.setattr(exported, "export_model", write)
    monkeypatch.setattr(exported, "weights_of", lambda folder, model: folder / "weights")
    return models


def test_an_export_is_written_once(exported_models: list[str]) -> None:
    first, second = exported.exporter(), exported.exporter()
    folder = first("munet", size=(64, 96))
    assert (folder / "a.onnx").exists()
    assert second("munet", size=(64, 96)) == folder
    assert first("munet", size=(96, 64)) != folder
    assert exported_models == ["munet", "munet"]


def test_other_weights_of_the_same_name_are_another_export(
    exported_models: list[str], tmp_path: Path
) -> None:
    export, file = exported.exporter(), tmp_path / "small.safetensors"
    file.write_bytes(b"1")
    first = export("giel", file)
    file.write_bytes(b"2")
    assert export("giel", file) != first
    assert exported_models == ["giel", "giel"]


def test_one_that_failed_or_was_killed_is_written_anew(exported_models: list[str]) -> None:
    export = exported.exporter()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no room"):
            export("stm")
    (part,) = exported.BUILT.glob("*/*.part")
    part.rename(part.with_name(part.name.replace("stm", "munet")))
    (part.with_name(part.name.replace("stm", "munet")) / "rest").touch()
    assert sorted(path.name for path in export("munet").iterdir()) == ["a.onnx"]
    assert exported_models == ["stm", "stm", "munet"]


def test_other_sources_are_other_exports(
    exported_models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported.exporter()("munet")
    monkeypatch.setattr(exported, "fingerprint", lambda: "of other sources")
    assert exported.exporter()("munet") != folder
    assert exported_models == ["munet", "munet"]
