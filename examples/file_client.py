"""Segment a video with `vosengine serve`; write a PNG of object ids for every frame.

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
    parser.add_argument("server", help="address that the server prints, with #token=...")
    parser.add_argument("source", help="video, folder of images, or glob")
    parser.add_argument("out", type=Path, help="folder for the masks")
    parser.add_argument("--mask", type=Path, help="mask of the first frame")
    args = parser.parse_args()

    def frames() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for frame in open_source(args.source):
            first = frame.index == 0 and args.mask is not None
            yield frame.image, read_mask(args.mask) if first else None

    args.out.mkdir(parents=True, exist_ok=True)
    with Client(args.server, policy="all") as client:
        for answer in client.stream(frames()):
            write_labels(args.out / f"{answer.frame:05d}.png", answer.labels)


if __name__ == "__main__":
    main()
