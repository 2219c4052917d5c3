"""Appearance models: scores, learning, and starting and ending of tracks."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from vosengine.config import IMAGENET_MEAN, IMAGENET_STD, TargetAwareConfig
from vosengine.kernels import fit_target
from vosengine.kernels.fit_target import objective
from vosengine.models.backbone import ResNet, initialise
from vosengine.models.target_aware import appearance
from vosengine.models.target_aware.appearance import Tracks, first_weights
from vosengine.models.target_aware.augment import augment
from vosengine.training.synthetic import ClipConfig, make_clip

SIDE = 129  # a grid of 9 x 9
CELLS = 9, 9
CONFIG = TargetAwareConfig(
    tracker_size=SIDE, target_channels=32, samples=8, first_iterations=(3, 5)
)
CHANNELS = 64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def square(top: int, left: int, height: int, width: int, side: int = SIDE) -> Tensor:
    label = torch.zeros(side, side, dtype=torch.bool)
    label[top : top + height, left : left + width] = True
    return label


def tracks_of(config: TargetAwareConfig = CONFIG, max_tracks: int = 4) -> Tracks:
    return Tracks(config, max_tracks, CHANNELS, CELLS, torch.empty(0))


def begun(count: int = 3, config: TargetAwareConfig = CONFIG) -> Tracks:
    """Tracks fitted to random features, with two samples each and different labels."""
    tracks = tracks_of(config)
    for slot in range(count):
        label = square(10 + 20 * slot, 20, 40, 50)
        features = draw(2, CHANNELS, *CELLS, seed=slot)
        tracks.begin(slot, features, torch.stack((label, label.roll(3, 0))))
    return tracks


# The models


def test_scores_are_equation_8() -> None:
    tracks, features = begun(2), draw(1, CHANNELS, *CELLS, seed=9)
    scores = tracks.scores(tracks.project(features))
    assert scores.shape == (2, 1, *CELLS)
    x = np.pad(features[0].double().numpy(), ((0, 0), (1, 1), (1, 1)))
    wanted = np.zeros(scores.shape)
    for k in range(2):
        kernel, projection = (t[k].double().numpy() for t in (tracks.kernel, tracks.projection))
        for y, x0, dy, dx in np.ndindex(*CELLS, 3, 3):
            wanted[k, 0, y, x0] += kernel[:, dy, dx] @ (projection @ x[:, y + dy, x0 + dx])
    assert wanted.std() > 0.05
    np.testing.assert_allclose(scores.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_no_tracks_have_no_scores_and_no_updates() -> None:
    tracks = tracks_of()
    maps = tracks.project(draw(1, CHANNELS, *CELLS))
    assert maps.shape == (0, 32, *CELLS)
    assert tracks.scores(maps).shape == (0, 1, *CELLS)
    tracks.update([])


def test_the_same_first_frame_gives_the_same_model() -> None:
    for a, b in zip(begun().tensors(3).values(), begun().tensors(3).values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("label", [square(60, 60, 2, 5), square(0, 0, SIDE, SIDE)])
def test_ten_pixels_are_enough_and_the_whole_frame_is_not_too_much(label: Tensor) -> None:
    tracks, features = tracks_of(), draw(1, CHANNELS, *CELLS)
    tracks.begin(0, features, label[None])
    maps = tracks.project(features)
    for _ in range(2):
        tracks.push(0, maps[0], label, verified=True)
        tracks.update([0])
    scores = tracks.scores(maps)[0, 0]
    assert scores.isfinite().all()
    covered = functional.adaptive_max_pool2d(label[None].float(), CELLS)[0] > 0
    assert scores[covered].mean() > 0.5
    if not covered.all():
        assert scores[~covered].mean() < 0.2


def test_updating_makes_the_objective_fall_and_leaves_the_first_layer() -> None:
    tracks = begun(3)
    features = draw(1, CHANNELS, *CELLS, seed=7)
    maps = tracks.project(features)
    projection = tracks.projection.clone()
    for slot in range(3):
        tracks.push(slot, maps[slot], square(50, 50, 30, 20), verified=slot == 1)
    samples = tracks.samples.read(range(3), 3)

    def loss() -> Tensor:
        return objective(*samples, tracks.kernel[:3], ridge=CONFIG.ridge)

    before, kernel = loss(), tracks.kernel.clone()
    tracks.update([0, 1])
    after = loss()
    assert (after[:2] < before[:2] - 1e-3 * before[:2].abs()).all()
    assert torch.equal(tracks.kernel[2:], kernel[2:])
    assert torch.equal(tracks.projection, projection)


def test_every_fit_has_the_iterations_and_the_ridge_of_its_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def recorded(*args: Tensor, **kwargs: Any) -> Any:
        torch.testing.assert_close(args[3].sum(dim=1), torch.ones(len(args[3])))
        calls.append((len(args), kwargs))
        return fit_target(*args, **kwargs)

    monkeypatch.setattr(appearance, "fit_target", recorded)
    config = dataclasses.replace(CONFIG, ridge=(1e-3, 1e-1), later_iterations=(4,))
    begun(1, config).update([0])
    both = {"iterations": (3, 5), "ridge": (1e-3, 1e-1)}
    assert calls == [(6, both), (5, {**both, "iterations": (4,)})]


@pytest.mark.parametrize("slots", [[0, 1, 2], [1, 2], [2, 0]])
def test_updating_together_is_updating_one_by_one(slots: list[int]) -> None:
    together, apart = begun(3), begun(3)
    for tracks in (together, apart):
        maps = tracks.project(draw(1, CHANNELS, *CELLS, seed=7))
        for slot, pushes in enumerate((1, 3, 0)):
            for _ in range(pushes):
                tracks.push(slot, maps[slot], square(40, 50, 30, 20), verified=False)
    before = together.kernel.clone()
    together.update(slots)
    for slot in slots:
        apart.update([slot])
    assert all(not torch.equal(together.kernel[slot], before[slot]) for slot in slots)
    torch.testing.assert_close(together.kernel, apart.kernel, rtol=1e-6, atol=1e-7)


def test_a_forgotten_track_gives_its_place_to_the_last() -> None:
    tracks, features = begun(3), draw(1, CHANNELS, *CELLS, seed=7)
    maps = tracks.project(features)
    tracks.push(2, maps[2], square(40, 50, 30, 20), verified=False)
    scores, saved = tracks.scores(maps), {n: t.clone() for n, t in tracks.tensors(3).items()}
    tracks.forget(0, 2)
    assert tracks.count == 2
    torch.testing.assert_close(tracks.scores(tracks.project(features)), scores[[2, 1]])
    for name, tensor in tracks.tensors(2).items():
        assert torch.equal(tensor, saved[name][[2, 1]]), name
    tracks.forget(1, 1)
    assert tracks.count == 1
    tracks.begin(1, draw(1, CHANNELS, *CELLS), square(5, 5, 30, 30)[None])
    tracks.update([0, 1])
    assert tracks.kernel.isfinite().all()


def test_tracks_go_on_elsewhere() -> None:
    tracks, other = begun(2), begun(3)
    other.push(0, draw(32, *CELLS), square(10, 10, 30, 30), verified=False)  # to be overwritten
    other.restore({name: tensor.clone() for name, tensor in tracks.tensors(2).items()}, 2)
    for seed in range(8):  # past the eight samples that fit
        for model in (tracks, other):
            maps = model.project(draw(1, CHANNELS, *CELLS, seed=seed))
            model.push(1, maps[1], square(10 * seed, 30, 30, 30), verified=seed % 2 == 0)
            model.update([0, 1])
    assert other.count == 2
    for name, tensor in tracks.tensors(2).items():
        assert torch.equal(tensor[1], other.tensors(2)[name][1]), name
    for name in ("kernel", "projection", "weight", "filled"):
        assert torch.equal(tracks.tensors(2)[name][0], other.tensors(2)[name][0]), name


# What they learn


class View(NamedTuple):
    """A clip for T-Net: frames, features [T, C, h, w], target [T, H, W]."""

    frames: Tensor
    features: Tensor
    labels: Tensor


@pytest.fixture(scope="module")
def network() -> ResNet:
    """A fixed random backbone with CHANNELS features."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ResNet("resnet18", CHANNELS // 4)
        initialise(net)
    return net.eval().requires_grad_(False)


def view(network: ResNet, seed: int, **options: Any) -> View:
    shape = {"frames": 8, "height": SIDE, "width": SIDE, "objects": (1, 1), "size": (0.06, 0.15)}
    clip = make_clip(ClipConfig(**{**shape, **options}), seed=seed)
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    frames = (frames - mean) / std
    return View(frames, network(frames).r4, torch.from_numpy(clip.masks > 0))


def start(network: ResNet, seen: View) -> Tracks:
    tracks = tracks_of(
        dataclasses.replace(CONFIG, samples=20, first_iterations=(5, 10, 10, 10, 10))
    )
    frames, labels = augment(seen.frames[:1], seen.labels[0], 4, torch.Generator().manual_seed(0))
    features = torch.cat((seen.features[:1], network(frames).r4))
    tracks.begin(0, features, torch.cat((seen.labels[:1], labels)))
    return tracks


def separation(scores: Tensor, label: Tensor) -> float:
    """Probability that a target pixel scores above a background pixel (AUC)."""
    up = functional.interpolate(
        scores[None, None], label.shape, mode="bilinear", align_corners=False
    )
    rank = up.flatten().argsort().argsort().double()
    target = label.flatten()
    count = int(target.sum())
    highest = rank[target].sum() - count * (count - 1) / 2
    return float(highest / (count * (len(rank) - count)))


def mean_separation(tracks: Tracks, seen: View, times: range) -> float:
    scores = [tracks.scores(tracks.project(seen.features[t, None]))[0, 0] for t in times]
    return float(
        np.mean([separation(s, seen.labels[t]) for s, t in zip(scores, times, strict=True)])
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_first_frame_teaches_to_tell_the_target_on_the_next(network: ResNet, seed: int) -> None:
    seen = view(network, seed)
    tracks, untrained = start(network, seen), tracks_of()
    projection, kernel = first_weights(CONFIG.target_channels, CHANNELS, torch.device("cpu"))
    untrained.samples.filled[0] = 1
    untrained.projection[0], untrained.kernel[0] = projection, kernel
    fitted, initial = (mean_separation(t, seen, range(1, 8)) for t in (tracks, untrained))
    assert fitted > max(0.85, initial + 0.1), (fitted, initial)


@pytest.mark.slow
def test_later_frames_help_where_the_target_changes(network: ResNet) -> None:
    gains = []
    for seed in range(3):
        seen = view(network, seed, frames=12, motion=2.0, turning=2.0, deformation=2.0)
        fixed, updated = start(network, seen), start(network, seen)
        for time in range(1, 9):
            maps = updated.project(seen.features[time, None])
            updated.push(0, maps[0], seen.labels[time], verified=False)
        updated.update([0])
        ahead = range(9, 12)
        gains.append(mean_separation(updated, seen, ahead) - mean_separation(fixed, seen, ahead))
    assert np.mean(gains) > 0.01 and min(gains) > -0.02, gains


# What it costs


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // 4)
        return out


def test_a_birth_at_full_size_unfolds_nothing() -> None:
    """No tensor is larger than the features: no nine-fold copy, no stack of full-size labels."""
    config = TargetAwareConfig(first_iterations=(1,), samples=5)
    tracks = Tracks(config, 1, 1024, (30, 30), torch.empty(0))
    features = draw(5, 1024, 30, 30).relu()
    labels = square(100, 150, 200, 120, side=473).expand(5, -1, -1)
    with LargestTensor() as largest:
        tracks.begin(0, features, labels)
    assert largest.numel <= 1.05 * features.numel()
    assert tracks.scores(tracks.project(features[:1])).shape == (1, 1, 30, 30)


@pytest.mark.slow
def test_nothing_waits_for_the_device() -> None:
    """Runs on meta tensors, which raise if a value is read."""
    config = dataclasses.replace(CONFIG, samples=3, augmentations=1)
    tracks = Tracks(config, 4, CHANNELS, CELLS, torch.empty(0, device="meta"))
    features = torch.empty(2, CHANNELS, *CELLS, device="meta")
    label = square(10, 10, 30, 30).to("meta")
    for slot in range(3):
        tracks.begin(slot, features, label.expand(2, -1, -1))
    maps = tracks.project(features[:1])
    for _ in range(3):
        tracks.push(1, maps[1], label, verified=True)
    tracks.update([0, 2])
    tracks.forget(0, 2)
    assert tracks.scores(tracks.project(features[:1])).shape == (2, 1, *CELLS)
