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
    """A clip to be drawn: `seed` says which, the rest how."""

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
        """Whether the model is shown the first mask; otherwise it finds the objects itself."""
        return entry(self.model).build.needs_mask


def make_demo_clip(demo: Demo) -> RunOptions:
    """Draw the clip into FOLDER/input and say how to segment it into FOLDER.

    Only the first mask is written: it is the prompt, and the rest is for the model to find. A model
    that needs none is not shown it.
    """
    given = prepare_output_folder(demo.folder / "input")
    ledger = Ledger(given / "drawn.json")
    ledger.check((CLIP, FIRST_MASK))
    with VideoWriter(given / CLIP, FPS) as video:
        for index, (frame, mask) in enumerate(iterate_clip(demo.config, demo.seed)):
            video.write(frame)
            if index == 0:
                write_labels(given / FIRST_MASK, mask)
    ledger.add((CLIP, FIRST_MASK))
    prompt = given / FIRST_MASK if demo.prompted else None
    return RunOptions(source=str(given / CLIP), model=demo.model, out=demo.folder, mask=prompt)


def own_clip(
    out: Path, model: str, clip: str, mask: Path | None, drawn: Sequence[str]
) -> RunOptions:
    """How to segment a clip of the user's into `out`.

    drawn  names of options that were given and say how a clip is drawn

    Raises  ConfigError for any of those, and where the model needs a mask and there is none.
    """
    if drawn:
        raise ConfigError(f"{drawn[0]}: is of a drawn clip, and --clip names one; leave it out")
    if mask is None and entry(model).build.needs_mask:
        raise ConfigError(f"mask: {model} follows what a mask shows; name one with --mask")
    return RunOptions(source=clip, model=model, out=out, mask=mask)


def score_demo(demo: Demo) -> float:
    """Mean J, 0..1, of the masks in FOLDER against those that the clip was drawn with.

    Over all frames but the first and over the objects; where the model was not told which they are,
    all of them are one foreground.
    """
    files = sorted(demo.folder.glob("*.png"))
    found = []
    for index, (_, truth) in enumerate(iterate_clip(demo.config, demo.seed)):
        if index == 0:
            ids = [int(each) for each in np.unique(truth) if each]
            continue
        answer = read_labels(files[index])
        if not demo.prompted:
            answer, truth, ids = (answer > 0).astype(np.uint8), (truth > 0).astype(np.uint8), [1]
        for each in ids:
            own, target = answer == each, truth == each
            joined = np.count_nonzero(own | target)
            found.append(np.count_nonzero(own & target) / joined if joined else 1.0)
    return float(np.mean(found))
