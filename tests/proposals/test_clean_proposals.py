"""A detector's output is cleaned once, for every source and every model: what is left out is never
taken for an object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make
from exported import Export, answers
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_streams import assert_same, begin, play, quarters

from vosengine import OnnxSegmenter
from vosengine.detectors.file import FileSource, write_proposals
from vosengine.errors import InputError
from vosengine.onnx import proposals as arrays
from vosengine.onnx.proposals import FrameProposals
from vosengine.proposals import Proposals, boxes_of, clean
from vosengine.training.synthetic import Clip

SIZE = 48, 64


def square(top: int, left: int, height: int = 20, width: int = 24) -> torch.Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


GOOD, OTHER = square(8, 10), square(30, 38, 16, 22)
JUNK: dict[str, tuple[torch.Tensor, list[float] | None]] = {
    "empty mask": (square(0, 0, 0, 0), [30, 30, 40, 40]),
    "below the smallest size": (square(36, 50, 3, 5), None),
    "exact double": (GOOD, None),
    "exact double in another box": (GOOD, [0, 0, 64, 48]),
    "box without area": (square(0, 40, 6, 20), [40, 0, 40, 6]),
    "box outside the frame": (square(0, 40, 6, 20), [70, 10, 90, 30]),
}


def with_junk(*junk: str, lesser: float = 0.5) -> Proposals:
    """The good proposal, then junk."""
    masks = torch.stack([GOOD, *(JUNK[name][0] for name in junk)])
    boxes = boxes_of(masks)
    for row, name in enumerate(junk, start=1):
        given_box = JUNK[name][1]
        if given_box is not None:
            boxes[row] = torch.tensor(given_box)
    return Proposals(boxes, masks, torch.tensor([0.9] + [lesser] * len(junk)))


def tracker(source: Callable[..., Proposals]) -> Any:
    """A model that follows distinctly coloured objects, as in `scene`."""
    changes = {"refiner": "none", "tracker_size": 128, "tracker_width": 16, "target_channels": 16}
    return make("target_aware", changes={**changes, "augmentations": 1}, proposals=source)


def scene() -> np.ndarray:
    """uint8 [48, 64, 3]: GOOD in red, OTHER in blue, on noise."""
    frame = np.random.default_rng(0).integers(90, 110, (*SIZE, 3)).astype(np.uint8)
    frame[GOOD.numpy()] = 230, 20, 20
    frame[OTHER.numpy()] = 20, 20, 240
    return frame


# Recipes


@pytest.mark.parametrize("junk", [*([name] for name in JUNK), list(JUNK)], ids=str)
@pytest.mark.slow
def test_junk_begins_no_object_and_leaves_room_for_the_caller(
    junk: list[str], tmp_path: Path
) -> None:
    """A callable source, and the same proposals from a file; finally with a prompt."""
    frames = 19 if len(junk) > 1 else 3
    write_proposals(tmp_path / "p.json", [with_junk(*junk)] * (frames + 1))
    for source in (lambda image, index: with_junk(*junk), FileSource(tmp_path / "p.json"))[
        : frames // 3
    ]:
        segmenter = tracker(source)
        for _ in range(frames):
            assert segmenter.step(scene()).ids == (1,)
        prompt = np.where(OTHER.numpy(), 30, 0).astype(np.uint8)
        assert segmenter.step(scene(), prompt).ids == (1, 30)


def test_an_object_seen_twice_in_a_frame_begins_one_track() -> None:
    """For example in two classes, with slightly different masks. Objects side by side are two."""
    masks = torch.stack([GOOD, square(9, 10), OTHER])
    twice = Proposals(boxes_of(masks), masks, torch.tensor([0.9, 0.8, 0.7]))
    segmenter = tracker(lambda image, index: twice)
    first = segmenter.step(scene())
    np.testing.assert_array_equal(first.numpy() == 1, GOOD.numpy())
    np.testing.assert_array_equal(first.numpy() == 2, OTHER.numpy())
    assert all(segmenter.step(scene()).ids == (1, 2) for _ in range(3))


def spoilt(frame: torch.Tensor, index: int) -> Proposals:
    """`quarters`, and every kind of junk before, between and after them."""
    good, junk = quarters(frame, index), with_junk(*JUNK)
    order = torch.tensor([4, 0, 5, 1, 6, 2, 7, 3, 8])

    def both(name: str) -> torch.Tensor:
        extra = getattr(junk, name)[1:]
        if name == "masks":
            extra = extra.clone()
            extra[[2, 3]] = good.masks[0]  # doubles of the best one
            extra[1] = False
        return torch.cat((getattr(good, name), extra[:5]))[order]

    return Proposals(both("boxes"), both("masks"), both("scores"))


@pytest.mark.slow
def test_junk_changes_no_answer_of_any_model(small: Clip) -> None:
    for model in ("dmn_aoa", "target_aware"):
        wanted = play(begin(model, proposals=quarters), small.frames[:4], {0: small.masks[0]})
        results = play(begin(model, proposals=spoilt), small.frames[:4], {0: small.masks[0]})
        assert_same(results, wanted)


def test_junk_changes_no_answer_of_an_export(export: Export, small: Clip) -> None:
    engine = OnnxSegmenter(export("dmn_aoa"), providers=["CPUExecutionProvider"], threads=1)
    results = []
    for source in (quarters, spoilt):

        def seen_as_arrays(frame: np.ndarray, index: int, source: Any = source) -> FrameProposals:
            proposals = source(torch.from_numpy(frame), index)
            return FrameProposals(
                *(x.numpy() for x in (proposals.boxes, proposals.masks, proposals.scores))
            )

        engine.policy.ask(seen_as_arrays)
        engine.reset()
        results.append(answers(engine, list(small.frames[:3]), {0: small.masks[0]}))
    np.testing.assert_array_equal(*map(np.stack, results))


def test_a_score_that_is_no_number_is_refused_by_name(small: Clip) -> None:
    bad = replace(with_junk("empty mask"), scores=torch.tensor([0.9, torch.nan]))
    message = r"^proposals: scores: wanted finite numbers, given nan \(number 1\)"
    for model in ("dmn_aoa", "target_aware"):
        segmenter = begin(model, proposals=lambda image, index: bad)
        with pytest.raises(InputError, match=message):
            segmenter.step(small.frames[0], small.masks[0])
        assert segmenter.frame_count == 0
    with pytest.raises(InputError, match=message):
        arrays.check_proposals(
            FrameProposals(bad.boxes.numpy(), bad.masks.numpy(), bad.scores.numpy()), SIZE
        )


# The rule


def plain_clean(proposals: Proposals, smallest: int) -> list[int]:
    """The definition, one by one."""
    kept: list[int] = []
    scores = proposals.scores.tolist()
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        left, top, right, bottom = proposals.boxes[i].tolist()
        height, width = proposals.masks.shape[1:]
        has_area = min(right, width) > max(left, 0) and min(bottom, height) > max(top, 0)
        double = any(torch.equal(proposals.masks[i], proposals.masks[j]) for j in kept)
        if has_area and int(proposals.masks[i].sum()) >= smallest and not double:
            kept.append(i)
    return sorted(kept)


@st.composite
def crowds(draw: st.DrawFn) -> Proposals:
    """Small masks of few shapes, so that many are equal; boxes of their own."""
    count = draw(st.integers(0, 9))
    rows = [draw(st.sampled_from((0, 1, 3, 7, 0x111, 0xFFFF))) for _ in range(count)]
    masks = [[bool(row >> bit & 1) for bit in range(16)] for row in rows]
    sides: Sequence[int] = range(-2, 7)
    boxes = [[*draw(st.tuples(*[st.sampled_from(sides)] * 2))] for _ in range(count)]
    boxes = [[x, y, x + draw(st.integers(0, 3)), y + draw(st.integers(0, 3))] for x, y in boxes]
    scores = [draw(st.sampled_from((0.2, 0.5, 0.9))) for _ in range(count)]
    return Proposals(
        torch.tensor(boxes, dtype=torch.float32).view(count, 4),
        torch.tensor(masks, dtype=torch.bool).view(count, 4, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.arange(count)[:, None].float(),
    )


@settings(max_examples=150, deadline=None)
@given(proposals=crowds(), smallest=st.sampled_from((1, 2, 4)))
@pytest.mark.slow
def test_cleaning_is_that_of_a_plain_loop(proposals: Proposals, smallest: int) -> None:
    cleaned = clean(proposals, smallest)
    kept = plain_clean(proposals, smallest)
    assert cleaned.embeddings is not None
    assert cleaned.embeddings[:, 0].tolist() == kept
    for field in fields(Proposals):
        assert torch.equal(getattr(cleaned, field.name), getattr(proposals, field.name)[kept])
