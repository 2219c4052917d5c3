"""Draw the README's picture: masks of `giel.demo` in a clip drawn by this project.

python bench/picture.py    writes docs/pictures/masks.webp
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vosengine import Segmenter, segment_video
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.video import overlay

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "masks.webp"
MODEL, SEED, FRAMES, SIZE = "giel", 14, 49, (480, 854)
SHOWN = (0, 24, 48)  # frames of the strip, from left to right
TILE = (270, 480)  # (height, width) of a frame in it
IDS = np.array([0, 11, 5], np.uint8)  # of the objects: colours of the palette that the clip lacks
GAP = 4  # pixels between frames, transparent
MOST_BYTES = 60_000


def strip(seed: int = SEED) -> tuple[Image.Image, float]:
    """Two rows of frames, without and with predicted masks; and the mean IoU (0..1) of the masks
    with the true ones, over all frames but the first and all objects."""
    config = replace(ClipConfig.demo(), frames=FRAMES, height=SIZE[0], width=SIZE[1])
    clip = make_clip(config, seed)
    masks = IDS[clip.masks]
    segmenter = Segmenter(MODEL, device="cpu", precision="fp32")
    height, width = TILE
    whole = np.zeros((2 * height + GAP, len(SHOWN) * (width + GAP) - GAP, 4), np.uint8)
    overlaps = []
    for index, answer in enumerate(segment_video(segmenter, clip.frames, {0: masks[0]})):
        labels, truth = answer.result.labels.numpy(), masks[index]
        overlaps += [_iou(labels == i, truth == i) for i in np.unique(truth) if i and index]
        if index in SHOWN:
            left = SHOWN.index(index) * (width + GAP)
            _place(whole, 0, left, clip.frames[index])
            _place(whole, height + GAP, left, overlay(answer.frame, labels))
    return Image.fromarray(whole), float(np.mean(overlaps))


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


def _place(whole: np.ndarray, top: int, left: int, frame: np.ndarray) -> None:
    height, width = TILE
    tile = whole[top : top + height, left : left + width]
    tile[..., :3] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    tile[..., 3] = 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    picture, overlap = strip(options.seed)
    picture.save(options.out, quality=78, method=6)
    size = options.out.stat().st_size
    print(f"{options.out}: {size} bytes, mean IoU {overlap:.3f}")
    if size > MOST_BYTES:
        raise SystemExit(f"wanted at most {MOST_BYTES} bytes; show fewer frames or lower quality")


if __name__ == "__main__":
    main()
