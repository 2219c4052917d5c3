"""`vosengine demo`: a clip that the project draws itself, segmented like any other video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..registry import entry
from ..training.synthetic import ClipConfig, iterate_clip
from ..video import VideoWriter, prepare_output_folder, write_labels
from .run import RunOptions

CLIP = "clip.mp4"
FIRST_MASK = "first_mask.png"
FPS = 24.0


def make_demo_clip(
    folder: Path, *, model: str, frames: int, height: int, width: int, seed: int
) -> RunOptions:
    """Draw a clip into FOLDER/input and say how to segment it into FOLDER.

    Only the first mask is written: it is the prompt, and the rest is for the model to find. A model
    that needs none is not shown it.
    """
    needs_mask = entry(model).build.needs_mask
    given = prepare_output_folder(folder / "input")
    config = replace(ClipConfig.demo(), frames=frames, height=height, width=width)
    with VideoWriter(given / CLIP, FPS) as video:
        for index, (frame, mask) in enumerate(iterate_clip(config, seed)):
            video.write(frame)
            if index == 0:
                write_labels(given / FIRST_MASK, mask)
    prompt = given / FIRST_MASK if needs_mask else None
    return RunOptions(source=str(given / CLIP), model=model, out=folder, mask=prompt)
