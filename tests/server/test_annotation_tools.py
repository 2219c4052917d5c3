"""The examples for CVAT and Label Studio, over a server with a narrow network: the requests of
annotation_requests.py, and what must be answered to them."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import annotation_requests as requests
import cv2
import httpx
import numpy as np
import pytest
from conftest import make
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import SIZE, TOKEN, Running, running, tiny_engine

from vosengine.prompts import mask_from
from vosengine.training.synthetic import Clip, ClipConfig, make_clip
from vosengine.video import VideoWriter, open_source

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HEIGHT, WIDTH = SIZE
STEPS = 4


def example(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cvat = example("cvat_tracker", EXAMPLES / "cvat_tracker" / "main.py")
studio = example("label_studio_backend", EXAMPLES / "label_studio_backend.py")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(tiny_engine()) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def clip() -> Clip:
    return make_clip(ClipConfig(frames=STEPS, height=HEIGHT, width=WIDTH, objects=(2, 2)), seed=4)


def address(server: Running) -> str:
    return f"{server.url}/#token={TOKEN}"


def wanted_labels(frames: np.ndarray, mask: np.ndarray, objects: int) -> list[np.ndarray]:
    """The labels of a separate Segmenter; the client sends frames raw."""
    segmenter = make("stm", max_objects=objects)
    answers = [segmenter.step(f, None if i else mask) for i, f in enumerate(frames)]
    return [answer.numpy() for answer in answers if answer is not None]


# CVAT.


class Nuclio:
    """A nuclio worker that has loaded the function."""

    def __init__(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VOSENGINE_SERVER", server)
        self._context = SimpleNamespace(
            user_data=SimpleNamespace(),
            logger=logging.getLogger("nuclio"),
            Response=SimpleNamespace,
        )
        cvat.init_context(self._context)

    def ask(self, body: Any, status: int = 200) -> Any:
        answer = cvat.handler(self._context, SimpleNamespace(body=body))
        assert (answer.status_code, answer.content_type) == (status, "application/json"), answer
        return json.loads(answer.body)


@pytest.fixture
def nuclio(server: Running, monkeypatch: pytest.MonkeyPatch) -> Nuclio:
    return Nuclio(address(server), monkeypatch)


def polygon(left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    return {"type": "polygon", "points": [left, top, right, top, right, bottom, left, bottom]}


def unpacked(points: list[int]) -> np.ndarray:
    """Decode CVAT's mask, independently of the example."""
    region = np.zeros(SIZE, bool)
    *runs, left, top, right, bottom = points
    place = 0
    for number, run in enumerate(runs):
        for index in range(place, place + run):
            row, column = divmod(index, right - left + 1)
            region[top + row, left + column] = number % 2 == 1
        place += run
    assert place == (right - left + 1) * (bottom - top + 1)
    return region


@pytest.mark.slow
def test_cvat_tracks_masks_and_polygons_together(nuclio: Nuclio, clip: Clip) -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[30:41, 40:56], mask[8:25, 16:33] = 2, 1
    first = [polygon(16, 8, 32, 24), cvat.shape_of(mask == 2, "mask")]
    assert np.array_equal(unpacked(first[1]["points"]), mask == 2)
    answer = nuclio.ask(requests.cvat(clip.frames[0], first, [None, None]))
    assert answer["shapes"] == first
    for index, labels in enumerate(wanted_labels(clip.frames, mask, 2)[1:], 1):
        answer = nuclio.ask(requests.cvat(clip.frames[index], [], answer["states"]))
        corners, packed = answer["shapes"]
        if corners is not None:
            filled = np.zeros(SIZE, np.uint8)
            cv2.fillPoly(filled, [np.reshape(corners["points"], (-1, 2))], (1,))
            assert corners["type"] == "polygon" and filled[labels == 1].any()
        else:
            assert not (labels == 1).any()
        if packed is not None:
            assert packed["type"] == "mask"
            np.testing.assert_array_equal(unpacked(packed["points"]), labels == 2)
        else:
            assert not (labels == 2).any()
    assert len({state["session"] for state in answer["states"]}) == 1  # one step for both


@pytest.mark.slow
def test_an_older_cvat_tracks_bare_boxes(nuclio: Nuclio, clip: Clip) -> None:
    box = [16.3, 7.8, WIDTH + 3, 32.4]  # out of the frame at the right
    body = requests.cvat(clip.frames[0], [box], [])
    answer = nuclio.ask(json.dumps(body).encode())  # where nuclio did not read it
    assert answer["shapes"] == [box]
    mask = mask_from(clip.frames[0], box=(16, 8, WIDTH - 16, 24)).astype(bool).astype(np.uint8)
    labels = wanted_labels(clip.frames[:2], mask, 1)[1]
    answer = nuclio.ask(requests.cvat(clip.frames[1], answer["shapes"], answer["states"]))
    rows, columns = np.nonzero(labels)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else box
    assert answer["shapes"] == [seen]


@pytest.mark.slow
def test_objects_that_begin_later_are_a_stream_of_their_own(nuclio: Nuclio, clip: Clip) -> None:
    boxes = [polygon(16, 8, 32, 24), polygon(30, 30, 50, 40)]
    answer = nuclio.ask(requests.cvat(clip.frames[0], boxes[:1], [None]))
    both = requests.cvat(clip.frames[1], [None, boxes[1]], [*answer["states"], None])
    states = nuclio.ask(both)["states"]
    assert [state["frame"] for state in states] == [2, 1]
    assert states[0]["session"] != states[1]["session"]
    states = nuclio.ask(requests.cvat(clip.frames[2], [], states))["states"]
    assert [state["frame"] for state in states] == [3, 2]


@pytest.mark.slow
def test_what_cvat_cannot_have_is_refused(nuclio: Nuclio, clip: Clip) -> None:
    frame, box = clip.frames[0], polygon(16, 8, 32, 24)
    first = nuclio.ask(requests.cvat(frame, [box], [None]))
    again = requests.cvat(frame, [], first["states"])
    nuclio.ask(again)
    assert "earlier frame" in nuclio.ask(again, 400)["message"]
    gone = [{**first["states"][0], "session": "0" * 32}]
    assert "session" in nuclio.ask(requests.cvat(frame, [], gone), 400)["message"]
    line = {"type": "polyline", "points": [1, 1, 2, 2]}
    assert "polyline" in nuclio.ask(requests.cvat(frame, [line], []), 400)["message"]
    twice = nuclio.ask(requests.cvat(frame, [box, box], []), 400)
    assert "nothing is left of the 1th" in twice["message"]
    damaged: list[Any] = [b"{", {}, {"image": "no base64"}, {"image": "AAAA", "shapes": [box]}]
    for body in [*damaged, {**again, "states": [5]}, {**again, "shapes": [5], "states": []}]:
        assert "not a tracker request of CVAT" in nuclio.ask(body, 400)["message"]


# Label Studio.


class Files(BaseHTTPRequestHandler):
    """Label Studio's file server, which checks the token."""

    kept: dict[str, bytes]

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Token of-studio" and self.path in self.kept
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(self.kept[self.path] if known else b"")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def hosting(kept: dict[str, bytes]) -> Iterator[str]:
    """A Label Studio that has these files."""
    handler = type("Kept", (Files,), {"kept": kept})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as host:
        thread = Thread(target=host.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{host.server_port}"
        finally:
            host.shutdown()
            thread.join()


class Backend:
    """The backend, called like Label Studio does, and the video of its tasks."""

    def __init__(self, backend: Any, video: Path) -> None:
        self._app, self.video = studio.make_app(backend), video

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://backend") as client:
                return await client.request(method, path, json=body)

        return asyncio.run(send())

    def predict(self, body: Any, status: int = 200) -> Any:
        answer = self.ask("POST", "/predict", body)
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def backend(
    server: Running, clip: Clip, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    picture, video = io.BytesIO(), tmp_path_factory.mktemp("video") / "clip.mp4"
    Image.fromarray(clip.frames[0]).save(picture, "PNG")
    with VideoWriter(video, 10.0) as writer:
        for frame in clip.frames:
            writer.write(frame)
    kept = {"/data/upload/3/a.png": picture.getvalue(), "/data/upload/3/a.mp4": video.read_bytes()}
    with hosting(kept) as host:
        yield Backend(studio.Backend(address(server), host, "of-studio", frames=2), video)


def unpacked_brush(data: list[int]) -> np.ndarray:
    """Decode Label Studio's brush, following its decoder, independently of the example."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        assert place <= len(bits)
        return int(bits[place - count : place], 2)

    total, size = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        same = take(1)
        count = take(sizes[take(2)]) + 1
        values += [take(size)] * count if same else [take(size) for _ in range(count)]
    assert len(values) == total and 0 <= len(bits) - place < 8
    return np.array(values, np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=60), st.integers(1, 6))
def test_a_brush_is_read_as_it_was_written(pixels: list[int], height: int) -> None:
    mask = np.tile(np.array(pixels, bool), (height, 1))
    values = unpacked_brush(studio.brush_rle(mask)).reshape(*mask.shape, 4)
    np.testing.assert_array_equal(values, np.repeat(255 * mask[..., None], 4, axis=2))


def test_runs_of_every_length_fit_into_a_brush() -> None:
    for run in (1, 2, 3, 4, 5, 64, 65, 16384, 16385, 40000):  # of pixels, with four values each
        mask = np.zeros((1, run + 2), bool)
        mask[0, 1:-1] = True
        values = unpacked_brush(studio.brush_rle(mask)).reshape(-1, 4)
        assert (values == 255 * mask.ravel()[:, None]).all()


def test_label_studio_finds_the_backend(backend: Backend) -> None:
    assert backend.ask("GET", "/health").json()["status"] == "UP"
    setup = {"project": "3.1", "schema": requests.IMAGE_CONFIG, "hostname": "", "access_token": ""}
    assert backend.ask("POST", "/setup", setup).json() == {"model_version": "vosengine"}


def test_label_studio_gets_a_brush_for_marks(backend: Backend, clip: Clip) -> None:
    data = {"image": "/data/upload/3/a.png"}
    body = requests.predict(requests.IMAGE_CONFIG, data, requests.marks(WIDTH, HEIGHT))
    (result,) = backend.predict(body)["results"]
    (region,) = result["result"]
    assert result["model_version"] == "vosengine"
    names = region["from_name"], region["to_name"], region["type"], region["image_rotation"]
    assert names == ("tag", "image", "brushlabels", 0)
    assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
    assert (region["value"]["format"], region["value"]["brushlabels"]) == ("rle", ["Ball"])
    values = unpacked_brush(region["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)
    points = [(28, 21, True), (3, 43, False)]
    wanted = mask_from(clip.frames[0], box=(16, 10, 26, 24), points=points)
    assert wanted.any()
    np.testing.assert_array_equal(values[..., 3] > 0, wanted > 0)


@pytest.mark.slow
def test_label_studio_gets_boxes_of_the_frames_after(backend: Backend) -> None:
    data = {"video": "/data/upload/3/a.mp4"}
    context = requests.video_box(STEPS, frame=2)
    answer = backend.predict(requests.predict(requests.VIDEO_CONFIG, data, context))
    ((region,),) = [result["result"] for result in answer["results"]]
    (drawn,) = context["result"]
    sequence = region["value"].pop("sequence")
    assert sequence[0] == drawn["value"].pop("sequence")[0] and region == drawn
    frames = [f.image for f in open_source(str(backend.video))][1:4]
    mask = mask_from(frames[0], box=(16, 10, 26, 24)).astype(bool).astype(np.uint8)
    wanted = []
    for index, labels in enumerate(wanted_labels(np.stack(frames), mask, 1)[1:], 3):
        rows, columns = np.nonzero(labels)
        if len(rows):
            wanted.append((index, columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    boxes = []
    for box in sequence[1:]:
        left, top = box["x"] * WIDTH / 100, box["y"] * HEIGHT / 100
        right, bottom = left + box["width"] * WIDTH / 100, top + box["height"] * HEIGHT / 100
        boxes.append((box["frame"], *(round(side) for side in (left, top, right, bottom))))
        assert box["enabled"] and box["time"] == pytest.approx((box["frame"] - 1) / 10)
    assert boxes == wanted


def test_label_studio_gets_nothing_before_an_interaction(backend: Backend) -> None:
    body = requests.predict(requests.IMAGE_CONFIG, {"image": "/none.png"}, None)
    results = backend.predict(body)["results"]
    assert results == [{"result": [], "model_version": "vosengine"}]


@pytest.mark.slow
def test_what_label_studio_cannot_have_is_refused(backend: Backend) -> None:
    marks, data = requests.marks(WIDTH, HEIGHT), {"image": "/data/upload/3/a.png"}
    other = requests.predict("<View><Text name='t' value='$t'/></View>", data, marks)
    gone = requests.predict(requests.IMAGE_CONFIG, {"image": "/data/gone.png"}, marks)
    size = requests.predict(requests.IMAGE_CONFIG, data, requests.marks(2 * WIDTH, HEIGHT))
    broken = requests.predict("<View>", data, marks)
    for body, why in [
        (other, "BrushLabels"), (gone, "404"), (size, "its regions say"),
        (broken, "not a request of Label Studio"),
        ({}, "not a request of Label Studio"), ([], "not a request of Label Studio"),
        ({**gone, "params": {"context": 5}}, "not a request of Label Studio"),
    ]:  # fmt: skip
        assert why in backend.predict(body, 400)["error"]
