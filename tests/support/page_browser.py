"""`vosengine serve` and Chromium on its page, for tests and pictures of the page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BROWSER = Path(__file__).resolve().parents[1] / "browser"
TOKEN = "of-the-tests"
SECONDS = 120.0  # for Chromium to end

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
NODE = shutil.which("node")
MISSING = [
    what
    for what, there in (
        ("Chromium (apt-get install chromium)", Path(CHROMIUM).exists()),
        ("node", NODE is not None),
        ("playwright-core (npm ci in tests/browser)", (BROWSER / "node_modules").exists()),
    )
    if not there
]


class Server:
    """`vosengine serve` as a process."""

    def __init__(self, states: Path) -> None:
        self._states = states
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start the server and wait until it listens; a restart uses the same port."""
        command = [sys.executable, "-m", "vosengine", "serve", "--model", "munet"]
        command += ["--token", TOKEN, "--port", str(self.port), "--device", "cpu"]
        command += ["--state-dir", str(self._states), "--autosave", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.url = line.split("#")[0]
        self.port = urlsplit(self.url).port or 0
        if not self.port:
            self.close()
            raise AssertionError(f"the server did not start: {line!r}")

    def forget(self) -> None:
        """Delete the sessions of a closed server."""
        for path in self._states.iterdir():
            path.unlink()

    def close(self) -> None:
        """Kill the server, as `kill -9`."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Browser:
    """Chromium and the program that drives it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._driver = subprocess.Popen(
            [str(NODE), "drive.mjs"],
            cwd=BROWSER,
            env={**os.environ, "CHROMIUM": CHROMIUM, "PAGE_TOKEN": TOKEN, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def play(self, name: str, **acts: Callable[[], None]) -> str:
        """Run a scenario, which must succeed, and return its output. acts: functions that the
        scenario calls by name."""
        answer = self._tell(name)
        while "ask" in answer:
            acts[answer["ask"]]()
            answer = self._tell("done")
        assert answer["ok"], answer["said"]
        return str(answer["said"])

    def _tell(self, line: str) -> dict[str, Any]:
        assert self._driver.stdin is not None and self._driver.stdout is not None
        self._driver.stdin.write(f"{line}\n")
        self._driver.stdin.flush()
        answer: dict[str, Any] = json.loads(self._driver.stdout.readline())
        return answer

    def close(self) -> None:
        self._driver.communicate(timeout=SECONDS)
