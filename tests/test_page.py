"""The page of `vosengine serve` in Chromium: tests/browser/page.test.mjs, one scenario a test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from vosengine.video import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
BROWSER = Path(__file__).with_name("browser")
OUT = ROOT / "out" / "browser"  # pictures, to look at
TOKEN = "of-the-tests"
FRAMES, HEIGHT, WIDTH, RADIUS = 48, 240, 320, 26
SECONDS = 120.0  # for a scenario

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
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"without {', '.join(MISSING)}")


def draw_ball(index: int) -> np.ndarray:
    """A frame of the clip: a yellow ball that goes round on grey, once in FRAMES."""
    coarse = np.random.default_rng(5).integers(0, 24, (30, 40), dtype=np.uint8)
    grey = 84 + cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    frame = np.repeat(grey[..., None], 3, axis=2)
    turn = 2 * np.pi * index / FRAMES
    x, y = 160 + 90 * np.cos(turn), 120 + 60 * np.sin(turn)
    centre = round(x * 16), round(y * 16)
    cv2.circle(frame, centre, RADIUS * 16, (230, 210, 50), -1, cv2.LINE_AA, 4)
    return frame


def write_clip(path: Path, codec: str, pixels: str, options: dict[str, str], form: str) -> None:
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        for index in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw_ball(index), "rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The clip as a file that WebCodecs takes, as one that it does not, and as a camera's."""
    folder = tmp_path_factory.mktemp("clips")
    mp4, webm, camera = folder / "ball.mp4", folder / "ball.webm", folder / "ball.mjpeg"
    with VideoWriter(mp4, 24.0) as video:
        for index in range(FRAMES):
            video.write(draw_ball(index))
    quick = {"deadline": "realtime", "cpu-used": "8", "b": "1M"}
    write_clip(webm, "libvpx-vp9", "yuv420p", quick, "webm")
    write_clip(camera, "mjpeg", "yuvj420p", {"qmin": "2", "qmax": "3"}, "mjpeg")
    return {"PAGE_CLIP": str(mp4), "PAGE_WEBM": str(webm), "PAGE_CAMERA": str(camera)}


class Server:
    """`vosengine serve` as a process."""

    def __init__(self, states: Path) -> None:
        self._states = states
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens; a second time, on the same port."""
        command = [str(Path(sys.executable).with_name("vosengine")), "serve", "--model", "munet"]
        command += ["--token", TOKEN, "--port", str(self.port), "--device", "cpu"]
        command += ["--state-dir", str(self._states), "--autosave", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split("#")[0].strip()
        assert self.url, "the server did not start"
        self.port = urlsplit(self.url).port or 0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("states"))
    yield server
    server.kill()


Play = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def play(server: Server, clips: dict[str, str]) -> Iterator[Play]:
    """Start a scenario."""
    begun: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        given = {"PAGE_URL": server.url, "PAGE_TOKEN": TOKEN, "PAGE_OUT": str(OUT), **clips}
        begun.append(
            subprocess.Popen(
                [str(NODE), "page.test.mjs", name],
                cwd=BROWSER,
                env={**os.environ, "CHROMIUM": CHROMIUM, **given},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        process.terminate()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    """What a scenario printed; it must succeed."""
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    return said


@pytest.mark.skipif(NODE is None, reason="without node")
def test_the_modules_that_need_no_browser() -> None:
    done = subprocess.run(
        [str(NODE), "--test", "modules.test.mjs"],
        cwd=BROWSER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_browser
@pytest.mark.parametrize(
    "name",
    ["camera", "player", "prompts", "undo", "reload", "keyboard", "token", "maskless", "looks"],
)
def test_scenario(play: Play, name: str) -> None:
    finish(play(name))


@needs_browser
def test_a_file_plays_through_and_its_masks_are_saved(play: Play) -> None:
    finish(play("file"))
    saved = json.loads((OUT / "masks.json").read_text())
    assert [image["frame_index"] for image in saved["images"]] == list(range(FRAMES))
    assert [each["category_id"] for each in saved["annotations"]] == [1] * FRAMES
    masks = [coco.decode(each["segmentation"]) for each in saved["annotations"]]
    for index, mask in enumerate(masks):
        ball = draw_ball(index)[..., 2] < 70
        assert (mask & ball).sum() / (mask | ball).sum() > 0.7, index
    last = saved["annotations"][-1]
    assert last["area"] == masks[-1].sum()
    assert last["bbox"] == coco.toBbox(last["segmentation"]).tolist()
    with Image.open(OUT / "mask.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), masks[-1])


@needs_browser
def test_the_server_is_killed_and_the_page_goes_on(play: Play, server: Server) -> None:
    process = play("restart")
    assert process.stdin is not None and process.stdout is not None
    for wanted, act in (("kill", server.kill), ("start", server.start)):
        said = process.stdout.readline()
        assert said == f"{wanted} the server\n", said + process.stdout.read()
        act()
        process.stdin.write("done\n")
        process.stdin.flush()
    finish(process)


@needs_browser
def test_the_page_costs_little(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    said = finish(play("cost"))
    with capsys.disabled():
        print(f"\n{said.strip()}")  # noqa: T201
