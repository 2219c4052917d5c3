"""Training loop with bit-exact resumption from checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from ..files import write_whole
from ..models.efficientnet import EfficientNetLite
from .checkpoint import check_same, load_checkpoint, save_checkpoint
from .objectives.objective import Objective
from .recipe import Recipe
from .samples import Batch

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


@dataclass(frozen=True)
class Progress:
    """Record of one step, a line of the log."""

    step: int
    steps: int
    losses: dict[str, float]  # weighted losses of the batch
    gradient_norm: float  # before clipping
    seconds: float
    score: float | None = None  # of the averaged weights on held-out clips, 0..1; None: not scored


class Trainer:
    """A model, its optimiser and its averaged weights.

    identity  JSON values that identify the run; a checkpoint of another identity is refused
    device    device to train on
    """

    def __init__(
        self,
        objective: Objective[Any],
        recipe: Recipe,
        folder: Path,
        identity: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.objective = objective
        self.recipe = recipe
        self.folder = folder
        self.identity = json.loads(json.dumps({**identity, "recipe": asdict(recipe)}))
        self.device = device
        # Channels last: a seventh faster on a CPU, and the layout for half precision on a GPU.
        method = objective.method.to(device).to(memory_format=torch.channels_last)
        self.network: nn.Module = method.requires_grad_(True).train()
        backbones = [m for m in method.modules() if isinstance(m, EfficientNetLite)]
        if recipe.backbone_rate == 0:
            for backbone in backbones:
                backbone.requires_grad_(False)
        self.optimiser = torch.optim.AdamW(_groups(self.network, backbones, recipe), lr=recipe.rate)
        self.averaged = {n: x.detach().clone() for n, x in self.network.state_dict().items()}
        self.step = 0
        self.seconds = 0.0

    @property
    def path(self) -> Path:
        """Path of the checkpoint."""
        return self.folder / CHECKPOINT

    def save(self) -> None:
        """Write the checkpoint. Raises OutputError; the previous one is then intact."""
        content = {
            "identity": self.identity,
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "averaged": self.averaged,
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
        }
        save_checkpoint(self.path, content)

    def resume(self) -> None:
        """Load the checkpoint in the folder. Raises WeightsError, or StateError for another run."""
        content = load_checkpoint(self.path)
        check_same(self.path, content["identity"], self.identity)
        self.network.load_state_dict(content["network"])
        self.averaged = {n: x.to(self.device) for n, x in content["averaged"].items()}
        self.optimiser.load_state_dict(content["optimiser"])
        self.step = content["step"]
        self.seconds = content["seconds"]
        torch.set_rng_state(content["random"])
        _cut_log(self.folder / LOG, self.step)

    def run(
        self,
        batches: Iterable[Batch],
        *,
        report: Callable[[Progress], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
        save_every: float = 180.0,
        held_out: Sequence[Batch] = (),
        score_every: int = 0,
    ) -> bool:
        """Train until the recipe's last step or until `should_stop` returns True.

        batches      one per step, beginning after `step`
        save_every   seconds between checkpoints; one is also written at the end
        held_out     batches on which the averaged weights are scored
        score_every  steps between scores; 0: never
        returns      True if the recipe's last step was reached

        Raises  TrainingError if a loss or the gradient is not finite.
        """
        saved = time.monotonic()
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            for batch in batches:
                if self.step >= self.recipe.steps or should_stop():
                    break
                progress = self.advance(batch)
                if score_every and self.step % score_every == 0:
                    progress = replace(progress, score=self.score(held_out))
                log.write(json.dumps(asdict(progress)) + "\n")
                report(progress)
                if time.monotonic() - saved >= save_every:
                    log.flush()
                    self.save()
                    saved = time.monotonic()
        self.save()
        return self.step >= self.recipe.steps

    def score(self, batches: Sequence[Batch]) -> float:
        """Mean score of the averaged weights on the batches, 0..1."""
        trained = {name: x.clone() for name, x in self.network.state_dict().items()}
        self.network.load_state_dict(self.averaged)
        self.network.eval()
        scores = [self.objective.score(self._moved(batch)) for batch in batches]
        self.network.train()
        self.network.load_state_dict(trained)
        return sum(scores) / len(scores)

    def _moved(self, batch: Batch) -> Batch:
        return batch._replace(
            frames=batch.frames.to(self.device), masks=batch.masks.to(self.device)
        )

    def advance(self, batch: Batch) -> Progress:
        """Train one step on a batch. Raises TrainingError as in `run`."""
        start = time.monotonic()
        recipe = self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = group["share"] * rate_at(self.step, recipe)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        narrow = recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow):
            losses = self.objective.losses(self._moved(batch), generator)
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros(())
        if losses:  # empty for a batch without objects
            total = torch.stack(list(losses.values())).sum()
            torch.autograd.backward(total)
        trained = [p for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, recipe.clip)
        self._check(float(total.detach()), float(norm), batch)
        self.optimiser.step()
        self.step += 1
        self._average()
        seconds = time.monotonic() - start
        self.seconds += seconds
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        return Progress(self.step, recipe.steps, values, float(norm), seconds)

    def _check(self, total: float, norm: float, batch: Batch) -> None:
        if math.isfinite(total) and math.isfinite(norm):
            return
        last = f"last checkpoint {self.path}" if self.path.exists() else "no checkpoint yet"
        raise TrainingError(
            f"step {self.step}: wanted a finite loss and gradient, given loss {total} and gradient "
            f"norm {norm}; seed {self.recipe.seed}, clips {', '.join(batch.origins)}; {last}; "
            "lower the rate or the clip, or check these clips"
        )

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)
            else:
                self.averaged[name].copy_(value)


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of a step: linear warm-up, then cosine decay to a hundredth of the peak."""
    if step < recipe.warm_up:
        return recipe.rate * (step + 1) / recipe.warm_up
    share = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return recipe.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def _groups(
    network: nn.Module, backbones: Sequence[nn.Module], recipe: Recipe
) -> list[dict[str, Any]]:
    """Parameter groups of the optimiser: weight decay only for tensors of two or more dimensions;
    pretrained backbones at `backbone_rate` times the learning rate."""
    slow = {id(p) for backbone in backbones for p in backbone.parameters()}
    groups = []
    for share, inside in ((1.0, False), (recipe.backbone_rate, True)):
        own = [p for p in network.parameters() if p.requires_grad and (id(p) in slow) == inside]
        for wide, decay in ((True, recipe.weight_decay), (False, 0.0)):
            chosen = [p for p in own if (p.ndim > 1) == wide]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "share": share})
    return groups


def _cut_log(path: Path, step: int) -> None:
    """Drop log lines after the checkpoint's step; those steps are repeated."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    write_whole(path, "".join(kept))
