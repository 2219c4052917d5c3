"""Every option of `serve` and `batch` reaches the settings with the given value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vosengine.batch.plan import BatchOptions
from vosengine.cli.app import app
from vosengine.server.settings import MIB, Settings


def test_options_of_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def serve(settings: Settings, announce: Any) -> None:
        seen.append(settings)
        announce(settings.port, settings.tokens)

    monkeypatch.setattr("vosengine.server.run.serve", serve)
    words = ["serve", "--model", "giel", "--weights", "demo", "--device", "cpu"]
    words += ["--precision", "fp32", "--max-batch", "3", "--host", "::1", "--port", "8123"]
    words += ["--token", "one", "--token", "two", "--max-sessions", "5"]
    words += ["--sessions-per-token", "4", "--max-memory", "256", "--state-dir", str(tmp_path)]
    words += ["--autosave", "7", "--park-after", "11", "--close-after", "22"]
    words += ["--allow-origin", "https://a.example", "--allow-host", "b.example"]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, outcome.output
    (found,) = seen
    assert (found.model, found.weights, found.device, found.precision) == (
        *("giel", "demo", "cpu", "fp32"),
    )
    assert (found.max_batch, found.host, found.port) == (3, "::1", 8123)
    assert found.tokens == ("one", "two")
    assert (found.max_sessions, found.sessions_per_token) == (5, 4)
    assert (found.max_memory, found.state_dir, found.autosave) == (256 * MIB, tmp_path, 7)
    assert (found.park_after, found.close_after) == (11, 22)
    assert (found.allow_origins, found.allow_hosts) == (("https://a.example",), ("b.example",))
    assert "http://[::1]:8123/#token=one" in outcome.stdout


def test_options_of_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BatchOptions] = []

    def batch(options: BatchOptions, **_: Any) -> dict[str, Any]:
        seen.append(options)
        raise KeyboardInterrupt  # before anything is told of it

    monkeypatch.setattr("vosengine.commands.batch.batch", batch)
    words = ["batch", "a.mp4", "b.mp4", "--out", str(tmp_path), "--mask-suffix", "_mask"]
    words += ["--workers", "3", "--retries", "4", "--rle", "--redo", "--model", "munet"]
    words += ["--weights", "demo", "--device", "cpu", "--precision", "fp32"]
    words += ["--max-objects", "6", "--size", "64", "--memory", "every-5", "--online"]
    words += ["--limit", "9", "--checkpoint", "8", "--no-overlay"]
    words += ["--ray", "10.0.0.1:6379", "--scratch", str(tmp_path / "scratch")]
    CliRunner().invoke(app, words)
    (found,) = seen
    assert [str(clip) for clip in found.clips] == ["a.mp4", "b.mp4"]
    assert (found.out, found.mask_suffix) == (tmp_path, "_mask")
    assert (found.workers, found.retries, found.rle, found.redo) == (3, 4, True, True)
    assert (found.ray, found.scratch) == ("10.0.0.1:6379", tmp_path / "scratch")
    assert found.run == {
        "model": "munet",
        "weights": "demo",
        "device": "cpu",
        "precision": "fp32",
        "max_objects": 6,
        "size": 64,
        "memory": "every-5",
        "online": True,
        "limit": 9,
        "checkpoint": 8,
        "overlay": False,
    }
    assert "--overlay" in CliRunner().invoke(app, ["batch", "--help"]).output
