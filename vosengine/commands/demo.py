"""`vosengine demo`: segment a procedurally drawn clip, or one of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from ..files import Ledger
from ..training.synthetic import ClipConfig, iterate_clip
from ..video import (
    VideoWriter,
    prepare_output_folder,
    read_labels,
    write_labels,
)
from ..zoo.registry import entry
from .run import RunOptions

CLIP = "clip.mp4"
FIRST_MASK = "first_mask.png"
FPS = 24.0


@dataclass(frozen=True)
class Demo:
    """A clip to be drawn: its size, length and random seed; and the model that segments it."""

    folder: Path
    model: str
    frames: int
    height: int
    width: int
    seed: int

    @property
    def config(self) -> ClipConfig:
        return replace(ClipConfig.demo(), frames=self.frames, height=self.height, width=self.width)

    @property
    def prompted(self) -> bool:
        """Whether the model is given the first mask; otherwise it finds the objects itself."""
        return entry(self.model).build.needs_mask


def make_demo_clip(demo: Demo) -> RunOptions:
    """Draw the clip into FOLDER/input; return the options that segment it into FOLDER.

    Only the first mask is written, as the prompt; a model that needs no mask is not folder it.
    """
    folder = prepare_output_folder(demo.folder / "input")
    ledger = Ledger(folder / "drawn.json")
    ledger.check((CLIP, FIRST_MASK))
    with VideoWriter(folder / CLIP, FPS) as video:
        for index, (frame, mask) in enumerate(iterate_clip(demo.config, demo.seed)):
            video.write(frame)
            if index == 0:
                write_labels(folder / FIRST_MASK, mask)
    ledger.add((CLIP, FIRST_MASK))
    prompt = folder / FIRST_MASK if demo.prompted else None
    return RunOptions(source=str(folder / CLIP), model=demo.model, out=demo.folder, mask=prompt)


def own_clip(
    out: Path, model: str, clip: str, mask: Path | None, drawn: Sequence[str]
) -> RunOptions:
    """The options that segment the user's own clip into `out`.

    drawn  names of the given options that apply to drawn clips only

    Raises  ConfigError if there are such options, or if the model needs a mask and has none.
    """
    if drawn:
        raise ConfigError(f"{drawn[0]}: is for drawn clips and cannot be used with --clip; omit it")
    if mask is None and entry(model).build.needs_mask:
        raise ConfigError(f"mask: {model} needs a mask of the first frame; give one with --mask")
    return RunOptions(source=clip, model=model, out=out, mask=mask)


def score_demo(demo: Demo) -> float:
    """Mean J, 0..1, of the masks in FOLDER against the true masks of the clip.

    The mean is over the objects and all frames but the first; without a prompt all objects are
    scored as one foreground.
    """
    files = sorted(demo.folder.glob("*.png"))
    scores = []
    for index, (_, truth) in enumerate(iterate_clip(demo.config, demo.seed)):
        if index == 0:
            ids = [int(i) for i in np.unique(truth) if i]
            continue
        answer = read_labels(files[index])
        if not demo.prompted:
            answer, truth, ids = (answer > 0).astype(np.uint8), (truth > 0).astype(np.uint8), [1]
        for i in ids:
            predicted, target = answer == i, truth == i
            union = np.count_nonzero(predicted | target)
            scores.append(np.count_nonzero(predicted & target) / union if union else 1.0)
    return float(np.mean(scores))
