"""Training of IMCNet and target-aware U-VOS: their losses, and that they decrease."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from unsupervised_training import (
    HEIGHT,
    WIDTH,
    bce,
    clips,
    imcnet,
    iou,
    numpy,
    seeded,
    target_aware,
)

from vosengine.config import IMCNetConfig, TargetAwareConfig
from vosengine.errors import ConfigError, InputError
from vosengine.training.losses import binary_of, contrastive, structural
from vosengine.training.objectives.foreground import IMCNetObjective
from vosengine.training.objectives.objective import Objective, normalised
from vosengine.training.objectives.target_aware import TargetAwareObjective
from vosengine.training.samples import Batch


def objective_of(name: str, **changes: Any) -> Objective[Any]:
    if name == "imcnet":
        return IMCNetObjective(imcnet(**changes))
    return TargetAwareObjective(target_aware(**changes))


# --- losses ---


def test_structural_is_one_minus_ssim() -> None:
    random = np.random.default_rng(1)
    first, second = random.random((2, 2, 15, 19))
    second[1] = first[1]
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = 0.01**2, 0.03**2
    values = np.empty((2, 5, 9))
    for n, i, j in np.ndindex(values.shape):
        a, b = (batch[n, i : i + 11, j : j + 11] for batch in (first, second))
        m, k = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - m) ** 2).sum(), (window * (b - k) ** 2).sum()
        both = (window * (a - m) * (b - k)).sum()
        values[n, i, j] = (2 * m * k + c1) * (2 * both + c2)
        values[n, i, j] /= (m * m + k * k + c1) * (var_a + var_b + c2)
    images = torch.from_numpy(first).float(), torch.from_numpy(second).float()
    assert structural(*images).item() == pytest.approx(1 - values.mean(), abs=1e-5)
    assert structural(images[0][1:], images[1][1:]).item() == pytest.approx(0, abs=1e-5)


def test_binary_of_probabilities_stays_finite() -> None:
    p, target = torch.tensor([0.0, 1.0, 0.25, 0.25]), torch.tensor([1.0, 1.0, 1.0, 0.5])
    p.requires_grad_(True)
    losses = binary_of(p, target)
    wanted = [-np.log(1e-6), 0, -np.log(0.25), -0.5 * np.log(0.25 * 0.75)]
    np.testing.assert_allclose(numpy(losses), wanted, rtol=1e-5, atol=1e-6)
    losses.sum().backward()
    assert p.grad is not None and p.grad.isfinite().all()


def test_contrastive_against_its_formula() -> None:
    random = np.random.default_rng(2)
    vectors = random.standard_normal((6, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    identities = [0, 0, 0, 1, 1, 2]
    wanted = []
    for i in range(5):  # the last one is alone: no loss of its own, but one of the others
        others = [j for j in range(6) if j != i]
        whole = sum(np.exp(vectors[i] @ vectors[j] / 0.2) for j in others)
        own = [j for j in others if identities[j] == identities[i]]
        wanted.append(
            np.mean([-np.log(np.exp(vectors[i] @ vectors[j] / 0.2) / whole) for j in own])
        )
    embeddings = torch.from_numpy(vectors).float()
    loss = contrastive(embeddings, torch.tensor(identities), 0.2)
    assert loss.item() == pytest.approx(np.mean(wanted), rel=1e-5)
    assert contrastive(embeddings, torch.arange(6), 0.2).item() == 0


# --- IMCNet ---


def test_the_foreground_losses_are_those_of_what_a_stream_answers() -> None:
    method, batch = imcnet(), clips()
    losses = IMCNetObjective(method).losses(batch, seeded())
    frames = normalised(batch.frames, method.config)
    outputs, sides = [], []
    with torch.no_grad():
        for clip in frames:
            seen = [method.encode(frame[None]) for frame in clip]
            outputs.append(numpy(method.foreground(seen))[0, 0])
            *maps, keys = (torch.cat(tensors) for tensors in zip(*seen, strict=True))
            attention = method.affinity(keys[None], maps[3][None])[0]
            _, gates = method.propagation(maps, attention)
            sides.append([numpy(gate)[:, 0] for gate in gates])
    union = numpy(batch.masks > 0)
    output, target = np.stack(outputs), union[:, 1]
    assert losses["bce"].item() == pytest.approx(bce(output, target), rel=1e-4)
    assert losses["iou"].item() == pytest.approx(iou(output, target), rel=1e-4)
    wanted = []
    for level, stride in enumerate((32, 16, 8, 4)):
        p = np.concatenate([clip_gates[level] for clip_gates in sides])
        cells = union.reshape(-1, HEIGHT // stride, stride, WIDTH // stride, stride)
        share = cells.mean(axis=(2, 4))
        wanted.append(bce(p, share) + iou(p, share))
    assert losses["sides"].item() == pytest.approx(np.mean(wanted), rel=1e-4)


def test_the_foreground_score_is_the_iou_of_what_a_stream_answers() -> None:
    objective, batch = IMCNetObjective(imcnet()), clips(length=4)
    batch.masks[1] = 0
    method = objective.method

    def answers() -> list[torch.Tensor]:
        windows = (clip[t : t + 3] for clip in features for t in (0, 1))
        return [method.foreground(window)[0, 0] for window in windows]

    with torch.no_grad():
        frames = normalised(batch.frames, method.config)
        features = [[method.encode(frame[None]) for frame in clip] for clip in frames]
        # Moved to where half of the pixels are foreground.
        method.predict.bias -= torch.stack(answers()).logit().median()
        probabilities = answers()
    wanted = []
    for p, mask in zip(probabilities, batch.masks[:, 1:3].flatten(0, 1).numpy(), strict=True):
        own, target = p.numpy() > 0.5, mask > 0
        joined = (own | target).sum()
        wanted.append((own & target).sum() / joined if joined else 1.0)
    assert 0 < np.mean(wanted) < 1
    assert objective.score(batch) == pytest.approx(np.mean(wanted), abs=2e-3)


def test_centres_have_their_neighbours_where_the_clip_is_long_enough() -> None:
    objective = IMCNetObjective(imcnet())
    seen = objective._draw(clips(count=3, length=5), 2, seeded())
    assert seen.shape == (6, 3)
    assert torch.equal(seen[:, 1:] - seen[:, :-1], torch.ones(6, 2, dtype=torch.int64))
    middle = seen[:, 1].reshape(3, 2)
    assert torch.equal(middle // 5, torch.arange(3)[:, None].expand(3, 2))  # of its own clip
    assert (middle[:, 0] != middle[:, 1]).all()
    assert objective._draw(clips(count=1, length=1), 1, seeded()).tolist() == [[0, 0, 0]]
    drawn = {
        tuple(objective._draw(clips(1, 5), 1, torch.Generator().manual_seed(i))[0].tolist())
        for i in range(9)
    }
    assert len(drawn) == 3


# --- training ---


def total(objective: Objective[Any], batch: Batch) -> torch.Tensor:
    return torch.stack(list(objective.losses(batch, seeded()).values())).sum()


def without_gradient(module: nn.Module) -> set[str]:
    return {n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()}


@pytest.mark.parametrize("model", ["imcnet", "target_aware"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_gradients_reach_every_parameter(model: str, norm: str) -> None:
    objective = objective_of(model, norm=norm, **({"alignments": 4} if model == "imcnet" else {}))
    total(objective, clips()).backward()
    method = objective.method
    assert without_gradient(method) == set()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.slow
def test_each_part_trains_its_own_network() -> None:
    prefixes = {"dnet": ("dnet.",), "reid": ("reid.",), "tnet": ("backbone.", "refiner.")}
    for part, prefix in prefixes.items():
        method = target_aware()
        total(TargetAwareObjective(method, [part]), clips()).backward()
        idle = without_gradient(method)
        assert idle == {n for n, _ in method.named_parameters() if not n.startswith(prefix)}


@pytest.mark.parametrize("model", ["imcnet", "target_aware"])
@pytest.mark.slow
def test_the_losses_fall_on_a_fixed_batch(model: str) -> None:
    objective, batch = objective_of(model), clips(count=1)
    optimiser = torch.optim.AdamW(objective.method.parameters(), lr=5e-4)
    history = []
    for _ in range(36):
        losses = objective.losses(batch, seeded())
        history.append({name: value.item() for name, value in losses.items()})
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(objective.method.parameters(), 2.0)
        optimiser.step()
    first, last = history[0], history[-1]
    assert sum(last.values()) < 0.7 * sum(first.values()), (first, last)
    assert all(last[name] < first[name] for name in first), (first, last)


@pytest.mark.parametrize("model", ["imcnet", "target_aware"])
@pytest.mark.parametrize("case", ["empty", "late", "early", "single"])
def test_clips_with_missing_objects(model: str, case: str) -> None:
    objective, batch = objective_of(model), clips()
    if case == "empty":
        batch.masks.zero_()
        batch = batch._replace(counts=(0, 0))
    elif case == "late":
        batch.masks[:, 0] = 0
    elif case == "early":
        batch.masks[:, 1:] = 0
    else:
        batch = batch._replace(frames=batch.frames[:, :1], masks=batch.masks[:, :1])
    losses = objective.losses(batch, seeded())
    assert all(value.isfinite() for value in losses.values()), losses
    torch.stack(list(losses.values())).sum().backward()
    grads = [p.grad for p in objective.method.parameters() if p.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("part", ["dnet", "reid", "tnet"])
def test_a_part_with_nothing_to_learn_from_still_has_gradients(part: str) -> None:
    batch = clips()
    batch.masks.zero_()
    total(TargetAwareObjective(target_aware(), [part]), batch).backward()


@pytest.mark.parametrize("model", ["imcnet", "target_aware"])
def test_autocast_changes_little(model: str) -> None:
    objective, batch = objective_of(model), clips()
    with torch.no_grad():
        wide = objective.losses(batch, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        narrow = objective.losses(batch, seeded())
    torch.stack(list(narrow.values())).sum().backward()
    for name, value in wide.items():
        assert narrow[name].dtype == torch.float32
        assert narrow[name].item() == pytest.approx(value.item(), rel=0.15, abs=0.05), name


@pytest.mark.parametrize("model", ["imcnet", "target_aware"])
def test_losses_are_those_of_the_generator(model: str) -> None:
    objective, batch = objective_of(model), clips(length=4)
    with torch.no_grad():
        first, again = (objective.losses(batch, seeded()) for _ in range(2))
    assert {n: x.item() for n, x in first.items()} == {n: x.item() for n, x in again.items()}


@pytest.mark.parametrize("model", ["imcnet", "target_aware"])
def test_group_norm_keeps_clips_apart(model: str) -> None:
    """In training, features of a frame do not depend on other frames."""
    method = objective_of(model).method
    assert not any(isinstance(m, nn.BatchNorm2d) for m in method.modules())
    frames = normalised(clips().frames[:, 0], method.config)
    with torch.no_grad():
        both, first = method.encode(frames), method.encode(frames[:1])
    deepest = {"imcnet": "r5", "target_aware": "appearance"}[model]
    torch.testing.assert_close(
        getattr(both, deepest)[:1], getattr(first, deepest), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("model", ["imcnet", "target_aware"])
def test_scores_lie_in_0_to_1_and_change_nothing(model: str) -> None:
    objective = objective_of(model)
    objective.method.eval()
    before = {name: x.clone() for name, x in objective.method.state_dict().items()}
    empty = clips()._replace(masks=torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.uint8))
    for batch in (clips(), empty, clips(length=1)):
        assert 0 <= objective.score(batch) <= 1
        assert objective.score(batch) == objective.score(batch)
    after = objective.method.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert not any(p.grad is not None for p in objective.method.parameters())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="multiples of 32, given 64 x 80"):
        batch = clips()
        cut = batch._replace(frames=batch.frames[:, :, :, :80], masks=batch.masks[..., :80])
        IMCNetObjective(imcnet()).losses(cut, seeded())
    for parts in ([], ["dnet", "snet"]):
        with pytest.raises(ConfigError, match="parts: wanted some of dnet, reid, tnet"):
            TargetAwareObjective(target_aware(), parts)
    for kind in (IMCNetConfig, TargetAwareConfig):
        with pytest.raises(ConfigError, match="norm: wanted batch or group, given 'layer'"):
            kind(norm="layer")
