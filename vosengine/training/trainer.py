"""The training loop: resumable to the bit, stopped by anything at any time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    """What is known after a step: `losses` of its batch, the seconds that it took, and what the
    averaged weights then score on held-out clips where it was asked."""

    step: int
    steps: int
    losses: dict[str, float]
    gradient_norm: float
    seconds: float
    score: float | None = None


class Trainer:
    """A model, its optimiser and its averaged weights.

    identity  what the run is, for the checkpoint: another identity cannot resume it
    device    where the model is trained
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
        # Channels last: a seventh faster on a CPU, and what half precision wants on a GPU.
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
        return self.folder / CHECKPOINT

    def save(self) -> None:
        """Write the checkpoint. Raises OutputError; the one before it is whole then."""
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
        """Go on from the checkpoint in the folder. Raises WeightsError, StateError."""
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
        """Train on the batches that follow `step`, to the recipe's end or until asked to stop.

        save_every   seconds between checkpoints; there is one at the end, too
        held_out     batches that the averaged weights are scored on
        score_every  steps between two scores; 0: none
        returns      whether the recipe was carried out to its end

        Raises  TrainingError where a loss or a gradient is no number any more.
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
        """The averaged weights' mean score on these batches, 0..1."""
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
        """One step of the optimiser on a batch. Raises TrainingError as `run` does."""
        start = time.monotonic()
        recipe = self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = group["share"] * rate_at(self.step, recipe)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        with self._autocast():
            losses = self.objective.losses(self._moved(batch), generator)
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros(())
        if losses:  # a batch without any object has nothing to teach
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

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _check(self, total: float, norm: float, batch: Batch) -> None:
        if math.isfinite(total) and math.isfinite(norm):
            return
        kept = f"the last good checkpoint is {self.path}" if self.path.exists() else "none is saved"
        raise TrainingError(
            f"step {self.step}: the loss is {total} and its gradient {norm}; seed "
            f"{self.recipe.seed}, clips {', '.join(batch.origins)}; {kept}; lower the rate or the "
            "clip, or look at these clips"
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
    """The learning rate of a step: a linear rise, then a cosine down to a hundredth."""
    if step < recipe.warm_up:
        return recipe.rate * (step + 1) / recipe.warm_up
    share = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return recipe.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def _groups(
    network: nn.Module, backbones: Sequence[nn.Module], recipe: Recipe
) -> list[dict[str, Any]]:
    """Weights decay; biases, norms and single numbers do not. Pretrained backbones have a share of
    the rate."""
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
    """Drop what was logged after the checkpoint: those steps are taken again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    write_whole(path, "".join(kept))
