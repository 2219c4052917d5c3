"""Training: it learns, stops, resumes bit-identically, and loses nothing."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FOLLOWERS, tiny_config

from vosengine.errors import (
    ConfigError,
    InputError,
    OutputError,
    StateError,
    TrainingError,
    WeightsError,
)
from vosengine.kernels import finish_masks
from vosengine.training.checkpoint import load_checkpoint, save_checkpoint
from vosengine.training.export import export
from vosengine.training.initialise import start_gently
from vosengine.training.losses import cross_entropy, hardest, soft_aggregation, soft_iou
from vosengine.training.objectives import FollowingLosses, for_clips, objective_for
from vosengine.training.objectives.following import MOST_WORN, from_first, spoil, worn
from vosengine.training.recipe import Recipe
from vosengine.training.samples import Batch, Sample, collate
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.training.trainer import CHECKPOINT, LOG, Trainer, rate_at
from vosengine.zoo.registry import build, config_to_json, entry, list_models
from vosengine.zoo.weights import load_file

SIZE = 64, 96
EVERYTHING = FollowingLosses(share=0.5, iou=1.0, saliency=1.0, readout=0.3, spoilt=0.2)
# What the small configurations add to a model, for tiny ones.
ADDED: dict[str, Any] = {"norm": "group", "read_masks": True}
MATCHED: dict[str, Any] = {**ADDED, "key_stride": 8, "similarity": "l2"}
TINY = {
    "stm": MATCHED,
    "munet": MATCHED,
    "giel": MATCHED,
    "dmn_aoa": {**ADDED, "matching_steps": 4},
}


# The softmax over frames takes out what is added to all of them.
NEVER_MOVED = {"attention.weigh.bias"}


def batch_of(*seeds: int, frames: int = 3) -> Batch:
    config = ClipConfig.plain(frames, *SIZE)
    clips = [make_clip(config, seed) for seed in seeds]
    return collate([Sample(c.frames, c.masks, f"synthetic clip {c.seed}") for c in clips])


def trainer_of(
    folder: Path, model: str = "stm", *, rate: float = 3e-3, steps: int = 20, **changes: Any
) -> Trainer:
    config = tiny_config(model, **{**TINY[model], **changes})
    recipe = Recipe(steps, 2, 3, SIZE, rate=rate, warm_up=2, losses=EVERYTHING)
    method = build(model, for_clips(config), recipe.seed)
    start_gently(method)
    identity = {"model": model, "config": config_to_json(config)}
    return Trainer(
        objective_for(model, method, recipe), recipe, folder, identity, torch.device("cpu")
    )


def batches(start: int = 0) -> Iterator[Batch]:
    while True:
        yield batch_of(2 * start, 2 * start + 1)
        start += 1


@pytest.mark.parametrize("model", FOLLOWERS)
def test_twenty_steps_lower_the_loss_of_a_batch(model: str, tmp_path: Path) -> None:
    trainer, batch = trainer_of(tmp_path, model), batch_of(1, 2)
    seen: list[float] = []
    trainer.run([batch] * 20, report=lambda p: seen.append(sum(p.losses.values())))
    assert trainer.step == len(seen) == 20
    assert np.mean(seen[-3:]) < 0.8 * seen[0]


@pytest.mark.parametrize("model", FOLLOWERS)
@pytest.mark.parametrize("small", [False, True], ids=["paper", "small"])
def test_a_gradient_reaches_every_parameter(model: str, small: bool) -> None:
    changes = {"key_channels": 16, **(TINY[model] if small else {})}
    config = for_clips(tiny_config(model, **changes))
    method = build(model, config).requires_grad_(True).train()
    objective = objective_for(model, method, Recipe(losses=EVERYTHING))
    losses = objective.losses(batch_of(1, 2, frames=4), torch.Generator())
    torch.stack(list(losses.values())).sum().backward()
    without = {n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()}
    assert without <= NEVER_MOVED


def test_resumed_is_bit_identical(tmp_path: Path) -> None:
    whole, first = trainer_of(tmp_path / "whole", steps=6), trainer_of(tmp_path / "cut", steps=6)
    for folder in (whole.folder, first.folder):
        folder.mkdir()
    whole.run(batches())
    count = iter(range(100))
    assert not first.run(batches(), should_stop=lambda: next(count) == 3)
    assert first.step == 3
    first.run(batches(3), should_stop=lambda: first.step == 5, save_every=1e9)
    first.path.unlink()  # as if it had been killed after step 5, with the checkpoint of step 3
    again = trainer_of(tmp_path / "cut2", steps=6)
    again.folder.mkdir()
    half = trainer_of(tmp_path / "cut2", steps=6)
    half.run(batches(), should_stop=lambda: half.step == 3)
    again.resume()
    assert again.step == 3
    assert again.run(batches(3))
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name
        assert torch.equal(whole.averaged[name], again.averaged[name]), name
    steps = [json.loads(line)["step"] for line in (again.folder / LOG).read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_steps_after_the_checkpoint_leave_the_log(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.run(batches(), should_stop=lambda: trainer.step == 2)
    line = json.dumps({"step": 3, "losses": {}})
    with (tmp_path / LOG).open("a") as log:
        log.write(line + "\n" + line[:7])  # taken, and cut off, after the checkpoint
    again = trainer_of(tmp_path)
    again.resume()
    kept = [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()]
    assert kept == [1, 2]


def test_a_run_of_other_settings_is_not_resumed(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.run(batches(), should_stop=lambda: trainer.step == 1)
    with pytest.raises(StateError, match=r"recipe.*resume it with its own settings"):
        trainer_of(tmp_path, rate=1e-3).resume()
    with pytest.raises(StateError, match="config"):
        trainer_of(tmp_path, decoder_channels=16).resume()


def test_a_full_disk_leaves_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("os.fsync", "torch.save"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            with pytest.raises(OutputError, match=r"No space left.*before it is untouched"):
                save_checkpoint(path, {"step": 2})
        assert load_checkpoint(path)["step"] == 1
        assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    with pytest.raises(WeightsError, match="no such checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, {"step": 1})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="corrupt"):
        load_checkpoint(path)
    torch.save({"step": 1}, path)
    with pytest.raises(WeightsError, match="not one of vosengine's"):
        load_checkpoint(path)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.run(batches(), should_stop=lambda: trainer.step == 2)
    before = {name: x.clone() for name, x in trainer.network.state_dict().items()}

    def spoilt(*_: object) -> dict[str, torch.Tensor]:
        weight = next(trainer.network.parameters())
        return {"ce": weight.sum() * math.nan}

    trainer.objective.losses = spoilt  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"step 2.*nan.*seed 0.*synthetic clip 4.*checkpoint"):
        trainer.run(batches(2))
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert load_checkpoint(trainer.path)["step"] == 2


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, steps=3)
    name, parameter = next(iter(trainer.network.named_parameters()))
    expected = parameter.detach().double()

    def follow(_: object) -> None:
        nonlocal expected
        decay = (1 + trainer.step) / (10 + trainer.step)
        expected = decay * expected + (1 - decay) * parameter.detach().double()

    trainer.run(batches(), report=follow)
    torch.testing.assert_close(trainer.averaged[name].double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(trainer.averaged[name], parameter)


def test_a_score_changes_nothing(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.run(batches(), should_stop=lambda: trainer.step == 2)
    before = {name: x.clone() for name, x in trainer.network.state_dict().items()}
    score = trainer.score([batch_of(7)])
    assert 0 < score < 1
    assert trainer.network.training
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_rate_rises_and_falls() -> None:
    recipe = Recipe(steps=1000, rate=1e-3, warm_up=100)
    rates = [rate_at(step, recipe) for step in range(1001)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3) == rates[99]
    assert rates[1000] == pytest.approx(1e-5)
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_exported_weights_load(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.run(batches(), should_stop=lambda: trainer.step == 1)
    export(trainer.path, tmp_path / "w.safetensors", "a test")
    method, card = load_file("stm", tmp_path / "w.safetensors")
    assert card.trained
    assert method.config.memory.policy == "every-5"  # the engine's, not that of short clips
    for name, parameter in method.named_parameters():
        wanted = trainer.averaged[name]
        assert torch.equal(parameter, wanted.half().float() if wanted.ndim > 1 else wanted), name


def test_soft_aggregation_is_that_of_the_engine() -> None:
    logits = 6 * torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(1, 4, dtype=torch.uint8)
    _, wanted = finish_masks(logits, ids, size=(32, 48), region=(0, 0, 8, 12), probabilities=True)
    torch.testing.assert_close(soft_aggregation(logits, (32, 48)).exp(), wanted)


@pytest.mark.parametrize("scale", [0.0, 1.0, 200.0])
def test_gradients_of_sure_answers_are_finite(scale: float) -> None:
    signs = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    logits = (scale * signs)[:, None].requires_grad_(True)
    labels = torch.tensor([[2, 1]])
    loss = cross_entropy(soft_aggregation(logits, (1, 2)), labels).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.any()


def test_losses_against_their_equations() -> None:
    rng = np.random.default_rng(0)
    p, target = rng.random((2, 5, 7)), rng.integers(0, 2, (2, 5, 7)).astype(float)
    shared, joined = np.minimum(p, target).sum((1, 2)), np.maximum(p, target).sum((1, 2))
    wanted = np.mean(1 - (shared + 1) / (joined + 1))
    assert float(soft_iou(torch.tensor(p), torch.tensor(target))) == pytest.approx(wanted)
    losses = rng.random(10)
    assert float(hardest(torch.tensor(losses), 0.4)) == pytest.approx(np.sort(losses)[-4:].mean())
    assert float(hardest(torch.tensor(losses), 0.01)) == pytest.approx(losses.max())


def test_objects_of_the_first_frame_are_followed() -> None:
    masks = torch.tensor([[[0, 3, 5]], [[3, 1, 5]]], dtype=torch.uint8)
    assert from_first(masks).tolist() == [[[0, 1, 2]], [[1, 0, 2]]]
    kept = {
        tuple(from_first(masks, 1, torch.Generator().manual_seed(seed))[0, 0].tolist())
        for seed in range(20)
    }
    assert kept == {(0, 1, 0), (0, 0, 1)}


def test_a_worn_mask_has_another_outline_and_the_rest_keeps_its_proportions() -> None:
    masks = torch.zeros(3, 40, 60)
    masks[1, 10:20, 10:24], masks[2, 10:30, 36:46] = 0.9, 0.96
    masks[0] = 1 - masks.sum(dim=0)
    changes = []
    for seed in range(40):
        result = worn(masks, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(result.sum(dim=0), torch.ones(40, 60))
        assert result.min() >= 0
        areas = [
            (after > 0.5).sum() - (before > 0.5).sum()
            for after, before in zip(result, masks, strict=True)
        ]
        (slot,) = (1 + i for i, change in enumerate(areas[1:]) if change)
        changes.append(int(areas[slot]))
        height, width = ((10, 14), (20, 10))[slot - 1]
        most = 2 * MOST_WORN  # grown by so much and moved by as much again, on either side
        assert (height - most) * (width - most) <= height * width + changes[-1]
        assert height * width + changes[-1] <= (height + most) * (width + most)
    assert min(changes) < 0 < max(changes)


def test_spoilt_masks_are_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    sharp = (20 * torch.rand(3, 20, 30, generator=generator)).softmax(dim=0)
    parts = []
    for _ in range(50):
        spoilt = spoil(sharp, generator)
        torch.testing.assert_close(spoilt.sum(dim=0), torch.ones(20, 30))
        assert spoilt.min() >= 0
        changed = (spoilt != sharp).any(dim=0)
        assert changed.any()
        parts.append(float(changed.float().mean()))
    assert min(parts) < 0.1 < 0.9 < max(parts)  # a corner of one, and all of another
    nothing = torch.zeros(2, 4, 4)
    nothing[0] = 1
    assert spoil(nothing, generator) is nothing


@pytest.mark.parametrize("model", list_models())
def test_small_configurations_are_small(model: str) -> None:
    with torch.device("meta"):
        count = sum(x.numel() for x in build(model, entry(model).small).state_dict().values())
    assert 2 * count < 12_000_000  # bytes, in half precision


def test_a_clip_without_objects_teaches_nothing(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    empty = batch_of(1, 2)
    empty = empty._replace(masks=torch.zeros_like(empty.masks))
    before = {n: x.clone() for n, x in trainer.network.state_dict().items()}
    trainer.run([empty])
    assert trainer.step == 1
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_clips_of_other_shapes_are_refused() -> None:
    one, other = (batch_of(1, frames=frames) for frames in (2, 3))
    samples = [Sample(b.frames[0].numpy(), b.masks[0].numpy(), "x") for b in (one, other)]
    with pytest.raises(InputError, match="clips of one shape"):
        collate(samples)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"frames": 0}, {"size": (100, 96)}, {"precision": "fp8"}]
)
def test_recipes_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        replace(Recipe(), **changes)
