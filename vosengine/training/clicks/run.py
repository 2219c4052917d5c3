"""Training run of the click network, from initial weights to the weights file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ...config.checks import check
from ...files import Given
from ...prompts.network import ClickConfig, ClickNet
from ...prompts.weights import MODEL, build_click, load_click, save_click
from ...zoo.checkpoints import read_state_dict
from ...zoo.weights import backbone_file, state_of
from ..feed import Feed, loader
from ..recipe import Recipe
from ..run_folder import check_run_folder
from ..trainer import CHECKPOINT, LOG, Progress, Trainer
from .objective import ClickObjective
from .square_source import SquareSource

WEIGHTS = "weights.safetensors"
REPORT_EVERY = 50  # steps


@dataclass(frozen=True)
class ClickTraining:
    """Options of a run.

    photos   folder of photos in PhotoLibrary's layout, some with masks or regions
    out      output folder
    init     click network weights to start from; None: the shipped backbone
    resume   continue from the checkpoint in `out`
    minutes  stop after this time (resumable); None: no limit
    size     side of the training squares in pixels, a multiple of 16
    """

    photos: Path
    out: Path
    init: Path | None = None
    resume: bool = False
    minutes: float | None = None
    steps: int = 4000
    batch: int = 8
    size: int = 256
    seed: int = 0
    rate: float = 1e-3

    def __post_init__(self) -> None:
        check(self.minutes is None or self.minutes > 0, "minutes", "above 0", self.minutes)

    @property
    def recipe(self) -> Recipe:
        """The trainer's recipe. Raises ConfigError for values out of range."""
        return Recipe(
            steps=self.steps,
            batch=self.batch,
            frames=1,
            size=(self.size, self.size),
            rate=self.rate,
            warm_up=50,
            ema=0.998,
            seed=self.seed,
            backbone_rate=0.0,
        )


def train_clicks(options: ClickTraining, say: Callable[[str], None] = lambda _: None) -> str:
    """Train or resume, and write the averaged weights; returns a summary line.

    say  receives a progress line every REPORT_EVERY steps

    Raises  ConfigError, InputError, WeightsError, StateError before the first step; OutputError and
            TrainingError later, with the last checkpoint intact.
    """
    recipe = options.recipe
    inputs = [*Given.named("the weights to start from", options.init)]
    inputs += Given.named("the photos", options.photos, tree=True)
    check_run_folder(options.out, (CHECKPOINT, LOG, WEIGHTS), inputs, options.resume)
    source = SquareSource(options.photos, options.size, options.seed)
    network = _start(options)
    options.out.mkdir(parents=True, exist_ok=True)
    identity = {
        "model": MODEL,
        "photos": options.photos.name,
        "init": None if options.init is None else options.init.name,
    }
    trainer = Trainer(ClickObjective(network), recipe, options.out, identity, torch.device("cpu"))
    if options.resume:
        trainer.resume()
    feed = Feed(source, recipe.size, 1, recipe.seed, recipe.steps, recipe.batch)
    deadline = time.monotonic() + 60 * (options.minutes or math.inf)
    recent: list[Progress] = []

    def report(progress: Progress) -> None:
        recent.append(progress)
        if progress.step % REPORT_EVERY == 0:
            say(_summary(recent))
            recent.clear()

    trainer.run(
        loader(feed, trainer.step),
        report=report,
        should_stop=lambda: time.monotonic() > deadline,
    )
    network.load_state_dict(trainer.averaged)
    weights = options.out / WEIGHTS
    save_click(weights, network, f"trained for {trainer.step} steps on {options.photos.name}")
    return f"{trainer.step} steps, {trainer.seconds / 60:.1f} minutes; wrote {weights}"


def _start(options: ClickTraining) -> ClickNet:
    if options.init is not None:
        return load_click(options.init)[0]
    network = build_click(ClickConfig(), options.seed)
    network.start_gently()
    pretrained = read_state_dict(backbone_file(network.config.backbone))
    names = state_of(network.backbone)
    network.backbone.load_state_dict({name: pretrained[name] for name in names}, strict=False)
    return network


def _summary(recent: list[Progress]) -> str:
    names = recent[-1].losses
    means = {n: sum(p.losses.get(n, 0.0) for p in recent) / len(recent) for n in names}
    seconds = sum(p.seconds for p in recent) / len(recent)
    losses = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    return f"step {recent[-1].step}: {losses}, {seconds:.2f} s a step"
