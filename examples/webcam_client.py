"""Follow objects before a camera with `vosengine serve`; print the size of each.

python examples/webcam_client.py http://127.0.0.1:8000/#token=... 0 --mask first.png

While the server is busy only the newest frame waits; older waiting frames are dropped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from vosengine.client import Client
from vosengine.video import open_source, read_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("server", help="address that the server prints, with #token=...")
    parser.add_argument("camera", help="camera number or address")
    parser.add_argument("--mask", type=Path, required=True, help="mask of the first frame")
    args = parser.parse_args()
    with Client(args.server, policy="latest") as client:
        pairs = (
            (frame.image, read_mask(args.mask) if frame.index == 0 else None)
            for frame in open_source(args.camera)
        )
        for answer in client.stream(pairs):
            shown = np.bincount(answer.labels.ravel(), minlength=256)
            sizes = {number: int(shown[number]) for number in answer.ids}
            print(f"frame {answer.frame}: {answer.step_ms:.0f} ms, pixels by object {sizes}")


if __name__ == "__main__":
    main()
