"""Memory bank: kept and evicted frames, and that freed memory is never read."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_memory import positions

from vosengine.config import MemoryConfig
from vosengine.kernels import read_memory
from vosengine.memory import Memory, MemoryBank, PagePools, make_memory
from vosengine.models.blocks import MatchingState

CPU = torch.device("cpu")
CELLS = 3  # positions of one frame, as a 1 x 3 grid
KEY, VALUE = 4, 5
EVERY_THIRD_WRITE = [True, False, False]


def ring(groups: int = 1, frames: int = 4) -> MemoryBank:
    """Return a bank with poisoned unwritten positions."""
    pages = PagePools().of(CELLS, (KEY, VALUE), device=CPU, dtype=torch.float32)
    pages.take(groups * frames)
    pages.keys.fill_(math.nan)
    pages.values.fill_(math.nan)
    pages.give(range(groups * frames))
    return MemoryBank(groups, frames, pages)


def write(bank: Memory, tags: list[float], keep: list[bool] | bool) -> None:
    """Write one frame for len(tags) groups; every element of a group's key and value is its tag."""
    keep = [keep] * len(tags) if isinstance(keep, bool) else keep
    row = torch.tensor(tags, dtype=torch.float32)[:, None, None]
    key, value = row.expand(-1, CELLS, KEY), row.expand(-1, CELLS, VALUE)
    bank.write(key, value, keep)


def tags_in(bank: MemoryBank, group: int = 0) -> list[int]:
    """Return the tags of the frames within a group's length, in slot order."""
    used = int(bank.length[group])
    assert used % CELLS == 0
    keys, values = (x.unflatten(0, (-1, CELLS)) for x in positions(bank.read(group + 1), group))
    tags = keys[:, 0, 0]
    assert (keys == tags[:, None, None]).all()
    assert (values == tags[:, None, None]).all()
    return [int(tag) for tag in tags]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_frame_not_kept_is_replaced_by_the_next_and_a_kept_one_stays() -> None:
    bank = ring()
    write(bank, [10], keep=True)
    write(bank, [11], keep=False)
    assert tags_in(bank) == [10, 11]
    write(bank, [12], keep=False)
    assert tags_in(bank) == [10, 12]
    write(bank, [13], keep=True)
    assert tags_in(bank) == [10, 13]
    write(bank, [14], keep=False)
    assert tags_in(bank) == [10, 13, 14]


def test_the_ring_drops_the_oldest_frame_but_never_the_first() -> None:
    bank = ring(frames=4)
    for tag in range(10, 15):
        write(bank, [tag], keep=True)
    assert tags_in(bank) == [10, 14, 12, 13]
    for tag in range(15, 40):
        write(bank, [tag], keep=True)
    assert tags_in(bank)[0] == 10
    assert sorted(tags_in(bank)) == [10, 37, 38, 39]


def test_groups_of_different_age_have_their_own_length() -> None:
    bank = ring(groups=3, frames=12)
    for frame in range(7):
        write(bank, [100 + frame], keep=True)
    for frame in range(7, 10):
        write(bank, [100 + frame, 200 + frame], keep=True)
    assert bank.length.tolist() == [10 * CELLS, 3 * CELLS, 0]
    assert tags_in(bank, 0) == list(range(100, 110))
    assert tags_in(bank, 1) == [207, 208, 209]


def test_groups_keep_independently() -> None:
    bank = ring(groups=2)
    write(bank, [10, 20], keep=True)
    write(bank, [11, 21], keep=[True, False])
    write(bank, [12, 22], keep=[False, True])
    assert (tags_in(bank, 0), tags_in(bank, 1)) == ([10, 11, 12], [20, 22])


def test_dead_positions_are_never_read() -> None:
    bank = ring(groups=2, frames=5)
    keys, values = noise(2, 3, CELLS, KEY), noise(2, 3, CELLS, VALUE, seed=1)
    for frame in range(3):
        count = 2 if frame == 2 else 1  # the second object is younger
        bank.write(keys[:count, frame], values[:count, frame], [True] * count)
    query = noise(7, KEY, seed=2)
    stored = bank.read(2)
    assert stored.keys.isnan().any()
    read = read_memory(
        query,
        stored.keys,
        stored.values,
        scale=0.5,
        length=stored.length,
        pages=stored.pages,
    )
    for group, first in ((0, 0), (1, 2)):
        alive = keys[group, first:].flatten(0, 1), values[group, first:].flatten(0, 1)
        wanted = (0.5 * query @ alive[0].T).softmax(dim=1) @ alive[1]
        torch.testing.assert_close(read[group], wanted)


def test_read_copies_nothing() -> None:
    bank = ring(groups=3)
    write(bank, [10, 20], keep=True)
    stored = bank.read(2)
    assert stored.pages is not None
    assert stored.pages.shape == (2, 4)
    parts = bank.pages.keys, bank.pages.values, bank.length, bank.table
    for view, whole in zip(stored, parts, strict=True):
        assert view is not None
        assert view.data_ptr() == whole.data_ptr()


def test_forget_moves_the_last_group_into_the_place() -> None:
    bank = ring(groups=4)
    for frame in range(3):
        write(bank, [100 + frame, 200 + frame, 300 + frame][: frame + 1], keep=True)
    bank.forget(0, 3)
    assert tags_in(bank, 0) == [302]
    assert tags_in(bank, 1) == [201, 202]
    assert bank.length.tolist() == [CELLS, 2 * CELLS, 0, 0]
    write(bank, [303, 203, 403], keep=True)  # the freed slot starts from nothing
    assert [tags_in(bank, group) for group in range(3)] == [[302, 303], [201, 202, 203], [403]]


def test_forget_of_the_last_group_leaves_the_others() -> None:
    bank = ring(groups=2)
    write(bank, [10, 20], keep=True)
    bank.forget(1, 2)
    assert (tags_in(bank, 0), bank.length.tolist(), bank.cursor.tolist()) == (
        [10],
        [CELLS, 0],
        [1, 0],
    )


@pytest.mark.parametrize("before", [1, 2, 4, 9])
def test_a_ring_goes_on_identically_after_a_round_trip(before: int) -> None:
    one, other = ring(groups=3, frames=4), ring(groups=3, frames=4)
    for frame in range(before):
        write(one, [100 + frame, 200 + frame], keep=EVERY_THIRD_WRITE[frame % 3])
    saved = {name: tensor.clone() for name, tensor in one.tensors(2).items()}
    assert not any(t.isnan().any() for t in saved.values())
    write(other, [1, 2, 3], keep=True)  # of an earlier stream
    other.restore(saved)
    for frame in range(before, before + 9):
        assert other.length.tolist() == one.length.tolist()
        for group in range(2):
            assert tags_in(other, group) == tags_in(one, group)
        for bank in (one, other):
            write(bank, [100 + frame, 200 + frame], keep=EVERY_THIRD_WRITE[frame % 3])


def test_what_nobody_wrote_is_not_saved() -> None:
    """Groups of different length: the rest of the shorter one is saved as zeros, not as
    uninitialised memory."""
    bank = ring(groups=2)
    write(bank, [1], True)
    write(bank, [2, 2], True)
    saved = bank.tensors(2)
    assert saved["keys"].shape[:2] == (2, 2)
    assert saved["keys"].isfinite().all()
    assert saved["values"].isfinite().all()
    assert saved["keys"][1, 1].eq(0).all()


def test_a_group_that_is_not_shown_stays_as_it_is() -> None:
    bank = ring(groups=2)
    write(bank, [1, 1], True)
    before = bank.pages.keys[bank.table[1].long()].clone(), int(bank.cursor[1])
    key, value = torch.full((2, CELLS, KEY), 2.0), torch.full((2, CELLS, VALUE), 2.0)
    bank.write(key, value, [True, True], torch.tensor([True, False]))
    assert tags_in(bank, 0) == [1, 2]
    assert tags_in(bank, 1) == [1]
    after = bank.pages.keys[bank.table[1, :1].long()]
    torch.testing.assert_close(after, before[0][:1], rtol=0, atol=0)
    assert int(bank.cursor[1]) == before[1]


def test_an_empty_ring_survives_a_round_trip() -> None:
    bank = ring()
    bank.restore(ring().tensors(0))
    assert bank.length.tolist() == [0]


GROUPS = 3
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.tuples(*[st.booleans()] * GROUPS)),
        st.tuples(st.just("join"), st.tuples(*[st.booleans()] * GROUPS)),
        st.tuples(st.just("forget"), st.integers(0, GROUPS - 1)),
        st.tuples(st.just("resume"), st.none()),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=150)
@given(frames=st.integers(2, 6), steps=STEPS)
@pytest.mark.slow
def test_a_ring_is_a_list_of_frames(frames: int, steps: list[tuple[str, Any]]) -> None:
    """Model: per group a list of tags, and whether the next write replaces the last one."""
    bank = ring(groups=GROUPS, frames=frames)
    model: list[list[int]] = []
    replaced: list[bool] = []
    for number, (kind, argument) in enumerate(steps):
        if kind == "forget" and argument < len(model):
            bank.forget(argument, len(model))
            last = model.pop(), replaced.pop()
            if argument < len(model):
                model[argument], replaced[argument] = last
        elif kind == "resume":
            fresh = ring(groups=GROUPS, frames=frames)
            fresh.restore(bank.tensors(len(model)))
            bank = fresh
        elif kind in ("write", "join"):
            if kind == "join" and len(model) < GROUPS:
                model.append([])
                replaced.append(False)
            tags = [100 * number + group for group in range(len(model))]
            for group, tag in enumerate(tags):
                if replaced[group]:
                    model[group].pop()
                model[group].append(tag)
                if len(model[group]) > frames:
                    del model[group][1]
                replaced[group] = not argument[group]
            if tags:
                write(bank, tags, list(argument[: len(model)]))
        for group, tags in enumerate(model):
            assert sorted(tags_in(bank, group)) == tags
            assert tags_in(bank, group)[0] == tags[0]
        assert bank.length[len(model) :].sum() == 0


@pytest.mark.parametrize("policy", ["every-5", "all", "afb"])
def test_nothing_is_allocated_once_the_ring_is_full(policy: str) -> None:
    config = MemoryConfig(policy=policy, max_frames=6, budget=1)
    memory = make_memory(
        config,
        groups=2,
        positions=CELLS,
        key_channels=KEY,
        value_channels=VALUE,
        device=CPU,
        dtype=torch.float32,
    )
    places = []
    for frame in range(100):
        key, value = noise(2, CELLS, KEY, seed=frame), noise(2, CELLS, VALUE, seed=frame)
        memory.write(key, value, [frame % 5 == 0, True])
        stored = memory.read(2)
        places.append((stored.keys.data_ptr(), stored.keys.nbytes + stored.values.nbytes))
    assert len(set(places[30:])) == 1
    assert memory.nbytes <= places[-1][1] * 2


# The schedule


def schedule(policy: str, max_frames: int = 50) -> MatchingState:
    bank = ring(groups=3, frames=max_frames)
    return MatchingState(bank, MemoryConfig(policy=policy).every)


def show(state: MatchingState, count: int, prompted: tuple[int, ...] = ()) -> None:
    """Write the next frame for `count` objects, with its index in every key and value."""
    number = torch.full((count, 1, 1, CELLS), float(state.frame_count))
    key, value = number.expand(-1, KEY, -1, -1), number.expand(-1, VALUE, -1, -1)
    state.write(key, value, prompted)


def test_every_fifth_frame_and_the_previous_one_are_kept() -> None:
    state = schedule("every-5")
    for frame in range(23):
        show(state, 1, prompted=(0,) if frame == 0 else ())
        assert tags_in(state.memory) == sorted({*range(0, frame + 1, 5), frame})


def test_an_object_that_starts_later_keeps_its_first_frame_and_the_common_schedule() -> None:
    state = schedule("every-5")
    for frame in range(18):
        joined = frame >= 7
        show(state, 2 if joined else 1, prompted=(1,) if frame == 7 else ())
        assert tags_in(state.memory, 0) == sorted({*range(0, frame + 1, 5), frame})
        if joined:
            assert tags_in(state.memory, 1) == sorted({7, *range(10, frame + 1, 5), frame})


def test_a_corrected_frame_is_kept_for_the_corrected_object_alone() -> None:
    state = schedule("every-5")
    for frame in range(9):
        show(state, 2, prompted={0: (0, 1), 3: (1,)}.get(frame, ()))
    assert tags_in(state.memory, 0) == [0, 5, 8]
    assert tags_in(state.memory, 1) == [0, 3, 5, 8]


def test_an_object_discovered_without_a_prompt_keeps_its_first_frame() -> None:
    state = schedule("every-5")
    for frame in range(5):
        show(state, 2 if frame >= 2 else 1)
    assert tags_in(state.memory, 1) == [2, 4]


def test_frames_without_objects_count_in_the_schedule() -> None:
    state = schedule("every-5")
    for _ in range(3):
        state.skip()
    for frame in range(3, 13):
        show(state, 1, prompted=(0,) if frame == 3 else ())
    assert tags_in(state.memory) == [3, 5, 10, 12]


def test_policy_all_keeps_every_frame_up_to_the_bound() -> None:
    state = schedule("all", max_frames=6)
    for frame in range(20):
        show(state, 1)
        assert (
            sorted(tags_in(state.memory)) == [0, *range(max(1, frame - 4), frame + 1)][: frame + 1]
        )


def test_a_matching_state_goes_on_identically_after_a_round_trip() -> None:
    one, other = schedule("every-5", max_frames=4), schedule("every-5", max_frames=4)
    for frame in range(13):
        show(one, 2 if frame >= 4 else 1)
    other.restore(one.tensors(), 2)
    for _ in range(9):
        for state in (one, other):
            show(state, 2)
        assert [tags_in(one.memory, g) for g in (0, 1)] == [
            tags_in(other.memory, g) for g in (0, 1)
        ]


def test_a_forgotten_object_leaves_its_slot_to_the_last() -> None:
    state = schedule("every-5")
    for frame in range(3):
        show(state, min(frame + 1, 2))
    state.forget(0)
    assert state.object_count == 1
    assert tags_in(state.memory) == [1, 2]
    show(state, 2, prompted=(1,))  # a newcomer in the freed slot
    assert (tags_in(state.memory, 0), tags_in(state.memory, 1)) == ([1, 3], [3])
