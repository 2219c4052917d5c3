"""Segment a video on an NVIDIA Triton Inference Server that serves an exported model.

    vosengine export munet --size 240x432 --server-repository models
    tritonserver --model-repository models

    pip install "tritonclient[grpc]" numpy opencv-python-headless pillow
    python examples/triton_client.py video.mp4 masks --model munet --mask first.png

A mask is a PNG of object ids, 1 to the model's `max_objects`, or of 0 and 255 for one object.
`--mask` is a mask of the first frame, or a folder of 00000.png, 00012.png...: an object is added in
the first frame whose mask shows it. vosengine need not be installed here.
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
    """A model on the server: (height, width) of its frames, whether it takes masks, its latency in
    frames, and its maximum number of objects."""

    name: str
    size: tuple[int, int]
    takes_masks: bool
    latency: int
    max_objects: int


def describe(client: Any, name: str) -> Model:
    """Ask the server for a model's properties."""
    shapes = {i.name: i.shape for i in client.get_model_metadata(name).inputs}
    parameters = client.get_model_config(name).config.parameters
    height, width, _ = shapes["frame"]
    latency, max_objects = (int(parameters[key].string_value) for key in ("latency", "max_objects"))
    return Model(name, (height, width), "prompt" in shapes, latency, max_objects)


def tensors(frame: np.ndarray, mask: np.ndarray | None, model: Model) -> dict[str, np.ndarray]:
    """A request: frame [H, W, 3] uint8 RGB and mask [H, W] uint8, resized to the model's size."""
    height, width = model.size
    inputs = {"frame": cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)}
    if model.takes_masks:
        inputs["prompt"] = np.zeros(model.size, dtype=np.uint8)
        if mask is not None:
            nearest = cv2.INTER_NEAREST_EXACT
            inputs["prompt"] = cv2.resize(mask, (width, height), interpolation=nearest)
    return inputs


def segment(
    client: Any,
    grpc: Any,
    model: Model,
    frames: Iterator[np.ndarray],
    mask_of: Callable[[int], np.ndarray | None],
) -> Iterator[np.ndarray]:
    """Labels uint8 [H, W] of every frame, in order. A video is one sequence of the server."""
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
    """Requests as (frame, mask, is_last): every frame, then the last one again `latency` times."""
    previous = None
    for index, frame in enumerate(frames):
        if previous is not None:
            yield (*previous, False)
        previous = frame, mask_of(index)
    if previous is not None:
        yield (*previous, latency == 0)
        for left in reversed(range(latency)):
            yield previous[0], None, left == 0


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Frames [H, W, 3] uint8 RGB of a video, or of a folder of images in order of their names."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
        images = (cv2.imread(str(file), cv2.IMREAD_COLOR) for file in files)
        yield from (cv2.cvtColor(i, cv2.COLOR_BGR2RGB) for i in images if i is not None)
        return
    video = cv2.VideoCapture(str(path))
    while True:
        ok, image = video.read()
        if not ok:
            break
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    video.release()


def read_mask(path: Path, max_objects: int) -> np.ndarray:
    """Object ids, uint8 [H, W]."""
    with Image.open(path) as image:
        mask = np.asarray(image if image.mode in ("P", "L") else image.convert("L"))
    if set(np.unique(mask)) <= {0, 255}:
        mask = mask // 255
    if mask.max() > max_objects:
        sys.exit(
            f"{path}: shows object {mask.max()}; wanted 1 to {max_objects}, the model's max_objects"
        )
    return mask.astype(np.uint8)


def masks_of(path: Path | None, model: Model) -> Callable[[int], np.ndarray | None]:
    """A function that returns the mask of a frame index, or None."""

    def find(index: int) -> np.ndarray | None:
        if path is None or (index > 0 and not path.is_dir()):
            return None
        file = path / f"{index:05}.png" if path.is_dir() else path
        if path.is_dir() and not file.is_file():
            return None
        return read_mask(file, model.max_objects)

    return find


def write_mask(labels: np.ndarray, path: Path) -> None:
    """Write object ids as an indexed PNG with random colours."""
    colours = np.random.default_rng(1).integers(64, 256, (256, 3), dtype=np.uint8)
    colours[0] = 0
    image = Image.fromarray(labels)
    image.putpalette(colours.tobytes())
    image.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="video or folder of images")
    parser.add_argument("out", type=Path, help="folder for the masks, one PNG per frame")
    parser.add_argument("--model", required=True, help="name of the model on the server")
    parser.add_argument("--mask", type=Path, help="mask of the first frame, or folder of masks")
    parser.add_argument("--url", default="localhost:8001", help="HOST:PORT of the server (gRPC)")
    args = parser.parse_args()
    try:
        import tritonclient.grpc as grpc
    except (ImportError, RuntimeError):  # RuntimeError: installed without [grpc]
        sys.exit('tritonclient is missing: pip install "tritonclient[grpc]"')
    if not args.source.exists():
        sys.exit(f"{args.source}: does not exist; wanted a video, or a folder of images")
    try:
        with grpc.InferenceServerClient(args.url) as client:
            model = describe(client, args.model)
            if model.takes_masks and args.mask is None:
                sys.exit(f"--mask: {model.name} needs a mask of the objects to follow")
            args.out.mkdir(parents=True, exist_ok=True)
            frames, mask_of = read_frames(args.source), masks_of(args.mask, model)
            for number, labels in enumerate(segment(client, grpc, model, frames, mask_of)):
                write_mask(labels, args.out / f"{number:05}.png")
    except grpc.InferenceServerException as error:
        sys.exit(f"{args.url}: {error}")


if __name__ == "__main__":
    main()
