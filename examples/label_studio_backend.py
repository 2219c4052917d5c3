"""ML backend for Label Studio, on top of `vosengine serve`.

    python examples/label_studio_backend.py http://127.0.0.1:8000/#token=... [--port 9090]
        [--studio http://127.0.0.1:8080 --key KEY] [--frames 100]

Connect it as a model with "use for interactive preannotations". In images it turns key points and
rectangles into masks (<BrushLabels>). In videos it follows boxes (<VideoRectangle>) from the last
frame in which a person drew them, for at most --frames frames. Images and videos are fetched from
Label Studio; --key is a personal access token for it.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from uuid import uuid4
from xml.etree import ElementTree

import httpx
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vosengine.client import Client
from vosengine.errors import InputError, ServerError, VosError
from vosengine.video import open_source

VERSION = "vosengine"
RUN_BITS = (3, 4, 8, 16)  # possible numbers of bits of a run's length
MAX_RUN = 1 << RUN_BITS[-1]
MALFORMED = (
    KeyError, TypeError, ValueError, IndexError, AttributeError, OSError, ElementTree.ParseError,
    Image.DecompressionBombError,
)  # fmt: skip
Regions = list[dict[str, Any]]


class Backend:
    """Answers requests of Label Studio.

    server  address that `vosengine serve` prints, with #token=...
    studio  address of Label Studio
    key     personal access token of Label Studio; may be empty
    frames  maximum number of video frames in which a box is followed
    """

    def __init__(self, server: str, studio: str, key: str, frames: int) -> None:
        split = urlsplit(server)
        self._server, self._studio, self._frames = server, studio, frames
        self._prompt = f"{split.scheme}://{split.netloc}/v1/prompt"
        self._token = {"Authorization": f"Bearer {split.fragment.removeprefix('token=')}"}
        self._key = {"Authorization": f"Token {key}"} if key else {}

    def predict(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer POST /predict: the regions that each task's interaction asks for."""
        context = (body.get("params") or {}).get("context") or {}
        drawn = context.get("result") or []
        tags = {tag.tag: tag for tag in ElementTree.fromstring(body["label_config"]).iter()}
        if not drawn:  # nothing is drawn yet
            results: list[Regions] = [[] for _ in body["tasks"]]
        elif "VideoRectangle" in tags:
            results = [self._follow(task, drawn, tags["Video"]) for task in body["tasks"]]
        elif "BrushLabels" in tags:
            image, brush = tags["Image"], tags["BrushLabels"]
            results = [self._segment(task, drawn, image, brush) for task in body["tasks"]]
        else:
            raise InputError("label_config: wanted <BrushLabels> or <VideoRectangle>")
        return {"results": [{"result": r, "model_version": VERSION} for r in results]}

    def _segment(
        self, task: Mapping[str, Any], drawn: Regions, image: Any, brush: Any
    ) -> list[dict[str, Any]]:
        """The brush region of the object that key points and rectangles mark in an image."""
        width, height = drawn[0]["original_width"], drawn[0]["original_height"]
        box, points, label = None, [], ""
        for region in drawn:
            value = region["value"]
            x, y = value["x"] / 100 * width, value["y"] / 100 * height
            label = value[region["type"]][0]
            if region["type"] == "rectanglelabels":
                box = x, y, value["width"] / 100 * width, value["height"] / 100 * height
            elif region["type"] == "keypointlabels":
                points.append((x, y, bool(int(region.get("is_positive", 1)))))
        data = self._fetch(task["data"][image.attrib["value"].removeprefix("$")])
        with Image.open(io.BytesIO(data)) as header:
            if header.size != (width, height):
                raise InputError(
                    f"image: is {header.size}, its regions say {(width, height)} (width, height)"
                )
        mask = self._prompted(data, (width, height), box, points)
        value = {"format": "rle", "rle": brush_rle(mask), "brushlabels": [label]}
        return [
            {
                "id": uuid4().hex[:10],
                "from_name": brush.attrib["name"],
                "to_name": brush.attrib["toName"],
                "type": "brushlabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": value,
            }
        ]

    def _follow(self, task: Mapping[str, Any], drawn: Regions, video: Any) -> Regions:
        """The drawn video regions, with boxes added after their last one."""
        address = task["data"][video.attrib["value"].removeprefix("$")]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"video{Path(urlsplit(address).path).suffix or '.mp4'}"
            path.write_bytes(self._fetch(address))
            return [self._followed(region, path) for region in drawn]

    def _followed(self, region: dict[str, Any], path: Path) -> dict[str, Any]:
        value = region["value"]
        drawn = max(value["sequence"], key=lambda box: box["frame"])
        start, second = drawn["frame"] - 1, value["duration"] / value["framesCount"]
        boxes = []

        def pairs() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
            for frame in islice(open_source(str(path)), start, start + 1 + self._frames):
                yield frame.image, None if frame.index > start else self._inside(frame.image, drawn)

        with Client(self._server, policy="all", max_objects=1) as client:
            for answer in islice(client.stream(pairs()), 1, None):
                if (box := percent_box(answer.labels > 0)) is not None:
                    number = start + answer.frame
                    place = {"frame": number + 1, "time": number * second}
                    boxes.append({**box, **place, "enabled": True, "rotation": 0})
        sequence = [*value["sequence"], *boxes]
        return {**region, "value": {**value, "sequence": sequence}}

    def _inside(self, image: np.ndarray, drawn: Mapping[str, float]) -> np.ndarray:
        """The mask of the object in a box."""
        size = image.shape[1], image.shape[0]
        sides = [drawn[name] / 100 for name in ("x", "y", "width", "height")]
        box = tuple(side * length for side, length in zip(sides, size * 2, strict=True))
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        return self._prompted(buffer.getvalue(), size, box, []).astype(np.uint8)

    def _prompted(
        self,
        data: bytes,
        size: tuple[int, int],
        box: tuple[float, ...] | None,
        points: list[tuple[float, float, bool]],
    ) -> np.ndarray:
        """Ask the server for the mask, bool [H, W], of a box (left, top, width, height) and points.

        data  the image, a JPEG or PNG
        size  its (width, height)
        """
        prompts = []
        if box is not None:  # clipped to the image
            left, top = max(0, round(box[0])), max(0, round(box[1]))
            right, bottom = round(box[0] + box[2]), round(box[1] + box[3])
            width, height = min(right, size[0]) - left, min(bottom, size[1]) - top
            prompts.append(("box", f"{left},{top},{width},{height}"))
        for x, y, on in points:
            column, row = min(int(x), size[0] - 1), min(int(y), size[1] - 1)
            prompts.append(("point", f"{column},{row}{'' if on else ',-'}"))
        answer = httpx.post(
            self._prompt, params=prompts, content=data, headers=self._token, timeout=30,
            trust_env=False,
        )  # fmt: skip
        if answer.is_error:
            error = answer.json()["error"]
            raise ServerError(error["code"], error["message"])
        return np.asarray(Image.open(io.BytesIO(answer.content))) > 0

    def _fetch(self, address: str) -> bytes:
        """Fetch a file of a task. The token is sent to Label Studio only."""
        url = urljoin(self._studio, address)
        is_studio = urlsplit(url)[:2] == urlsplit(self._studio)[:2]
        try:
            answer = httpx.get(url, headers=self._key if is_studio else {}, timeout=60)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise InputError(f"{address}: cannot be fetched ({error})") from error
        if answer.is_error:
            raise InputError(f"{address}: cannot be fetched ({answer.status_code}); see --key")
        return answer.content


def percent_box(mask: np.ndarray) -> dict[str, float] | None:
    """Bounding box of a mask in percent of its sides; None if the mask is empty."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    height, width = mask.shape
    left, top = int(columns.min()), int(rows.min())
    return {
        "x": 100 * left / width,
        "y": 100 * top / height,
        "width": 100 * (int(columns.max()) + 1 - left) / width,
        "height": 100 * (int(rows.max()) + 1 - top) / height,
    }


def brush_rle(mask: np.ndarray) -> list[int]:
    """Encode a mask, bool [H, W], as Label Studio's brush: a bit stream in bytes, high bits first.

    It holds four values per pixel (RGBA, here all 0 or all 255), row by row. The header: 32 bits,
    the number of values; 5 bits, the bits per value minus 1; 4 x 4 bits, each of RUN_BITS minus 1.
    Then for each run: a bit 1 (all values are equal), 2 bits (index into RUN_BITS), the length
    minus 1 in that many bits, and the value in 8 bits.
    """
    pixels = mask.astype(bool).ravel()
    bits = [f"{4 * pixels.size:032b}", f"{7:05b}", *(f"{bits - 1:04b}" for bits in RUN_BITS)]
    edges = [0, *(np.flatnonzero(pixels[1:] != pixels[:-1]) + 1).tolist(), pixels.size]
    for start, end in pairwise(edges):
        left, value = 4 * (end - start), 255 * int(pixels[start])
        while left:
            run = min(left, MAX_RUN)
            which = next(i for i, bits in enumerate(RUN_BITS) if run <= 1 << bits)
            bits.append(f"1{which:02b}{run - 1:0{RUN_BITS[which]}b}{value:08b}")
            left -= run
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def make_app(backend: Backend) -> Starlette:
    """Label Studio's protocol: GET /health, POST /setup, POST /predict."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "UP", "model_class": VERSION})

    async def setup(_: Request) -> Response:
        return JSONResponse({"model_version": VERSION})

    async def predict(request: Request) -> Response:
        try:
            body = await request.json()
            return JSONResponse(await run_in_threadpool(backend.predict, body))
        except VosError as error:
            message = str(error)
        except MALFORMED as error:
            message = f"request: not a request of Label Studio ({error!r})"
        return JSONResponse({"error": message}, 400)

    return Starlette(
        routes=[
            Route("/", health),
            Route("/health", health),
            Route("/setup", setup, methods=["POST"]),
            Route("/predict", predict, methods=["POST"]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("server", help="address that vosengine serve prints")
    parser.add_argument("--studio", default="http://127.0.0.1:8080", help="address of Label Studio")
    parser.add_argument("--key", default="", help="access token of Label Studio")
    parser.add_argument("--frames", type=int, default=100, help="maximum frames to follow a box")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    args = parser.parse_args()
    backend = Backend(args.server, args.studio, args.key, args.frames)
    uvicorn.run(make_app(backend), host=args.host, port=args.port)


if __name__ == "__main__":
    main()
