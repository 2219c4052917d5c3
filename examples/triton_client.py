"""Segments a video on an NVIDIA Triton Inference Server that serves an exported model.

    vosengine export munet --size 240x432 --server-repository models
    tritonserver --model-repository models

    pip install "tritonclient[grpc]" numpy opencv-python-headless pillow
    python examples/triton_client.py video.mp4 masks --model munet --mask first.png

A mask is a PNG whose pixels are object numbers, 1 to the model's `max_objects`, or 0 and 255 for
one object. `--mask` takes one for the first frame, or a folder of 00000.png, 00012.png...: an
object joins in the frame of the first mask that shows it. Nothing of vosengine is needed here.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

IMAGES = ".jpg", ".jpeg", ".png", ".bmp", ".webp"


@dataclass(frozen=True)
class Model:
    """What the server says of a model: (height, width) of its frames, whether it takes masks, the
    frames that an answer comes late, and the objects there is room for."""

    name: str
    size: tuple[int, int]
    takes_masks: bool
    latency: int
    max_objects: int


def describe(client: Any, name: str) -> Model:
    """Ask the server."""
    shapes = {each.name: each.shape for each in client.get_model_metadata(name).inputs}
    told = client.get_model_config(name).config.parameters
    height, width, _ = shapes["frame"]
    latency, room = (int(told[key].string_value) for key in ("latency", "max_objects"))
    return Model(name, (height, width), "prompt" in shapes, latency, room)


def tensors(frame: np.ndarray, mask: np.ndarray | None, model: Model) -> dict[str, np.ndarray]:
    """A request: frame [H, W, 3] uint8 RGB and mask [H, W] uint8, resized to the model's size."""
    height, width = model.size
    found = {"frame": cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)}
    if model.takes_masks:
        found["prompt"] = np.zeros(model.size, dtype=np.uint8)
        if mask is not None:
            nearest = cv2.INTER_NEAREST_EXACT
            found["prompt"] = cv2.resize(mask, (width, height), interpolation=nearest)
    return found


def segment(
    client: Any,
    grpc: Any,
    model: Model,
    frames: Iterator[np.ndarray],
    mask_of: Callable[[int], np.ndarray | None],
) -> Iterator[np.ndarray]:
    """Labels uint8 of every frame, in order and in its size. A video is one sequence."""
    sequence = random.getrandbits(62) + 1
    sizes: list[tuple[int, int]] = []
    for number, (frame, mask, last) in enumerate(steps(frames, mask_of, model.latency)):
        inputs = []
        for name, array in tensors(frame, mask, model).items():
            inputs.append(grpc.InferInput(name, list(array.shape), "UINT8"))
            inputs[-1].set_data_from_numpy(array)
        answer = client.infer(
            model.name,
            inputs,
            sequence_id=sequence,
            sequence_start=number == 0,
            sequence_end=last,
        )
        sizes.append(frame.shape[:2])
        if number >= model.latency:
            height, width = sizes[number - model.latency]
            nearest = cv2.INTER_NEAREST_EXACT
            yield cv2.resize(answer.as_numpy("labels"), (width, height), interpolation=nearest)


def steps(
    frames: Iterator[np.ndarray], mask_of: Callable[[int], np.ndarray | None], latency: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None, bool]]:
    """(frame, mask, whether it is the last request): every frame, then the last one as often again
    as answers come late."""
    before = None
    for index, frame in enumerate(frames):
        if before is not None:
            yield (*before, False)
        before = frame, mask_of(index)
    if before is not None:
        yield (*before, latency == 0)
        for left in reversed(range(latency)):
            yield before[0], None, left == 0


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Frames [H, W, 3] uint8 RGB of a video, or of a folder of images in order of their names."""
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix.lower() in IMAGES)
        images = (cv2.imread(str(each), cv2.IMREAD_COLOR) for each in files)
        yield from (cv2.cvtColor(each, cv2.COLOR_BGR2RGB) for each in images if each is not None)
        return
    video = cv2.VideoCapture(str(path))
    while True:
        there, image = video.read()
        if not there:
            break
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    video.release()


def read_mask(path: Path, room: int) -> np.ndarray:
    """Object numbers uint8 [H, W]."""
    with Image.open(path) as image:
        mask = np.asarray(image if image.mode in ("P", "L") else image.convert("L"))
    if set(np.unique(mask)) <= {0, 255}:
        mask = mask // 255
    if mask.max() > room:
        sys.exit(f"{path}: shows object {mask.max()}; wanted 1 to {room}, the model's max_objects")
    return mask.astype(np.uint8)


def masks_of(path: Path | None, model: Model) -> Callable[[int], np.ndarray | None]:
    """Frame number -> its mask, where there is one."""

    def find(index: int) -> np.ndarray | None:
        if path is None or (index > 0 and not path.is_dir()):
            return None
        file = path / f"{index:05}.png" if path.is_dir() else path
        if path.is_dir() and not file.is_file():
            return None
        return read_mask(file, model.max_objects)

    return find


def write_mask(labels: np.ndarray, path: Path) -> None:
    """A PNG of object numbers, with a colour for each."""
    colours = np.random.default_rng(1).integers(64, 256, (256, 3), dtype=np.uint8)
    colours[0] = 0
    image = Image.fromarray(labels)
    image.putpalette(colours.tobytes())
    image.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="a video, or a folder of images")
    parser.add_argument("out", type=Path, help="the folder for the masks, a PNG a frame")
    parser.add_argument("--model", required=True, help="its name on the server")
    parser.add_argument("--mask", type=Path, help="the first frame's mask, or a folder of masks")
    parser.add_argument("--url", default="localhost:8001", help="host:port of the server's gRPC")
    wanted = parser.parse_args()
    try:
        import tritonclient.grpc as grpc
    except (ImportError, RuntimeError):  # the latter where it came without [grpc]
        sys.exit('wanted tritonclient: pip install "tritonclient[grpc]"')
    if not wanted.source.exists():
        sys.exit(f"{wanted.source}: does not exist; wanted a video, or a folder of images")
    try:
        with grpc.InferenceServerClient(wanted.url) as client:
            model = describe(client, wanted.model)
            if model.takes_masks and wanted.mask is None:
                sys.exit(f"--mask: {model.name} wants one that shows what to follow")
            wanted.out.mkdir(parents=True, exist_ok=True)
            frames, mask_of = read_frames(wanted.source), masks_of(wanted.mask, model)
            for number, labels in enumerate(segment(client, grpc, model, frames, mask_of)):
                write_mask(labels, wanted.out / f"{number:05}.png")
    except grpc.InferenceServerException as error:
        sys.exit(f"{wanted.url}: {error}")


if __name__ == "__main__":
    main()
