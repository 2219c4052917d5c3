"""Objects discovered by a method: ids, capacity, and interaction with prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import make, tiny_config
from quick_streams import stream_state

from vosengine.engine.objects import ObjectSlots
from vosengine.engine.segmenter import Segmenter
from vosengine.errors import InputError
from vosengine.models.method import Method, State
from vosengine.proposals import Proposals, boxes_of, to_network
from vosengine.types import Geometry, Masks, Scores

FRAME = np.zeros((64, 64, 3), np.uint8)
STRIPE = 8  # rows of a frame that belong to an object


class ScriptState(State):
    """Stripe of each slot, and the arguments of `remember`."""

    def __init__(self) -> None:
        self.stripes: list[int] = []
        self.told: list[tuple[object, tuple[int, ...]]] = []

    def forget(self, slot: int) -> None:
        self.stripes[slot] = self.stripes[-1]
        self.stripes.pop()
        self.object_count -= 1

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"stripes": torch.tensor(self.stripes)}

    def restore(self, tensors: dict[str, torch.Tensor], object_count: int) -> None:
        self.stripes, self.object_count = tensors["stripes"].tolist(), object_count


class ScriptFeatures(NamedTuple):
    number: torch.Tensor


class Script(Method[ScriptFeatures, ScriptState]):
    """Method that discovers the stripes its script lists for each frame, and tracks them in place.

    Every stripe is STRIPE rows of the frame, top to bottom; stride 4.
    """

    needs_mask = False
    takes_proposals = True
    features = ScriptFeatures

    def __init__(self, script: dict[int, list[int]], ahead: int = 0) -> None:
        super().__init__()
        self.sees = (0, ahead) if ahead else (0,)
        self.config = tiny_config("stm")
        self.script = script
        self.encoded = 0
        self.given: list[Proposals] = []

    def start(
        self, geometry: Geometry, max_objects: int, memory: object = None, pools: object = None
    ) -> ScriptState:
        return ScriptState()

    def encode(
        self, frames: torch.Tensor, proposals: Sequence[Proposals] | None = None
    ) -> ScriptFeatures:
        self.given += proposals or []
        self.encoded += 1
        return ScriptFeatures(torch.tensor([self.encoded - 1]))

    def segment(self, seen: Sequence[ScriptFeatures], state: ScriptState) -> Scores:
        index = int(seen[0].number)
        rows = torch.full((len(state.stripes) + len(self.script.get(index, [])), 16, 16), -9.0)
        for row, stripe in enumerate([*state.stripes, *self.script.get(index, [])]):
            rows[row, 2 * stripe : 2 * stripe + 2] = 9
        return Scores(rows, stride=4, aux=f"frame {index}")

    def remember(self, seen: Sequence[ScriptFeatures], masks: Masks, state: ScriptState) -> None:
        state.told.append((masks.aux, masks.prompted))
        top = masks.probabilities[1:].mean(dim=2).argmax(dim=1) // STRIPE
        state.stripes = top.tolist()
        state.object_count = masks.object_count


def scripted(script: dict[int, list[int]], ahead: int = 0, **options: int) -> Segmenter:
    segmenter = make("stm", **options)
    segmenter.runs_on.method = Script(script, ahead)
    segmenter.reset()
    return segmenter


def stripe(number: int, object_id: int) -> np.ndarray:
    mask = np.zeros((64, 64), np.uint8)
    mask[STRIPE * number : STRIPE * (number + 1)] = object_id
    return mask


def test_the_smallest_unused_ids_are_given() -> None:
    slots = ObjectSlots(5)
    assert slots.unused(2, ()) == (1, 2)
    slots.assign([1, 2])
    slots.remove(1)
    assert slots.unused(2, (4,)) == (3, 5)  # neither 1 again nor the named 4
    assert slots.unused(9, ()) == (3, 4, 5, 6)  # room for four beside 2
    assert slots.unused(9, (7, 8, 9, 10)) == ()
    slots.ever |= set(range(1, 255))
    assert slots.unused(3, ()) == (255,)


def test_reserved_ids_and_their_room_are_the_callers() -> None:
    slots = ObjectSlots(4)
    slots.reserve([1, 9])
    assert slots.unused(9, ()) == (2, 3)
    slots.assign([2, 3])
    assert slots.unused(1, ()) == ()
    slots.assign([2, 3, 9])  # the caller's comes: its room was its own
    assert slots.unused(1, ()) == ()
    slots.remove(3)
    assert slots.unused(2, ()) == (4,)
    for ids, message in (([0], "1..255, given"), ([256], "1..255"), ([5, 6], "5 objects .* = 4")):
        with pytest.raises(InputError, match=message):
            slots.reserve(ids)


def test_reserved_ids_stay_so_in_a_saved_stream(tmp_path: Path) -> None:
    segmenter = scripted({0: [0], 1: [3]})
    segmenter.reserve([1, 3])
    assert segmenter.step(FRAME).ids == (2,)  # type: ignore[union-attr]
    segmenter.save_state(tmp_path / "s.safetensors")
    again = scripted({0: [3]})
    again.load_state(tmp_path / "s.safetensors")
    assert again.step(FRAME).ids == (2, 4)  # type: ignore[union-attr]
    again.reset()
    assert again.step(FRAME).ids != (2, 4)  # type: ignore[union-attr]


def test_discovered_objects_have_stable_ids_that_are_never_given_again() -> None:
    segmenter = scripted({0: [0, 3], 2: [5], 4: [1]})
    ids = []
    for index in range(6):
        if index == 3:
            segmenter.remove(2)
        result = segmenter.step(FRAME)
        assert result is not None
        ids.append(result.ids)
        for object_id in result.ids:
            wanted = stripe({1: 0, 2: 3, 3: 5, 4: 1}[object_id], 1)
            np.testing.assert_array_equal(result.numpy() == object_id, wanted == 1)
    assert ids == [(1, 2), (1, 2), (1, 2, 3), (1, 3), (1, 3, 4), (1, 3, 4)]


def test_what_segment_noted_reaches_remember() -> None:
    segmenter = scripted({0: [0]})
    segmenter.step(FRAME)
    segmenter.step(FRAME, stripe(4, 9))
    assert stream_state(segmenter).told == [("frame 0", ()), ("frame 1", (1,))]


def test_more_than_there_is_room_for_are_left_out() -> None:
    segmenter = scripted({0: [0, 1], 1: [2, 3, 4], 2: [4]}, max_objects=3)
    results = [segmenter.step(FRAME) for _ in range(3)]
    assert [result and result.ids for result in results] == [(1, 2), (1, 2, 3), (1, 2, 3)]
    segmenter.remove(1)
    assert segmenter.ids == (2, 3)
    with pytest.raises(InputError, match="more than max_objects = 3"):
        segmenter.step(FRAME, stripe(6, 20) + stripe(7, 21))


def test_a_discovery_under_the_prompt_is_the_prompts_object() -> None:
    """Frame 0 discovers stripes 0 and 4; the caller names stripe 4 as 7, and half of it."""
    for mask, ids in (
        (stripe(4, 7), (1, 7)),
        (np.where(np.arange(64) < 40, stripe(4, 7), 0), (1, 7)),
        (np.where(np.arange(64) < 20, stripe(4, 7), 0), (1, 2, 7)),
    ):
        segmenter = scripted({0: [0, 4]})
        result = segmenter.step(FRAME, mask)
        assert result is not None
        assert result.ids == ids
        np.testing.assert_array_equal(result.numpy() == 7, mask == 7)
        np.testing.assert_array_equal(result.numpy() == 1, stripe(0, 1) == 1)


def test_a_discovery_never_takes_an_id_that_a_prompt_names() -> None:
    segmenter = scripted({0: [0], 1: [2], 2: [3]}, ahead=1)
    assert segmenter.latency == 1
    prompts = [None, stripe(6, 1), None]
    ids = [r.ids for p in prompts if (r := segmenter.step(FRAME, p)) is not None]
    ids += [result.ids for result in segmenter.flush()]
    # Frame 0 is answered when the mask of frame 1, which names 1, is already known.
    assert ids == [(2,), (1, 2, 3), (1, 2, 3, 4)]


def test_ids_once_given_are_remembered_in_a_saved_stream(tmp_path: Path) -> None:
    segmenter = scripted({0: [0, 1], 2: [5]})
    segmenter.step(FRAME)
    segmenter.remove(2)
    segmenter.step(FRAME)
    segmenter.save_state(tmp_path / "stream.safetensors")
    other = scripted({0: [5]})
    other.load_state(tmp_path / "stream.safetensors")
    result = other.step(FRAME)
    assert result is not None
    assert result.ids == (1, 3)


# Proposals from the caller


def proposals(count: int = 2, size: tuple[int, int] = (64, 64)) -> Proposals:
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for index in range(count):
        masks[index, 8 * index : 8 * index + 8, 16:32] = True
    boxes = torch.tensor([[16.0, 8 * i, 32, 8 * i + 8] for i in range(count)]).view(count, 4)
    return Proposals(boxes, masks, torch.ones(count))


def test_a_source_is_asked_once_a_frame_and_its_proposals_are_fitted_to_the_network() -> None:
    calls = []

    def source(frame: torch.Tensor, index: int) -> Proposals:
        calls.append((tuple(frame.shape), frame.dtype, index))
        return proposals(index, (64, 80))

    segmenter = scripted({}, size=32)
    segmenter.proposals = source
    for _ in range(3):
        segmenter.step(np.zeros((64, 80, 3), np.uint8))
    assert calls == [((64, 80, 3), torch.uint8, index) for index in range(3)]
    # 64 x 80 at half the size is 32 x 40, with 4 columns of padding on each side.
    assert [tuple(fitted.masks.shape) for fitted in segmenter.method.given] == [
        (count, 32, 48) for count in range(3)
    ]
    last = segmenter.method.given[2]
    assert last.boxes.tolist() == [[12, 0, 20, 4], [12, 4, 20, 8]]
    for box, mask in zip(last.boxes.int().tolist(), last.masks, strict=True):
        left, top, right, bottom = box
        assert mask[top:bottom, left:right].all()
        assert int(mask.sum()) == (right - left) * (bottom - top)


def test_proposals_are_stretched_with_the_frame() -> None:
    geometry = Geometry.fit((64, 80), size=(32, 120), multiple=16)  # 4 columns of padding
    fitted = to_network(proposals(2, (64, 80)), geometry, torch.device("cpu"))
    assert fitted.boxes.tolist() == [[28, 0, 52, 4], [28, 4, 52, 8]]
    assert fitted.masks.shape == (2, 32, 128)
    assert torch.equal(boxes_of(fitted.masks), fitted.boxes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": torch.zeros(2, 64, 60, dtype=torch.bool)}, r"masks: wanted \[2, 64, 64\]"),
        ({"masks": torch.zeros(2, 64, 64)}, "masks: wanted bool"),
        ({"boxes": torch.zeros(3, 4)}, r"boxes: wanted \[2, 4\], given \[3, 4\]"),
        ({"scores": torch.zeros(2, 1)}, r"scores: wanted \[2\], given \[2, 1\]"),
        ({"embeddings": torch.zeros(3, 8)}, r"embeddings: wanted \[2, E\], given \[3, 8\]"),
    ],
)
def test_bad_proposals_are_refused_before_anything_changes(
    changes: dict[str, torch.Tensor], message: str
) -> None:
    segmenter = scripted({0: [0]})
    segmenter.step(FRAME)
    segmenter.proposals = lambda frame, index: replace(proposals(), **changes)
    with pytest.raises(InputError, match="^proposals: " + message):
        segmenter.step(FRAME)
    assert (segmenter.frame_count, segmenter.ids) == (1, (1,))
    segmenter.proposals = None
    assert segmenter.step(FRAME) is not None
