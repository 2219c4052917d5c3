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
HELD_OUT = 8, 5  # number of held-out clips, and frames of each
HELD_OUT_SEED = 2**31 + 1  # outside the seeds of training
CLIP_MARGIN = 1.4  # sides of a drawn clip divided by those of the training crop


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train`.

    config       "lite" (with a pretrained backbone), "small" or "paper"
    data         weighted data sources, see `parse_data`
    changes      fields of the recipe that override the model's
    init         initial weights: of this or another model, or of a backbone; None: random, or for
                 "lite" the shipped backbone
    resume       continue from the checkpoint in `out`
    workers      number of processes that prepare clips; 0: this process
    minutes      stop after this many minutes with a checkpoint; None: at the end of the recipe
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
    """Result of a call of `train`.

    steps     steps done in all
    seconds   training time in all
    finished  whether the recipe is complete
    weights   file of the averaged weights after `steps`
    """

    steps: int
    seconds: float
    finished: bool
    weights: Path


def train(
    options: TrainOptions,
    report: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train a model, or continue its training; all files are in `options.out`.

    Raises  ConfigError, InputError, WeightsError, StateError before the first step; OutputError and
            TrainingError later, with the last checkpoint intact.
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
    """Options of clips: larger and longer than the recipe's, so that they can be cropped at random.
    Clips that are never cropped (`view`) have the recipe's size."""
    height, width = (round(CLIP_MARGIN * side / 16) * 16 for side in recipe.size)
    labelled = not entry(model).build.needs_mask
    return DataOptions(
        (height, width), recipe.frames + 2, recipe.seed, labelled=labelled,
        view=recipe.size, length=recipe.frames,
    )  # fmt: skip


def _check(options: TrainOptions) -> None:
    """Check what neither the recipe nor the data checks. Raises ConfigError."""
    if "parts" in options.changes and not objective_class(options.model).all_parts:
        raise ConfigError(f"parts: {options.model} is trained as a whole; omit them")
    frames = options.changes.get("frames", 2)
    if frames < 2:
        raise ConfigError(
            f"frames: wanted 2 or more, given {frames}; the first frame is the prompt"
        )
    if options.minutes is not None and not options.minutes > 0:  # refuses NaN too
        raise ConfigError(f"minutes: wanted a number above 0, given {options.minutes}")
    if not options.save_every >= 0:
        raise ConfigError(f"save_every: wanted 0 or more seconds, given {options.save_every}")


def _trainer(options: TrainOptions) -> tuple[Trainer, Recipe]:
    """The trainer with its initial network, and the recipe; checks and prepares the folder."""
    config = entry(options.model).configuration(options.config)
    _check(options)
    init = options.init
    if options.config == "lite" and init is None:
        init = backbone_file(config.backbone)
    recipe = replace(recipe_for(options.model, options.config), **options.changes)
    device = choose_device(options.device)
    inputs = [*Given.named("the weights to start from", init)]
    for place in folders_of(options.data):
        inputs += Given.named("the data", place, tree=True)
    check_run_folder(options.out, (CHECKPOINT, LOG, RUN, WEIGHTS), inputs, options.resume)
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
    """The initial network of a run: configured for short clips, with the recipe's seed and the
    matching weights of `init`. Raises WeightsError."""
    method = build(model, for_clips(config), recipe.seed)
    start_gently(method)
    if init is not None:
        initialise_from(method, init)
    return method


def held_out(model: str, recipe: Recipe) -> list[Batch]:
    """Held-out clips, of the size of the recipe."""
    clips, frames = HELD_OUT
    labelled = not entry(model).build.needs_mask
    source = SyntheticSource(frames, recipe.size, HELD_OUT_SEED, labelled)
    samples = [source.sample(number, 1.0) for number in range(clips)]
    return [collate([sample]) for sample in samples]
