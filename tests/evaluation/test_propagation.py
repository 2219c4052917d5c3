"""Label propagation: `propagate` against a loop, and objects that are followed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from vosengine.commands import propagation
from vosengine.commands.propagation import Features, PropagatedMask, propagate


@pytest.fixture(scope="module")
def features() -> Features:
    return Features(torch.device("cpu"))


def by_a_loop(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, window: int, top_k: int, divisor: float
) -> np.ndarray:
    """`propagate` as documented, cell by cell."""
    frames, height, width, _ = keys.shape
    carried = np.zeros((height, width, values.shape[3]))
    for y, x in np.ndindex(height, width):
        near = [
            (float(query[y, x] @ keys[t, v, u]), values[t, v, u])
            for t in range(frames)
            for v in range(max(0, y - window), min(height, y + window + 1))
            for u in range(max(0, x - window), min(width, x + window + 1))
        ]
        near.sort(key=lambda pair: -pair[0])
        weights = np.exp(np.array([score for score, _ in near[:top_k]]) / divisor)
        read = np.stack([value for _, value in near[:top_k]])
        carried[y, x] = weights @ read / weights.sum()
    return carried


@pytest.mark.parametrize(("window", "top_k"), [(2, 4), (3, 1), (0, 5), (30, 3)])
def test_it_reads_as_a_loop_does(window: int, top_k: int) -> None:
    """Several tiles, with sides that are not multiples of the tile."""
    random = np.random.default_rng(window)
    query, keys = random.normal(size=(18, 5, 6)), random.normal(size=(2, 18, 5, 6))
    values = random.uniform(size=(2, 18, 5, 3))
    tensors = (torch.from_numpy(array) for array in (query, keys, values))
    result = propagate(*tensors, window=window, top_k=top_k, temperature=0.5)
    wanted = by_a_loop(query, keys, values, window, top_k, 0.5)
    np.testing.assert_allclose(result.numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize(("distance", "read"), [(12, 1.0), (13, 0.0)])
def test_the_window_ends_after_twelve_cells(distance: int, read: float) -> None:
    """The only similar cell is that far away; nothing is found beyond the window."""
    keys, values = torch.zeros(1, 40, 40, 2), torch.zeros(1, 40, 40, 1)
    keys[..., 1] = 1.0
    query = keys[0].clone()
    query[20, 20] = torch.tensor([1.0, 0.0])
    keys[0, 20 - distance, 20 + distance] = query[20, 20]
    values[0, 20 - distance, 20 + distance] = 1.0
    assert propagate(query, keys, values)[20, 20].item() == pytest.approx(read, abs=1e-4)


def texture(height: int, width: int, seed: int, colour: tuple[int, int, int]) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 60, (height, width, 3))
    image: np.ndarray = 4 * cv2.GaussianBlur(noise, (0, 0), 2.0) + colour
    return image.clip(0, 255).astype(np.uint8)


def test_textured_squares_that_move_are_followed_under_their_ids(features: Features) -> None:
    ground = texture(96, 128, 0, (90, 140, 60))
    squares = {5: texture(28, 28, 1, (200, 60, 40)), 9: texture(24, 24, 2, (50, 70, 210))}

    def scene(step: int) -> tuple[np.ndarray, np.ndarray]:
        frame, mask = ground.copy(), np.zeros((96, 128), np.uint8)
        for object_id, top, left in ((5, 10 + 4 * step, 12 + 6 * step), (9, 60, 90 - 5 * step)):
            side = len(squares[object_id])
            frame[top : top + side, left : left + side] = squares[object_id]
            mask[top : top + side, left : left + side] = object_id
        return frame, mask

    propagated = PropagatedMask(features, *scene(0))
    for step in range(1, 5):
        frame, mask = scene(step)
        labels = propagated.step(frame)
    assert (labels.dtype, labels.shape) == (np.uint8, (96, 128))
    assert set(np.unique(labels)) == {0, 5, 9}
    for object_id in (5, 9):
        both = np.sum((labels == object_id) & (mask == object_id))
        assert both / np.sum((labels == object_id) | (mask == object_id)) > 0.7


@pytest.mark.slow
def test_it_remembers_the_first_frame_and_the_last_five(
    features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [texture(32, 48, seed, (128, 128, 128)) for seed in range(9)]
    mask = np.zeros((32, 48), np.uint8)
    mask[8:24, 8:24] = 1
    seen: list[torch.Tensor] = []

    def noted(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        assert len(keys) == len(values)
        seen.append(keys)
        return values[0]

    monkeypatch.setattr(propagation, "propagate", noted)
    propagated = PropagatedMask(features, frames[0], mask)
    for frame in frames[1:]:
        propagated.step(frame)
    assert [len(keys) for keys in seen] == [1, 2, 3, 4, 5, 6, 6, 6]
    geometry = propagated._geometry
    assert geometry.network == (256, 384)
    for key, index in zip(seen[-1], (0, 3, 4, 5, 6, 7), strict=True):
        assert torch.equal(key, features(frames[index], geometry))
    torch.testing.assert_close(seen[0].square().sum(-1), torch.ones(1, 32, 48))


@pytest.mark.parametrize("shape", [(40, 100), (100, 40), (301, 333)])
def test_frames_of_any_size_are_answered_at_it(shape: tuple[int, int], features: Features) -> None:
    frame = texture(*shape, 0, (100, 100, 100))
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 4 : shape[0] // 4 * 3, shape[1] // 4 : shape[1] // 4 * 3] = 3
    labels = PropagatedMask(features, frame, mask).step(frame)
    assert labels.shape == shape
    both = np.sum((labels == 3) & (mask == 3))
    assert both / np.sum((labels == 3) | (mask == 3)) > 0.98  # the frame is the first one again
