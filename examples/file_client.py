"""Segments a video on a `vosengine serve`: a PNG of object ids for every frame.

python examples/file_client.py http://127.0.0.1:8000/#token=... clip.mp4 masks --mask first.png
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vosengine.client import Client
from vosengine.video import open_source, read_mask, write_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("server", help="as it prints it, with #token=...")
    parser.add_argument("source", help="a video, a folder of images, a glob")
    parser.add_argument("out", type=Path, help="the folder for the masks")
    parser.add_argument("--mask", type=Path, help="the first frame's mask")
    given = parser.parse_args()

    def frames() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for frame in open_source(given.source):
            first = frame.index == 0 and given.mask is not None
            yield frame.image, read_mask(given.mask) if first else None

    given.out.mkdir(parents=True, exist_ok=True)
    with Client(given.server, policy="all") as client:
        for answer in client.stream(frames()):
            write_labels(given.out / f"{answer.frame:05d}.png", answer.labels)


if __name__ == "__main__":
    main()
