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
    arguments = ["serve", "--model", "giel", "--weights", "demo", "--device", "cpu"]
    arguments += ["--precision", "fp32", "--max-batch", "3", "--host", "::1", "--port", "8123"]
    arguments += ["--token", "one", "--token", "two", "--max-sessions", "5"]
    arguments += ["--sessions-per-token", "4", "--max-memory", "256", "--state-dir", str(tmp_path)]
    arguments += ["--autosave", "7", "--park-after", "11", "--close-after", "22"]
    arguments += ["--allow-origin", "https://a.example", "--allow-host", "b.example"]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    (parsed,) = seen
    assert (parsed.model, parsed.weights, parsed.device, parsed.precision) == (
        *("giel", "demo", "cpu", "fp32"),
    )
    assert (parsed.max_batch, parsed.host, parsed.port) == (3, "::1", 8123)
    assert parsed.tokens == ("one", "two")
    assert (parsed.max_sessions, parsed.sessions_per_token) == (5, 4)
    assert (parsed.max_memory, parsed.state_dir, parsed.autosave) == (256 * MIB, tmp_path, 7)
    assert (parsed.park_after, parsed.close_after) == (11, 22)
    assert (parsed.allow_origins, parsed.allow_hosts) == (("https://a.example",), ("b.example",))
    assert "http://[::1]:8123/#token=one" in outcome.stdout


def test_options_of_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BatchOptions] = []

    def batch(options: BatchOptions, **_: Any) -> dict[str, Any]:
        seen.append(options)
        raise KeyboardInterrupt  # before anything is told of it

    monkeypatch.setattr("vosengine.commands.batch.batch", batch)
    arguments = ["batch", "a.mp4", "b.mp4", "--out", str(tmp_path), "--mask-suffix", "_mask"]
    arguments += ["--workers", "3", "--retries", "4", "--rle", "--redo", "--model", "munet"]
    arguments += ["--weights", "demo", "--device", "cpu", "--precision", "fp32"]
    arguments += ["--max-objects", "6", "--size", "64", "--memory", "every-5", "--online"]
    arguments += ["--limit", "9", "--checkpoint", "8", "--no-overlay"]
    arguments += ["--ray", "10.0.0.1:6379", "--scratch", str(tmp_path / "scratch")]
    CliRunner().invoke(app, arguments)
    (parsed,) = seen
    assert [str(clip) for clip in parsed.clips] == ["a.mp4", "b.mp4"]
    assert (parsed.out, parsed.mask_suffix) == (tmp_path, "_mask")
    assert (parsed.workers, parsed.retries, parsed.rle, parsed.redo) == (3, 4, True, True)
    assert (parsed.ray, parsed.scratch) == ("10.0.0.1:6379", tmp_path / "scratch")
    assert parsed.run == {
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
