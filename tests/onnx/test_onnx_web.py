"""examples/web in Chromium: onnxruntime-web and Python give the same labels."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from page_browser import BROWSER, MISSING, NODE
from typer.testing import CliRunner

from vosengine.cli.app import app
from vosengine.onnx import OnnxSegmenter
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.video import VideoWriter

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "web"
RUNTIME = EXAMPLE / "node_modules" / "onnxruntime-web"
WITHOUT = [*MISSING, *([] if RUNTIME.exists() else ["onnxruntime-web (npm ci in examples/web)"])]
FRAMES, HEIGHT, WIDTH = 10, 96, 130
pytestmark = pytest.mark.skipif(bool(WITHOUT), reason=f"without {', '.join(WITHOUT)}")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """No log output."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with an export of stm's shipped weights."""
    folder = tmp_path_factory.mktemp("web")
    for path in (*EXAMPLE.glob("*.mjs"), EXAMPLE / "index.html", EXAMPLE / "node_modules"):
        (folder / path.name).symlink_to(path)
    exported = CliRunner().invoke(app, ["export", "stm", "--out", str(folder / "model")])
    assert exported.exit_code == 0, exported.output
    described = json.loads((folder / "model" / "model.json").read_text())
    (folder / "ours").mkdir()
    (folder / "ours" / "model.json").write_text(json.dumps({**described, "ops": "vosengine"}))
    return folder


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    handler = partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_a_stream_in_chromium(site: Path, url: str, tmp_path: Path) -> None:
    """Two objects, one added later, a correction and a removal; and use of the page."""
    clip = make_clip(ClipConfig(frames=FRAMES, height=HEIGHT, width=WIDTH, objects=(2, 2)), seed=4)
    prompts = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    for index, number in ((0, 1), (2, 2), (5, 1)):
        prompts[index] = np.where(clip.masks[index] == number, number, 0)
    opaque = np.full((FRAMES, HEIGHT, WIDTH, 1), 255, np.uint8)
    (site / "frames.bin").write_bytes(np.concatenate((clip.frames, opaque), axis=3).tobytes())
    (site / "prompts.bin").write_bytes(prompts.tobytes())
    with VideoWriter(tmp_path / "clip.mp4", 12.0) as video:
        for frame in clip.frames[:4]:
            video.write(frame)

    command = [str(NODE), "web_example.mjs", url, *map(str, (WIDTH, HEIGHT, FRAMES))]
    done = subprocess.run(
        [*command, str(tmp_path / "clip.mp4")],
        cwd=BROWSER,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    raw = np.frombuffer(base64.b64decode(output["labels"]), np.uint8)
    labels = raw.reshape(FRAMES, HEIGHT, WIDTH)

    segmenter = OnnxSegmenter(site / "model", providers=["CPUExecutionProvider"])
    for index, frame in enumerate(clip.frames):
        result = segmenter.step(frame, prompts[index] if prompts[index].any() else None)
        assert result is not None
        assert (labels[index] != result.numpy()).mean() <= 1e-3, index
        if index == FRAMES - 3:
            segmenter.remove(1)
    assert set(np.unique(labels[:-2])) == {0, 1, 2} and set(np.unique(labels[-2:])) <= {0, 2}

    assert [message.split(":")[0] for message in output["refused"]] == [
        "stm",
        "prompt",
        "frame",
        "prompt",
    ]
    assert re.match(r"Frame [34], ", output["said"])
