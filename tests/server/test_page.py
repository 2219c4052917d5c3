"""The page of `vosengine serve` in Chromium: the scenarios of tests/browser, one per test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from page_browser import BROWSER, MISSING, NODE, Browser, Server
from PIL import Image

from vosengine import rle
from vosengine.video import VideoWriter

OUT = Path(__file__).resolve().parents[2] / "out" / "browser"  # pictures, to look at
FRAMES, ROUND, HEIGHT, WIDTH, RADIUS = 24, 48, 240, 320, 26
Size = tuple[int, int]
SIZE, LARGE = (WIDTH, HEIGHT), (854, 480)
CAMERA = "mjpeg", "yuvj420p", {"qmin": "2", "qmax": "3"}, "mjpeg"
MOST_MS = 30.0  # that the page itself takes for a frame: twice what is wanted of a quiet machine
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"without {', '.join(MISSING)}")


def draw_ball(index: int) -> np.ndarray:
    """A frame of the clip: a yellow ball that circles on grey, once in ROUND frames."""
    coarse = np.random.default_rng(5).integers(0, 24, (30, 40), dtype=np.uint8)
    grey = 84 + cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    frame = np.repeat(grey[..., None], 3, axis=2)
    turn = 2 * np.pi * index / ROUND
    x, y = 160 + 90 * np.cos(turn), 120 + 60 * np.sin(turn)
    centre = round(x * 16), round(y * 16)
    cv2.circle(frame, centre, RADIUS * 16, (230, 210, 50), -1, cv2.LINE_AA, 4)
    return frame


def write_clip(
    path: Path, codec: str, pixels: str, options: dict[str, str], form: str, size: Size = SIZE
) -> None:
    """One round of the ball; size: (width, height)."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        for index in range(ROUND):
            image = cv2.resize(draw_ball(index), size)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The clip as a file that WebCodecs supports, as one that it does not, and as a camera."""
    folder = tmp_path_factory.mktemp("clips")
    mp4, webm, camera = folder / "ball.mp4", folder / "ball.webm", folder / "ball.mjpeg"
    with VideoWriter(mp4, 24.0) as video:
        for index in range(FRAMES):
            video.write(draw_ball(index))
    quick = {"deadline": "realtime", "cpu-used": "8", "b": "1M"}
    write_clip(webm, "libvpx-vp9", "yuv420p", quick, "webm")
    write_clip(camera, *CAMERA)
    return {"PAGE_CLIP": str(mp4), "PAGE_WEBM": str(webm), "PAGE_CAMERA": str(camera)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with closing(Server(tmp_path_factory.mktemp("states"))) as server:
        yield server


@pytest.fixture(scope="module")
def browser(server: Server, clips: dict[str, str]) -> Iterator[Browser]:
    environment = {"PAGE_URL": server.url, "PAGE_OUT": str(OUT)}
    with closing(Browser({**environment, **clips})) as browser:
        yield browser


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
    [
        "camera",
        "player",
        "sources",
        "prompts",
        "undo",
        "reload",
        "keyboard",
        "token",
        "maskless",
        "looks",
    ],
)
def test_scenario(browser: Browser, name: str) -> None:
    browser.play(name)


@needs_browser
def test_a_file_plays_through_and_its_masks_are_saved(browser: Browser) -> None:
    browser.play("file")
    saved = json.loads((OUT / "masks.json").read_text())
    assert [image["frame_index"] for image in saved["images"]] == list(range(FRAMES))
    assert [annotation["category_id"] for annotation in saved["annotations"]] == [1] * FRAMES
    masks = [decode(annotation["segmentation"]) for annotation in saved["annotations"]]
    for index, mask in enumerate(masks):
        ball = draw_ball(index)[..., 2] < 70
        assert (mask & ball).sum() / (mask | ball).sum() > 0.7, index
    last, (rows, columns) = saved["annotations"][-1], np.nonzero(masks[-1])
    assert last["area"] == masks[-1].sum()
    left, top, width, height = last["bbox"]
    assert (left, top) == (columns.min(), rows.min())
    assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
    with Image.open(OUT / "mask.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), masks[-1])


def decode(segmentation: dict[str, Any]) -> np.ndarray:
    return rle.decode(segmentation["counts"], segmentation["size"])


@needs_browser
def test_the_server_is_killed_and_the_page_goes_on(browser: Browser, server: Server) -> None:
    browser.play("restart", kill=server.close, start=server.start, forget=server.forget)


@needs_browser
def test_the_page_costs_little(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = tmp_path / "ball.mjpeg"
    write_clip(camera, *CAMERA, LARGE)
    environment = {"PAGE_URL": server.url, "PAGE_OUT": str(OUT), "PAGE_CAMERA": str(camera)}
    with closing(Browser(environment)) as browser:
        output = browser.play("cost")
    with capsys.disabled():
        sys.stdout.write(f"\n{output}\n")
    least = re.search(r"854x480 frame: least ([0-9.]+) ms", output)
    assert least is not None, output
    assert float(least[1]) <= MOST_MS
