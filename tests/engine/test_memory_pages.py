"""Memory pages: allocated on demand, freed, and limited by the budget."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from stored_memory import positions

from vosengine.errors import CapacityError
from vosengine.memory import MemoryBank, PagePools, Pages

CPU = torch.device("cpu")
CELLS, KEY, VALUE = 2, 3, 5
PAGE = 4 * CELLS * (KEY + VALUE)  # bytes


def pool_of(pools: PagePools, cells: int = CELLS) -> Pages:
    return pools.of(cells, (KEY, VALUE), device=CPU, dtype=torch.float32)


def show(bank: MemoryBank, tags: list[float], keep: bool = True) -> None:
    """Write a frame of len(tags) objects, every element equal to the object's tag."""
    row = torch.tensor(tags)[:, None, None]
    bank.write(row.expand(-1, CELLS, KEY), row.expand(-1, CELLS, VALUE), [keep] * len(tags))


def tags_of(bank: MemoryBank, group: int) -> list[float]:
    keys, values = positions(bank.read(group + 1), group)
    assert torch.equal(keys[:, 0], values[:, 0])
    return keys[::CELLS, 0].tolist()


def test_what_is_not_used_takes_nothing() -> None:
    pools = PagePools()
    bank = MemoryBank(10, 20, pool_of(pools))
    assert (pools.used, pools.nbytes) == (0, 0)
    for frame in range(5):
        show(bank, [frame], keep=frame % 2 == 0)
    assert (pools.used, bank.held_bytes) == (3, 3 * PAGE)  # 0, 2 and 4
    assert bank.nbytes == 10 * 20 * PAGE


def test_streams_share_a_pool_and_never_a_page() -> None:
    pools = PagePools()
    banks = [MemoryBank(2, 3, pool_of(pools)) for _ in range(3)]
    for frame in range(6):
        for number, bank in enumerate(banks):
            show(bank, [100.0 * number + frame, 100.0 * number + 50 + frame])
    for number, bank in enumerate(banks):
        for group in range(2):
            begin = 100 * number + 50 * group
            assert sorted(tags_of(bank, group)) == [begin, begin + 4, begin + 5]
    assert pools.used == 3 * 2 * 3


def test_growing_moves_what_is_there() -> None:
    pools = PagePools()
    bank = MemoryBank(1, 40, pool_of(pools))
    versions = set()
    for frame in range(40):
        show(bank, [frame])
        versions.add(pools.version)
        assert tags_of(bank, 0) == list(range(frame + 1))
    assert versions == {1, 2, 3, 4}  # 8, 16, 32 and 64 pages


def test_past_the_budget_a_frame_is_refused_and_nothing_has_changed() -> None:
    pools = PagePools(budget=4 * PAGE + 1)
    one, other = (MemoryBank(2, 3, pool_of(pools)) for _ in range(2))
    show(one, [1, 2])
    show(other, [3])
    before = pools.used, other.length.tolist(), other.cursor.tolist(), tags_of(other, 0)
    sizes = r"wanted 2 pages of 6\.1e-05 MiB .* 3 in use, and the budget of 0\.0002451 MiB .* 4 in"
    with pytest.raises(CapacityError, match=sizes):
        show(other, [4, 5])
    after = pools.used, other.length.tolist(), other.cursor.tolist(), tags_of(other, 0)
    assert after == before
    one.release()
    show(other, [4, 5])
    assert (tags_of(other, 0), tags_of(other, 1)) == ([3, 4], [5])


@pytest.mark.slow
def test_pages_come_back_by_forgetting_releasing_and_as_garbage() -> None:
    pools = PagePools()
    bank, kept = (MemoryBank(3, 4, pool_of(pools)) for _ in range(2))
    show(kept, [9])
    for frame in range(3):
        show(bank, [frame, 10 + frame, 20 + frame])
    bank.forget(0, 3)
    assert pools.used == 1 + 6
    assert (tags_of(bank, 0), tags_of(bank, 1)) == ([20, 21, 22], [10, 11, 12])
    bank.release()
    assert pools.used == 1
    show(bank, [5, 6])
    del bank
    gc.collect()
    assert pools.used == 1
    assert tags_of(kept, 0) == [9]


def test_a_pool_that_holds_nothing_makes_room_for_another() -> None:
    pools = PagePools(budget=8 * PAGE)
    small, large = pool_of(pools), pool_of(pools, cells=2 * CELLS)
    pages = small.take(8)
    with pytest.raises(CapacityError):
        large.take(1)
    small.give(pages)
    assert large.take(4) == [0, 1, 2, 3]
    assert (small.capacity, pools.nbytes) == (0, 8 * PAGE)
    with pytest.raises(CapacityError):
        small.take(1)


@pytest.mark.slow
def test_none_leaks_over_ten_thousand_opens_and_closes() -> None:
    pools = PagePools(budget=400 * PAGE)
    draw = random.Random(0)
    banks: list[tuple[MemoryBank, int]] = []
    refused = 0
    for number in range(10_000):
        if banks and draw.random() < 0.5:
            bank, _ = banks.pop(draw.randrange(len(banks)))
            if draw.random() < 0.5:
                bank.release()
        else:
            bank, count = MemoryBank(3, 4, pool_of(pools)), draw.randint(1, 3)
            try:
                for frame in range(draw.randint(1, 6)):
                    show(bank, [float(number)] * count, keep=frame % 2 == 0)
            except CapacityError:
                refused += 1
            banks.append((bank, number))
        del bank
        assert pools.used * PAGE == sum(memory.held_bytes for memory, _ in banks)
        assert pools.nbytes <= 400 * PAGE
    assert refused > 0
    for bank, number in banks:
        for group in range(sum(map(bool, bank.length.tolist()))):
            assert set(tags_of(bank, group)) == {number}
    banks.clear()
    del bank
    gc.collect()
    assert pools.used == 0


def test_a_saved_memory_takes_the_pages_that_it_needs() -> None:
    pools = PagePools()
    one, other = (MemoryBank(2, 6, pool_of(pools)) for _ in range(2))
    show(one, [1])
    for frame in range(3):
        show(one, [2 + frame, 12 + frame])
    show(other, [7, 8])
    other.restore(one.tensors(2))
    assert [tags_of(other, group) for group in range(2)] == [[1, 2, 3, 4], [12, 13, 14]]
    assert pools.used == 2 * (4 + 3)
    for bank in (one, other):
        show(bank, [5, 15])
    assert [tags_of(other, g) for g in range(2)] == [tags_of(one, g) for g in range(2)]
