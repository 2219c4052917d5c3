"""`bench/serve.py`: what it writes of a server that it starts."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from vosengine.server import protocol

pytestmark = pytest.mark.slow


def test_overhead_turns_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "bench"))
    serve = import_module("serve")
    monkeypatch.setattr(serve, "SIZE", (120, 160))
    monkeypatch.setattr(serve, "WARM_UP", 1)
    build, sent = protocol.frame_message, list[str]()

    def recorded(number: int, frame: Any, mask: Any = None, encoding: str = "raw") -> bytes:
        sent.append(encoding)
        return build(number, frame, mask, encoding)

    monkeypatch.setattr(protocol, "frame_message", recorded)
    options = ["--model", "stm", "--device", "cpu", "--frames", "3", "--sessions", "2"]
    options += ["--rounds", "4", "--opened", "10", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["serve.py", *options])
    serve.main()
    (file,) = tmp_path.glob("*-serve-cpu.json")
    written = json.loads(file.read_text())
    assert list(written["overhead"]) == ["jpeg", "raw"]
    for parts in written["overhead"].values():
        p50 = {name: part["p50_ms"] for name, part in parts.items()}
        assert 0 < p50["overhead"] < p50["round_trip"] and 0 < p50["step"] < p50["round_trip"]
        assert p50["coding"] > 0 and p50["transport"] > 0
    assert sent[: 2 * 8] == ["jpeg"] * 8 + ["raw"] * 8  # four frames, each by hand and by Client
    fairness = written["fairness"]
    assert (fairness["sessions"], fairness["frames_each"]) == (2, 4)
    assert 1 <= fairness["longest_wait"] <= 4
    assert len(written["churn"]["resident_mib"]) == 10
