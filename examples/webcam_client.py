"""Follows what a mask shows before a camera, on a `vosengine serve`: prints what it sees.

python examples/webcam_client.py http://127.0.0.1:8000/#token=... 0 --mask first.png

A frame that comes while the server is busy takes the place of the one that waits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from vosengine.client import Client
from vosengine.video import open_source, read_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("server", help="as it prints it, with #token=...")
    parser.add_argument("camera", help="its number, or an address")
    parser.add_argument("--mask", type=Path, required=True, help="the first frame's mask")
    given = parser.parse_args()
    with Client(given.server, policy="latest") as client:
        pairs = (
            (frame.image, read_mask(given.mask) if frame.index == 0 else None)
            for frame in open_source(given.camera)
        )
        for answer in client.stream(pairs):
            shown = np.bincount(answer.labels.ravel(), minlength=256)
            sizes = {number: int(shown[number]) for number in answer.ids}
            print(f"frame {answer.frame}: {answer.step_ms:.0f} ms, pixels by object {sizes}")


if __name__ == "__main__":
    main()
