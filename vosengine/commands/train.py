"""`vosengine train`: train a model from its configuration, data and recipe, in its own folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..device import choose_device
from ..errors import ConfigError
from ..files import Given, write_whole
from ..models.method import Method
from ..training.export import export
from ..training.feed import Feed, loader
from ..training.initialise import initialise_from, start_gently
from ..training.mixture import DataOptions, folders_of, parse_data
from ..training.objectives import for_clips, objective_class, objective_for
from ..training.recipe import Recipe, recipe_for
from ..training.run_folder import check_run_folder
from ..training.samples import Batch, collate
from ..training.synthetic_source import SyntheticSource
from ..training.trainer import CHECKPOINT, LOG, Progress, Trainer
from ..video import prepare_output_folder
from ..zoo.registry import build, config_to_json, entry
from ..zoo.weights import backbone_file

WEIGHTS = "weights.safetensors"
RUN = "run.json"
HELD_OUT = 8, 5  # clips, and their frames, of a seed that no training has
HELD_OUT_SEED = 2**31 + 1
CLIP_MARGIN = 1.4  # sides of a drawn clip over those of the crop that is trained on


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train`.

    config       "lite", on top of a pretrained backbone, "small" or "paper"
    data         sources with weights, as `parse_data` reads them
    changes      fields of the recipe that differ from the model's own
    init         weights to start from: of this or another model, or a backbone's; without, "lite"
                 starts from the backbone that ships
    resume       go on from the checkpoint in `out`
    workers      processes that prepare clips; 0: this one
    minutes      stop after so many, with a checkpoint, to be resumed; None: to the recipe's end
    save_every   seconds between checkpoints
    score_every  steps between scores on held-out clips; 0: none
    """

    model: str
    out: Path
    config: str = "small"
    data: str = "synthetic"
    changes: dict[str, Any] = field(default_factory=dict)
    init: Path | None = None
    resume: bool = False
    device: str = "auto"
    workers: int = 0
    minutes: float | None = None
    save_every: float = 180.0
    score_every: int = 500


@dataclass(frozen=True)
class TrainResult:
    """What a call of `train` came to: `weights` are the averaged ones after `steps`, whether the
    recipe has been carried out to its end or not."""

    steps: int
    seconds: float
    finished: bool
    weights: Path


def train(
    options: TrainOptions,
    report: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train a model, or go on with it; everything is in `options.out`.

    Raises  ConfigError, InputError, WeightsError, StateError before a step is taken; OutputError
            and TrainingError after, with the last checkpoint whole.
    """
    trainer, recipe = _trainer(options)
    source = parse_data(options.data, _clips(options.model, recipe))
    feed = Feed(source, recipe.size, recipe.frames, recipe.seed, recipe.steps, recipe.batch)
    if options.resume:
        trainer.resume()
    minutes = math.inf if options.minutes is None else options.minutes
    deadline = time.monotonic() + 60 * minutes
    finished = trainer.run(
        loader(feed, trainer.step, options.workers),
        report=report,
        should_stop=lambda: should_stop() or time.monotonic() > deadline,
        save_every=options.save_every,
        held_out=held_out(options.model, recipe) if options.score_every else (),
        score_every=options.score_every,
    )
    weights = options.out / WEIGHTS
    export(trainer.path, weights, f"trained for {trainer.step} steps on {options.data}")
    return TrainResult(trainer.step, trainer.seconds, finished, weights)


def _clips(model: str, recipe: Recipe) -> DataOptions:
    """What clips are drawn as: larger and longer than they are used, so that there is a choice;
    but not those that are drawn as through a camera."""
    height, width = (round(CLIP_MARGIN * side / 16) * 16 for side in recipe.size)
    labelled = not entry(model).build.needs_mask
    return DataOptions(
        (height, width), recipe.frames + 2, recipe.seed, labelled=labelled,
        view=recipe.size, length=recipe.frames,
    )  # fmt: skip


def _check(options: TrainOptions) -> None:
    """What neither the recipe nor the data looks at. Raises ConfigError."""
    if "parts" in options.changes and not objective_class(options.model).all_parts:
        raise ConfigError(f"parts: {options.model} is trained as a whole; leave them out")
    frames = options.changes.get("frames", 2)
    if frames < 2:
        raise ConfigError(f"frames: wanted 2 or more, given {frames}: a clip has a past")
    if options.minutes is not None and not options.minutes > 0:  # no number is not above 0
        raise ConfigError(f"minutes: wanted a number above 0, given {options.minutes}")
    if not options.save_every >= 0:
        raise ConfigError(f"save_every: wanted 0 or more seconds, given {options.save_every}")


def _trainer(options: TrainOptions) -> tuple[Trainer, Recipe]:
    """The model as it starts, in a folder that holds no other run."""
    config = entry(options.model).configuration(options.config)
    _check(options)
    init = options.init
    if options.config == "lite" and init is None:
        init = backbone_file(config.backbone)
    recipe = replace(recipe_for(options.model, options.config), **options.changes)
    device = choose_device(options.device)
    given = [*Given.named("the weights to start from", init)]
    for place in folders_of(options.data):
        given += Given.named("the data", place, tree=True)
    check_run_folder(options.out, (CHECKPOINT, LOG, RUN, WEIGHTS), given, options.resume)
    folder = prepare_output_folder(options.out)
    method = starting_network(options.model, config, recipe, init)
    identity = {
        "model": options.model,
        "config": config_to_json(config),
        "data": options.data,
        "init": None if init is None else init.name,
    }
    objective = objective_for(options.model, method, recipe)
    write_whole(folder / RUN, json.dumps(identity, indent=2) + "\n")
    return Trainer(objective, recipe, folder, identity, device), recipe


def starting_network(
    model: str, config: ModelConfig, recipe: Recipe, init: Path | None
) -> Method[Any, Any]:
    """The network with which a run starts: as for short clips, with the recipe's seed, and with
    what fits of the weights `init`. Raises WeightsError."""
    method = build(model, for_clips(config), recipe.seed)
    start_gently(method)
    if init is not None:
        initialise_from(method, init)
    return method


def held_out(model: str, recipe: Recipe) -> list[Batch]:
    """Clips that no training has seen, at its size."""
    clips, frames = HELD_OUT
    labelled = not entry(model).build.needs_mask
    source = SyntheticSource(frames, recipe.size, HELD_OUT_SEED, labelled)
    samples = [source.sample(number, 1.0) for number in range(clips)]
    return [collate([sample]) for sample in samples]
