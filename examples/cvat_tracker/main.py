"""Tracker for CVAT: a nuclio function on top of `vosengine serve`.

CVAT sends a frame and, for each object, its shape and state: for a new object the state is null,
for others it is what this function returned for the frame before. New objects of one request become
one stream of the server, which their states name. The server keeps it until the next frame, for at
most its --close-after. A box is first turned into a mask by the server's prompts.

Shapes are {"type", "points"} (rectangle, polygon, mask); a CVAT before June 2025 sends bare boxes.
An object that is not visible keeps the shape that CVAT sent: null, or the box of an older CVAT.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise, zip_longest
from typing import Any
from urllib.parse import urlsplit

import cv2
import httpx
import numpy as np
from PIL import Image

from vosengine.client import Answer, Client
from vosengine.errors import InputError, ServerError, VosError

Shape = Any  # {"type": str, "points": [numbers]}, or [left, top, right, bottom]
MALFORMED = (
    KeyError, TypeError, ValueError, IndexError, OSError, binascii.Error,
    Image.DecompressionBombError,
)  # fmt: skip


def init_context(context: Any) -> None:
    context.user_data.server = os.environ["VOSENGINE_SERVER"]


def handler(context: Any, event: Any) -> Any:
    try:
        body = event.body if isinstance(event.body, Mapping) else json.loads(event.body)
        answer, status = track(context.user_data.server, body), 200
    except VosError as error:
        answer, status = {"message": str(error)}, 400
    except MALFORMED as error:
        answer, status = {"message": f"request: not a tracker request of CVAT ({error!r})"}, 400
    if status != 200:
        context.logger.error(answer["message"])
    return context.Response(
        body=json.dumps(answer), headers={}, content_type="application/json", status_code=status
    )


def track(server: str, body: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Answer a request: shapes and states in its order."""
    data = base64.b64decode(body["image"], validate=True)
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    answers = list(zip_longest(body.get("shapes") or [], body.get("states") or []))
    new = []
    streams: dict[tuple[str, int], list[int]] = defaultdict(list)  # indices into answers
    for place, (_, state) in enumerate(answers):
        if state is None:
            new.append(place)
        else:
            streams[state["session"], state["frame"]].append(place)
    if new:
        shapes = [answers[place][0] for place in new]
        started = begin(server, data, image, shapes)
        for place, shape, state in zip(new, shapes, started, strict=True):
            answers[place] = shape, state
    for (session, frame), places in streams.items():
        labels = next_labels(server, image, session, frame)
        for place in places:
            shape, state = answers[place]
            seen = shape_of(labels == state["object"], state["type"])
            answers[place] = shape if seen is None else seen, {**state, "frame": frame + 1}
    return {"shapes": [shape for shape, _ in answers], "states": [state for _, state in answers]}


def begin(server: str, data: bytes, image: np.ndarray, shapes: list[Shape]) -> list[dict[str, Any]]:
    """Start a stream of these objects; return their states."""
    mask = np.zeros(image.shape[:2], np.uint8)
    for number, shape in enumerate(shapes, 1):
        mask[region_of(server, data, shape, image.shape[:2])] = number
    for number in range(1, 1 + len(shapes)):
        if not (mask == number).any():
            raise InputError(f"shapes: nothing is left of the {number}th new one in the frame")
    with Client(server, policy="all", keep=True, max_objects=len(shapes)) as client:
        labels_of(client.step(image, mask))
        session = client.session["id"]
    kinds = [shape["type"] if isinstance(shape, Mapping) else None for shape in shapes]
    return [
        {"session": session, "frame": 1, "object": number, "type": kind}
        for number, kind in enumerate(kinds, 1)
    ]


def next_labels(server: str, image: np.ndarray, session: str, frame: int) -> np.ndarray:
    """Labels of a stream's next frame, uint8 [H, W]."""
    with Client(server, resume_from=session, keep=True) as client:
        if client.next_frame != frame:
            raise ServerError("went_on", "states: are of an earlier frame; begin the tracks again")
        return labels_of(client.step(image))


def labels_of(answer: Answer | None) -> np.ndarray:
    if answer is None:
        raise InputError("server: its model has a latency; wanted one without, such as munet")
    return answer.labels


def region_of(server: str, data: bytes, shape: Shape, size: tuple[int, int]) -> np.ndarray:
    """Pixels of a shape, bool [H, W]; (height, width) is `size`."""
    bare = isinstance(shape, list)
    kind, points = ("rectangle", shape) if bare else (shape["type"], shape["points"])
    region = np.zeros(size, np.uint8)
    if kind == "rectangle":
        left, top = (max(0, round(side)) for side in points[:2])
        right, bottom = min(round(points[2]), size[1]), min(round(points[3]), size[0])
        return prompted(server, data, (left, top, right - left, bottom - top))
    if kind == "polygon":
        corners = np.rint(np.reshape(points, (-1, 2))).astype(np.int32)
        return cv2.fillPoly(region, [corners], (1,)).astype(bool)
    if kind == "mask":
        left, top, right, bottom = (round(value) for value in points[-4:])
        runs = np.asarray(points[:-4], int)
        pixels = np.repeat(np.arange(len(runs)) % 2, runs)
        region[top : bottom + 1, left : right + 1] = pixels.reshape(bottom + 1 - top, -1)
        return region.astype(bool)
    raise InputError(f"shapes: wanted rectangle, polygon or mask, given {kind}")


def prompted(server: str, data: bytes, box: tuple[int, ...]) -> np.ndarray:
    """Ask the server for the mask, bool [H, W], of a box (left, top, width, height)."""
    split = urlsplit(server)
    answer = httpx.post(
        f"{split.scheme}://{split.netloc}/v1/prompt",
        params={"box": ",".join(map(str, box))},
        content=data,
        headers={"Authorization": f"Bearer {split.fragment.removeprefix('token=')}"},
        timeout=30,
        trust_env=False,
    )
    if answer.is_error:
        error = answer.json()["error"]
        raise ServerError(error["code"], error["message"])
    return np.asarray(Image.open(io.BytesIO(answer.content))) > 0


def shape_of(region: np.ndarray, kind: str | None) -> Shape | None:
    """Convert pixels, bool [H, W], to a shape of a kind (None: a bare box); None if empty."""
    rows, columns = np.nonzero(region)
    if not len(rows):
        return None
    box = [columns.min(), rows.min(), columns.max(), rows.max()]
    left, top, right, bottom = (int(side) for side in box)
    if kind in (None, "rectangle"):
        points = [left, top, right + 1, bottom + 1]
        return points if kind is None else {"type": kind, "points": points}
    if kind == "polygon":  # outline of the largest part, without holes
        contours, _ = cv2.findContours(
            region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        corners = max(contours, key=cv2.contourArea).ravel().tolist()
        # A line of pixels has fewer than the three corners that CVAT needs.
        points = corners if len(corners) >= 6 else [left, top, right, top, right, bottom]
        return {"type": kind, "points": points}
    # Run lengths of the box's pixels row by row, beginning with background; then the box.
    pixels = np.concatenate(([False], region[top : bottom + 1, left : right + 1].ravel()))
    ends = [*np.flatnonzero(pixels[1:] != pixels[:-1]).tolist(), len(pixels) - 1]
    runs = [ends[0], *(end - start for start, end in pairwise(ends))]
    return {"type": kind, "points": [*runs, left, top, right, bottom]}
