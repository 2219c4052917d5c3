"""Write procedural clips as a data set in DAVIS layout, for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from ..errors import ConfigError, OutputError
from ..training.streams import check_seed, clip_seed
from ..training.synthetic.clips import Clip
from ..training.synthetic.levels import LEVELS, check_levels, make_level_clip
from ..types import Size
from ..video import prepare_output_folder, write_labels

JPEG_QUALITY = 95


def write_davis(
    folder: Path,
    clips: int,
    frames: int,
    size: Size,
    seed: int = 0,
    level: int | None = None,
    *,
    labelled: bool = False,
    on_clip: Callable[[int, int], None] | None = None,
) -> None:
    """Draw clips into JPEGImages/<clip>/<frame>.jpg, and their object ids into
    Annotations/<clip>/<frame>.png.

    clips, frames, size  number of clips, frames per clip, and (height, width) of the frames
    level     difficulty, 0 (easiest) to 3; None: clip i has level i modulo the number of levels,
              and the clips equal those of a cache with the same seed
    labelled  see `make_level_clip`
    on_clip   called after each clip with the number of finished clips and the total

    Raises  ConfigError for a bad number; OutputError if the folder is not empty or cannot be
            written.
    """
    if clips < 1:
        raise ConfigError(f"clips: wanted at least 1, given {clips}")
    if level is not None and not 0 <= level < len(LEVELS):
        raise ConfigError(f"level: wanted 0..{len(LEVELS) - 1}, given {level}")
    check_levels(frames, size)
    check_seed(seed)
    prepare_output_folder(folder)
    if any(folder.iterdir()):
        raise OutputError(f"{folder}: is not empty; name a new folder or empty this one")
    for number in range(clips):
        clip_level = number % len(LEVELS) if level is None else level
        clip = make_level_clip(clip_level, clip_seed(seed, number), frames, size, labelled)
        _write(folder, f"level{clip_level}-{number:04d}", clip)
        if on_clip is not None:
            on_clip(number + 1, clips)


def _write(folder: Path, name: str, clip: Clip) -> None:
    images, masks = folder / "JPEGImages" / name, folder / "Annotations" / name
    try:
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for index, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
            bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
            done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            assert done  # cannot fail for uint8 images
            (images / f"{index:05d}.jpg").write_bytes(np.asarray(data).tobytes())
            write_labels(masks / f"{index:05d}.png", mask)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error
