"""Object ids and slots, merging of prompts, and mapping to the input frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vosengine.engine.objects import ObjectSlots
from vosengine.engine.postprocess import finish, labels_of, make_prompt, merge_prompt
from vosengine.errors import InputError
from vosengine.frames import crop, resize_labels
from vosengine.types import Geometry, Scores


def slots(*ids: int, capacity: int = 4) -> ObjectSlots:
    """Return slots with ids assigned in that order."""
    made = ObjectSlots(capacity)
    made.assign(ids)
    return made


def probabilities(rows: int, height: int = 4, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, height, width, generator=generator).softmax(dim=0)


def prompt_of(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def blocks(size: tuple[int, int], *corners: tuple[int, int, int, int, int]) -> torch.Tensor:
    """Return labels of that size with rectangles (id, top, bottom, left, right)."""
    labels = torch.zeros(size, dtype=torch.uint8)
    for object_id, top, bottom, left, right in corners:
        labels[top:bottom, left:right] = object_id
    return labels


# Slots


def test_slots_are_given_in_order_of_arrival_and_ids_may_have_gaps() -> None:
    made = slots()
    assert len(made) == 0
    made.assign(made.joined_by((200, 7)))
    assert made.in_slot_order == (7, 200)
    made.assign(made.joined_by((9, 7, 3)))
    assert made.in_slot_order == (7, 200, 3, 9)
    assert made.ascending == (3, 7, 9, 200)
    assert [made.slot(object_id) for object_id in (7, 200, 3, 9)] == [0, 1, 2, 3]
    assert 200 in made
    assert 1 not in made
    assert len(made) == 4


def test_joined_by_changes_nothing_until_assigned() -> None:
    made = slots(5)
    assert made.joined_by((1, 5)) == (5, 1)
    assert made.in_slot_order == (5,)


def test_a_removed_objects_slot_goes_to_the_last_and_its_id_may_come_back() -> None:
    made = slots(7, 2, 5)
    assert made.remove(7) == 0
    assert made.in_slot_order == (5, 2)
    made.assign(made.joined_by((7,)))
    assert made.in_slot_order == (5, 2, 7)
    assert made.remove(7) == 2
    assert made.remove(2) == 1
    assert made.remove(5) == 0
    assert made.in_slot_order == ()


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6)), max_size=30))
@pytest.mark.slow
def test_slots_follow_what_a_memory_does(steps: list[tuple[bool, int]]) -> None:
    """Rows move as `forget` specifies: the last one into the freed one."""
    made, rows = slots(capacity=6), []
    for joins, object_id in steps:
        if joins:
            made.assign(made.joined_by((object_id,)))
            if object_id not in rows:
                rows.append(object_id)
        elif object_id in made:
            slot = made.remove(object_id)
            assert rows[slot] == object_id
            rows[slot] = rows[-1]
            rows.pop()
        assert made.in_slot_order == tuple(rows)
        assert made.ascending == tuple(sorted(rows))


def test_more_objects_than_the_capacity_are_refused_with_the_numbers() -> None:
    made = slots(7, 2, capacity=3)
    made.check_room((2, 7, 9))
    with pytest.raises(InputError) as caught:
        made.check_room((9, 2, 30))
    message = str(caught.value)
    assert "4 objects [2, 7, 9, 30]" in message
    assert "max_objects = 3" in message
    assert made.in_slot_order == (7, 2)


# Prompts


def test_the_ids_of_a_prompt_are_ascending_and_without_the_background() -> None:
    assert make_prompt(prompt_of([[0, 255], [3, 255]]), CPU).ids == (3, 255)
    assert make_prompt(prompt_of([[0, 0]]), CPU).ids == ()


def test_prompted_pixels_are_one_hot_and_all_rows_sum_to_one() -> None:
    predicted, ids = probabilities(2), (2, 5, 7)
    prompt = prompt_of([[5, 5, 0, 0, 7, 7]] + [[0] * 6] * 3)
    merged = merge_prompt(predicted, (2,), prompt, ids)
    assert merged.shape == (4, 4, 6)
    one_hot = torch.tensor([[False, o == 2, o == 5, o == 7] for o in (5, 7)]).T.float()
    assert torch.equal(merged[:, 0, [0, 4]], one_hot)
    assert torch.equal(merged[:, 0, [1, 5]], one_hot)
    torch.testing.assert_close(merged.sum(dim=0), torch.ones(4, 6))
    assert torch.equal(labels_of(merged, ids)[0, [0, 1, 4, 5]], prompt[0, [0, 1, 4, 5]])


def test_the_others_odds_stay_as_they_were_elsewhere() -> None:
    predicted = probabilities(3)
    prompt = blocks((4, 6), (6, 0, 2, 0, 3))
    prompt[3, 5] = 8
    merged = merge_prompt(predicted, (1, 9), prompt, (1, 6, 8, 9))
    free = prompt == 0
    for row, old_row in ((1, 1), (4, 2)):  # objects 1 and 9, against the background
        odds, old = merged[row] / merged[0], predicted[old_row] / predicted[0]
        torch.testing.assert_close(odds[free], old[free])
    assert merged[2][free].max() == 0
    assert merged[3][free].max() == 0


def test_merging_leaves_its_arguments_alone() -> None:
    predicted, prompt = probabilities(2), blocks((4, 6), (3, 0, 2, 0, 2))
    before = predicted.clone(), prompt.clone()
    merge_prompt(predicted, (1,), prompt, (1, 3))
    assert torch.equal(predicted, before[0])
    assert torch.equal(prompt, before[1])


def test_a_tie_goes_to_the_background_and_then_to_the_lower_id() -> None:
    rows = torch.tensor([[0.4, 0.2, 0.1], [0.4, 0.4, 0.3], [0.2, 0.4, 0.6]])[:, None]
    assert labels_of(rows, (3, 200)).tolist() == [[0, 3, 200]]
    assert labels_of(rows, (3, 200)).dtype == torch.uint8


# Finishing

CPU = torch.device("cpu")
NATIVE = Geometry.fit((40, 58), size=None, multiple=16)  # padded to 48 x 64
RESIZED = Geometry.fit((60, 87), size=40, multiple=16)  # 40 x 58, padded to 48 x 64


def halves(order: tuple[str, ...]) -> Scores:
    """Return logits in slot order: an object on the left half, one on the right, one absent."""
    logits = torch.full((len(order), 12, 16), -9.0)
    for row, where in enumerate(order):
        side = {"left": slice(0, 8), "right": slice(8, 16), "nowhere": slice(0, 0)}[where]
        logits[row, :, side] = 9.0
    return Scores(logits, stride=4)


@pytest.mark.parametrize("geometry", [NATIVE, RESIZED], ids=["native", "resized"])
def test_slots_in_another_order_than_the_ids_give_the_right_ids(geometry: Geometry) -> None:
    result, masks, by_slot = finish(halves(("left", "right")), None, slots(7, 2), geometry, 11, CPU)
    height, width = geometry.frame
    assert (result.ids, by_slot, result.frame_index) == ((2, 7), (7, 2), 11)
    assert result.labels.shape == geometry.frame
    assert result.labels.dtype == torch.uint8
    middle = width * 29 / 58
    columns = torch.arange(width) + 0.5
    wanted = torch.where(columns < middle, 7, 2).to(torch.uint8).expand(height, width)
    away = (columns - middle).abs() > 3
    assert torch.equal(result.labels[:, away], wanted[:, away])
    # The answer's rows are by id, the memory's by slot.
    assert result.probabilities.shape == (3, height, width)
    assert result.probabilities[2, :, 0].min() > 0.99
    assert result.probabilities[1, :, -1].min() > 0.99
    seen = crop(masks.probabilities, geometry)
    assert seen[1, :, 0].min() > 0.99
    assert seen[2, :, -1].min() > 0.99
    assert masks.prompted == ()


def test_the_memorys_masks_have_the_networks_size_and_nothing_in_the_padding() -> None:
    for geometry in (NATIVE, RESIZED):
        _, masks, _ = finish(halves(("left", "right")), None, slots(7, 2), geometry, 0, CPU)
        assert masks.object_count == 2
        assert masks.probabilities.shape == (3, *geometry.network)
        inside = crop(masks.probabilities, geometry)
        torch.testing.assert_close(inside.sum(dim=0), torch.ones(geometry.resized))
        assert masks.probabilities.sum().item() == pytest.approx(inside.numel() / 3)


@pytest.mark.parametrize("geometry", [NATIVE, RESIZED], ids=["native", "resized"])
def test_the_first_frames_labels_are_the_prompt_pixel_by_pixel(geometry: Geometry) -> None:
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 4, geometry.frame, generator=generator).to(torch.uint8) * 60
    result, masks, by_slot = finish(None, make_prompt(prompt, CPU), slots(), geometry, 0, CPU)
    assert torch.equal(result.labels, prompt)
    assert result.ids == by_slot == (60, 120, 180)
    assert masks.prompted == (0, 1, 2)
    table = torch.tensor([0, *result.ids])
    assert torch.equal(result.probabilities, (prompt == table[:, None, None]).float())
    small = resize_labels(prompt, geometry.resized)
    wanted = (small == table[:, None, None]).float()
    assert torch.equal(crop(masks.probabilities, geometry), wanted)


@pytest.mark.parametrize("geometry", [NATIVE, RESIZED], ids=["native", "resized"])
def test_a_later_prompt_adds_its_object_and_leaves_the_others(geometry: Geometry) -> None:
    height, width = geometry.frame
    prompt = blocks(geometry.frame, (4, 0, height, 0, width // 4))
    scores = halves(("left", "right"))
    result, masks, by_slot = finish(scores, make_prompt(prompt, CPU), slots(7, 2), geometry, 3, CPU)
    assert (result.ids, by_slot, masks.prompted) == ((2, 4, 7), (7, 2, 4), (2,))
    assert torch.equal(result.labels == 4, prompt == 4)
    assert (result.labels[:, width // 4 : width // 2 - 3] == 7).all()
    assert (result.labels[:, width // 2 + 3 :] == 2).all()
    inside = crop(masks.probabilities, geometry)
    assert torch.equal(inside[3], (resize_labels(prompt, geometry.resized) == 4).float())
    assert inside[2, :, -1].min() > 0.99
    torch.testing.assert_close(inside.sum(dim=0), torch.ones(geometry.resized))
    assert torch.equal(labels_of(result.probabilities, result.ids), result.labels)


@pytest.mark.parametrize("geometry", [NATIVE, RESIZED], ids=["native", "resized"])
def test_a_corrected_object_keeps_its_slot_and_leaves_its_old_place(geometry: Geometry) -> None:
    width = geometry.frame[1]
    prompt = blocks(geometry.frame, (7, 5, 9, width - 9, width))  # 7 was on the left
    scores = halves(("left", "nowhere"))
    result, masks, by_slot = finish(scores, make_prompt(prompt, CPU), slots(7, 2), geometry, 3, CPU)
    assert (result.ids, by_slot, masks.prompted) == ((2, 7), (7, 2), (0,))
    assert torch.equal(result.labels, prompt)
    # Object 2 is nowhere, and does not inherit what 7 was sure of and loses.
    assert result.probabilities[1].max() < 0.001
    assert crop(masks.probabilities, geometry)[2].max() < 0.001


def test_when_every_object_is_corrected_the_rest_is_background() -> None:
    prompt = blocks(NATIVE.frame, (7, 5, 9, 40, 50), (2, 20, 30, 3, 9))
    result, masks, by_slot = finish(
        halves(("left", "right")), make_prompt(prompt, CPU), slots(7, 2), NATIVE, 3, CPU
    )
    assert torch.equal(result.labels, prompt)
    assert (by_slot, masks.prompted) == ((7, 2), (0, 1))
    assert result.probabilities.unique().tolist() == [0, 1]


def test_without_objects_all_is_background() -> None:
    result, masks, by_slot = finish(None, None, slots(), RESIZED, 2, CPU)
    assert (result.ids, by_slot, masks.object_count) == ((), (), 0)
    assert result.labels.shape == RESIZED.frame
    assert result.labels.max() == 0
    assert torch.equal(result.probabilities, torch.ones(1, *RESIZED.frame))
    assert torch.equal(crop(masks.probabilities, RESIZED), torch.ones(1, *RESIZED.resized))


@pytest.mark.parametrize(
    "given_ids", [7, np.int64(7), torch.tensor(7), [7], (7, 7), {7}, iter([7])]
)
def test_ids_that_live_come_in_any_form(given_ids: Any) -> None:
    assert slots(2, 7, 5).living(given_ids) == (7,)


def test_ids_that_live_keep_their_order() -> None:
    assert slots(2, 7, 5).living(np.array([5, 2])) == (5, 2)
    assert slots(2, 7, 5).living([]) == ()


@pytest.mark.parametrize(
    ("given_ids", "message"),
    [
        (9, "no object 9; alive: 2, 5, 7$"),
        ([2, 9, 7, 8], "no object 9, 8; alive: 2, 5, 7$"),
        ("7", "wanted one object id or several, given '7'"),
        (7.0, "wanted one object id or several, given 7.0"),
        ([7, None], r"wanted one object id or several, given \[7, None\]"),
        (None, "wanted one object id or several, given None"),
    ],
)
def test_what_does_not_live_is_named(given_ids: Any, message: str) -> None:
    with pytest.raises(InputError, match="^remove: " + message):
        slots(2, 7, 5).living(given_ids)


def test_what_lies_mostly_under_the_prompt_is_not_discovered() -> None:
    slots = ObjectSlots(4)
    slots.assign([1])
    assert slots.discovered([(6, 10), (5, 10), (0, 0), (0, 3)], [2]) == [(3, 2), (4, 3)]
    assert slots.discovered([], []) == []
