"""Command lines built from rows of options, and small input files for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_config
from pairs import Row
from PIL import Image
from quick_streams import QUICK
from typer.testing import CliRunner

from vosengine.cli.app import app
from vosengine.detectors.file import write_proposals
from vosengine.errors import VosError
from vosengine.proposals import Proposals, boxes_of
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.video import write_labels
from vosengine.zoo.registry import build, list_models
from vosengine.zoo.weights import save, state_of

LENGTH = 4
SIZE = 48, 64


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def options_of(row: Row) -> list[str]:
    """Return a row as command-line words; None and False are omitted, True is a bare flag."""
    arguments = []
    for name, value in row.items():
        if value is not None and value is not False:
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return arguments


def command_line_of(row: Row) -> str:
    return " ".join(options_of(row))


def refused(*arguments: object) -> VosError:
    ran = call(*arguments)
    assert isinstance(ran.exception, VosError), (arguments, ran.output, ran.exception)
    return ran.exception


def write_files(root: Path) -> Path:
    """Write tiny weights of every model, a clip in DAVIS layout, masks, and proposals."""
    for model in list_models():
        config = tiny_config(model, **QUICK.get(model, {}))
        tensors = state_of(build(model, config, seed=3))
        save(root / f"{model}.safetensors", model, config, tensors, trained=True,
             description="tiny", licence="MIT")  # fmt: skip
    clip = make_clip(
        ClipConfig(frames=LENGTH, height=SIZE[0], width=SIZE[1], objects=(2, 2)), seed=1
    )
    for folder in ("JPEGImages/480p/a", "Annotations/480p/a", "masks"):
        (root / folder).mkdir(parents=True)
    proposals = []
    for index, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
        Image.fromarray(frame).save(root / f"JPEGImages/480p/a/{index:05}.jpg", quality=95)
        write_labels(root / f"Annotations/480p/a/{index:05}.png", mask)
        planes = torch.from_numpy(np.stack([mask == i for i in (1, 2)]))
        proposals.append(Proposals(boxes_of(planes), planes, torch.tensor([0.9, 0.8])))
    for index in (0, 2):
        write_labels(root / f"masks/{index:05}.png", clip.masks[index])
    write_labels(root / "first.png", clip.masks[0])
    write_proposals(root / "seen.json", proposals)
    return root
