"""Adaptive memory bank: similar features are merged, the least used are evicted."""

from __future__ import annotations

import math

import pytest
import torch

from vosengine.config import MemoryConfig
from vosengine.kernels import read_memory
from vosengine.memory import AdaptiveBank, MemoryBank, make_memory

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adaptive(
    groups: int = 1, positions: int = 2, channels: int = 8, **config: float
) -> AdaptiveBank:
    """Return a bank with poisoned unwritten memory; keys and values have the same width."""
    settings_ = MemoryConfig(policy="afb", **{"budget": 1000, **config})
    widths = channels, channels
    bank = AdaptiveBank(settings_, groups, positions, widths, device=CPU, dtype=torch.float32)
    for tensor in (bank.keys, bank.values, bank.merges, bank.age):
        tensor.fill_(math.nan)
    return bank


def feed(bank: AdaptiveBank, *features: torch.Tensor) -> None:
    """Write one frame [P, C] per group, with keys equal to values."""
    frame = torch.stack(features)
    bank.write(frame, frame, [False] * len(features))


def axes(*indices: int) -> torch.Tensor:
    """Return a frame of orthogonal unit features."""
    return torch.eye(8)[list(indices)]


def directions(bank: AdaptiveBank, group: int = 0) -> list[int]:
    """Return the axis of every stored feature, in order."""
    stored = bank.read(group + 1)
    used = int(stored.length[group])
    assert torch.equal(stored.keys[group, :used], stored.values[group, :used])
    return stored.keys[group, :used].argmax(dim=1).tolist()


def test_an_identical_frame_merges_and_a_different_one_is_appended() -> None:
    bank = adaptive()
    feed(bank, axes(0, 1))
    feed(bank, axes(1, 0))
    assert directions(bank) == [0, 1]
    torch.testing.assert_close(bank.keys[0, :2], axes(0, 1))
    feed(bank, axes(2, 1))  # half new
    assert directions(bank) == [0, 1, 2]
    assert bank.merges[0, :3].tolist() == [1, 2, 0]
    assert bank.age[0, :3].tolist() == [2, 2, 0]


def test_a_released_bank_is_empty() -> None:
    bank = adaptive(groups=2)
    feed(bank, axes(0, 1), axes(2, 3))
    bank.release()
    assert directions(bank, 0) == directions(bank, 1) == []
    feed(bank, axes(4, 5), axes(6, 7))
    assert (directions(bank, 0), directions(bank, 1)) == ([4, 5], [6, 7])


def test_merges_by_cosine_whatever_the_length() -> None:
    bank = adaptive(merge_similarity=0.95)
    angles = [math.acos(0.94), math.acos(0.96)]
    frame = torch.zeros(2, 8)
    frame[:, 0] = torch.tensor([math.cos(a) for a in angles])
    frame[0, 1], frame[1, 2] = math.sin(angles[0]), math.sin(angles[1])
    feed(bank, axes(0, 7))
    feed(bank, 5 * frame)
    assert bank.length.tolist() == [3]
    torch.testing.assert_close(bank.keys[0, 2], 5 * frame[0])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7, 1.0])
def test_a_merge_moves_the_direction_by_the_rate(rate: float) -> None:
    """Computed in float64: |s| ((1 - rate) s / |s| + rate * mean of the new unit vectors)."""
    bank = adaptive(positions=3, merge_rate=rate, merge_similarity=0.5)
    near = 0.2 * noise(3, 8, seed=1) + axes(0, 0, 4)
    stored_key, stored_value = 3 * axes(0, 3, 4), noise(3, 8, seed=2)
    new_key, new_value = near * torch.tensor([[2.0], [0.3], [7.0]]), noise(3, 8, seed=3)
    keep = torch.tensor([False])
    bank.write(stored_key[None], stored_value[None], keep)
    bank.write(new_key[None], new_value[None], keep)
    assert bank.length.tolist() == [3]
    for bank_side, stored, new in (
        (bank.keys, stored_key.double(), new_key.double()),
        (bank.values, stored_value.double(), new_value.double()),
    ):
        unit = new / new.pow(2).sum(dim=1, keepdim=True).sqrt()
        size = stored.pow(2).sum(dim=1, keepdim=True).sqrt()
        mean = torch.stack(((unit[0] + unit[1]) / 2, stored[1] / size[1], unit[2]))
        wanted = size * ((1 - rate) * stored / size + rate * mean)
        assert (bank_side[0, :3].double() - wanted).abs().max() < 1e-6


def test_the_untouched_stay_as_they_are_bit_by_bit() -> None:
    bank = adaptive()
    first = noise(2, 8)
    feed(bank, first)
    feed(bank, torch.stack((first[0] * 1.5, -first[1])))
    assert bank.length.tolist() == [3]
    assert torch.equal(bank.keys[0, 1], first[1])


@pytest.mark.parametrize("budget", [1, 7, 9])
def test_never_exceeds_its_budget(budget: int) -> None:
    bank = adaptive(groups=1, budget=budget)
    assert bank.capacity == max(4, budget)  # room for two frames at least
    for frame in range(60):
        latest = noise(2, 8, seed=frame)
        feed(bank, latest)
        assert bank.length.max() <= bank.capacity == bank.keys.shape[1]
        stored = bank.keys[0, : int(bank.length[0])]
        assert stored.isfinite().all()
        assert (torch.cosine_similarity(latest[:, None], stored, dim=2).amax(dim=1) > 0.9).all()
    assert bank.length.tolist() == [bank.capacity]


def test_the_budget_is_shared_by_the_groups() -> None:
    assert adaptive(groups=4, budget=100).capacity == 25


def test_those_with_the_fewest_merges_for_their_age_make_room() -> None:
    bank = adaptive(budget=6)
    feed(bank, axes(0, 1))
    feed(bank, axes(2, 3))
    feed(bank, axes(2, 0))
    feed(bank, axes(4, 5))
    feed(bank, axes(3, 4))
    feed(bank, axes(4, 2))
    assert bank.merges[0, :6].tolist() == [1, 0, 2, 1, 2, 0]
    feed(bank, axes(6, 7))  # rates: first frame, first frame, 2/5, 1/5, 2/3, 0/3
    assert directions(bank) == [0, 1, 2, 4, 6, 7]
    assert bank.merges[0, :6].tolist() == [1, 0, 2, 2, 0, 0]
    assert bank.age[0, :6].tolist() == [6, 6, 5, 3, 0, 0]


def test_an_object_that_starts_later_has_its_own_features() -> None:
    bank = adaptive(groups=3)
    feed(bank, axes(0, 1))
    feed(bank, axes(0, 2), axes(0, 5))
    feed(bank, axes(2, 1), axes(6, 5))
    assert (directions(bank, 0), directions(bank, 1)) == ([0, 1, 2], [0, 5, 6])
    assert bank.length.tolist() == [3, 3, 0]
    stored = bank.read(2)
    read = read_memory(axes(0, 5), stored.keys, stored.values, scale=1.0, length=stored.length)
    assert read.isfinite().all()


def test_forget_moves_the_last_group_into_the_place() -> None:
    bank = adaptive(groups=3)
    feed(bank, axes(0, 1))
    feed(bank, axes(0, 1), axes(2, 3))
    feed(bank, axes(0, 1), axes(4, 3), axes(6, 7))
    bank.forget(0, 3)
    assert (directions(bank, 0), directions(bank, 1)) == ([6, 7], [2, 3, 4])
    assert bank.length.tolist() == [2, 3, 0]
    feed(bank, axes(6, 7), axes(2, 3), axes(0, 5))
    assert [directions(bank, group) for group in range(3)] == [[6, 7], [2, 3, 4], [0, 5]]
    assert bank.merges[0, :2].tolist() == [1, 1]


def test_goes_on_identically_after_a_round_trip() -> None:
    one, other = (adaptive(groups=3, budget=15, merge_similarity=0.9) for _ in range(2))
    frames = [0.1 * noise(2, 2, 8, seed=frame) + axes(frame % 5, 6) for frame in range(20)]
    for frame in frames[:9]:
        feed(one, *frame)
    feed(other, axes(1, 2), axes(1, 2), axes(1, 2))  # of an earlier stream
    other.restore({name: tensor.clone() for name, tensor in one.tensors(2).items()})
    for frame in frames[9:]:
        assert other.length.tolist() == one.length.tolist()
        for group, used in enumerate(one.length[:2].tolist()):
            for name in ("keys", "values", "merges", "age"):
                original, restored = getattr(one, name), getattr(other, name)
                assert torch.equal(original[group, :used], restored[group, :used])
        feed(one, *frame)
        feed(other, *frame)
    assert one.merges[0, : int(one.length[0])].sum() > 0
    assert one.length[0] == one.capacity


def test_the_policy_afb_makes_it() -> None:
    sizes = {"groups": 2, "positions": 2, "key_channels": 8, "value_channels": 8}
    common = {"device": CPU, "dtype": torch.float32}
    assert isinstance(make_memory(MemoryConfig(policy="afb"), **sizes, **common), AdaptiveBank)
    made = make_memory(MemoryConfig(max_frames=3), **sizes, **common)
    assert isinstance(made, MemoryBank)
    assert made.table.shape == (2, 3)
    assert made.pages.keys.shape[1:] == (2, 8)


def test_the_first_annotated_frame_is_never_forgotten() -> None:
    """The oldest unmerged features are evicted, except those of prompts."""
    bank = adaptive(budget=6)
    for first in (0, 2, 4, 6):
        feed(bank, axes(first, first + 1))
    assert directions(bank) == [0, 1, 4, 5, 6, 7]
