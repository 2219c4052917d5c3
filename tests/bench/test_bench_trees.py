"""bench/trees.py: one stream in two checkouts, steps in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / "trees.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_another_checkout_is_compared_step_by_step(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "imcnet.safetensors").symlink_to(ROOT / "weights/demo/imcnet.safetensors")
    (tmp_path / "vosengine").symlink_to(ROOT / "vosengine")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    os.chmod(python, 0o755)
    words = ["--models", "imcnet:1", "--weights", weights, "--steps", "2", "--folder", tmp_path]
    outcome = run(python, *words)
    assert outcome.returncode == 0, outcome.stderr
    (written,) = tmp_path.glob("*-trees-trained-cpu.json")
    report = json.loads(written.read_text())
    (row,) = report["rows"]
    assert row["frames"] == row["frames_with_equal_labels"] == 8  # six steps of warm-up
    assert row["other"]["p50_ms"] > 0 and row["this"]["p50_ms"] > 0
    assert str(tmp_path) not in json.dumps(report)


@pytest.mark.slow
def test_an_interpreter_with_the_same_tree_is_refused(tmp_path: Path) -> None:
    outcome = run(sys.executable, "--models", "imcnet:1", "--folder", tmp_path)
    assert outcome.returncode != 0
    assert "wanted another checkout" in outcome.stderr
    assert not list(tmp_path.iterdir())
