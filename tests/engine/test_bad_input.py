"""Invalid input for every model: a clear message, and the stream continues unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROPOSED, tiny_source
from quick_streams import SIZE, assert_same, begin, play, quarters, rectangle

from vosengine import Segmenter
from vosengine.errors import ConfigError, DeviceError, InputError
from vosengine.proposals import Proposals
from vosengine.training.synthetic import Clip

ANOTHER_TYPE = "wanted a numpy array or a torch tensor"


def bad_frames(frame: np.ndarray) -> list[tuple[Any, str]]:
    spoilt = [frame.astype(np.float32) / 255 for _ in range(2)]
    spoilt[0][3, 4, 1], spoilt[1][3, 4, 1] = np.nan, np.inf
    return [
        (frame.astype(np.int64), "wanted dtype uint8 or float32"),
        (frame[..., 0], "wanted rank 3"),
        (frame[..., :2], "wanted 3 channels"),
        (frame.transpose(2, 0, 1), "channels go last"),
        ([[1]], ANOTHER_TYPE),
        (None, ANOTHER_TYPE),
        (frame[:20], "at least 32 x 32"),
        (frame[:0], "at least 32 x 32"),
        (spoilt[0], "NaN"),
        (spoilt[1], "infinity"),
        (frame.astype(np.float32), "divide by 255"),
    ]


def bad_masks(mask: np.ndarray) -> list[tuple[Any, str]]:
    return [
        (mask[:-1], "wanted the frame's size"),
        (mask[None].repeat(2, 1), "wanted the frame's size"),
        (mask[None], "wanted 0 and 1"),
        (mask[None].astype(np.float32), r"wanted 0\.\.1 in a soft mask"),
        (mask.astype(np.int32) * 200, r"1\.\.255"),
        (mask.astype(np.int32) - 1, r"1\.\.255"),
        (mask.astype(np.float32), "integer dtype"),
        (torch.from_numpy(mask).float(), "integer dtype"),
        ("mask.png", ANOTHER_TYPE),
    ]


def refuse(segmenter: Segmenter, frame: Any, mask: Any, message: str) -> None:
    """Assert that the step raises, and no visible state has changed."""
    before = segmenter.frame_count, segmenter.ids, segmenter.geometry
    with pytest.raises(InputError, match=message):
        segmenter.step(frame, mask)
    assert (segmenter.frame_count, segmenter.ids, segmenter.geometry) == before


@pytest.mark.slow
def test_what_is_refused_in_mid_stream_leaves_no_trace(any_model: str, small: Clip) -> None:
    disturbed, calm = (begin(any_model, max_objects=3, online=True) for _ in range(2))
    frame, mask, takes = small.frames[2], small.masks[2], calm.method.takes_mask
    for segmenter in (disturbed, calm):
        for index in range(2):
            segmenter.step(small.frames[index], small.masks[0] if takes and index == 0 else None)
    for bad, message in bad_frames(frame):
        refuse(disturbed, bad, None, f"^frame: .*{message}")
        if takes:
            refuse(disturbed, bad, rectangle(8, 8, 9, 9, 50), f"^frame: .*{message}")
    refuse(disturbed, frame[:40], None, "the stream is 48 x 64, given 40 x 64")
    for bad, message in bad_masks(mask):
        refuse(disturbed, frame, bad, f"^mask: .*{message}")
    many = np.maximum(mask, rectangle(0, 0, 1, 5) * np.arange(11, 11 + SIZE[1], dtype=np.uint8))
    refuse(disturbed, frame, many, "more than max_objects = 3" if takes else "takes? none")
    with pytest.raises(InputError, match=r"^remove: no object 99; alive: 1"):
        disturbed.remove(99)
    assert_same(play(disturbed, small.frames[2:5]), play(calm, small.frames[2:5]))


def test_what_is_refused_at_first_begins_no_stream(any_model: str, small: Clip) -> None:
    segmenter = begin(any_model, online=True)
    frame, mask = small.frames[0], small.masks[0]
    if segmenter.method.needs_mask:
        refuse(segmenter, frame, None, f"^mask: {any_model} needs one .*to say what to follow$")
        refuse(segmenter, frame, mask * 0, f"^mask: {any_model} needs one .*; this one shows no ob")
    for bad, message in bad_frames(frame):
        refuse(segmenter, bad, mask, f"^frame: .*{message}")
    for bad, message in bad_masks(mask):
        refuse(segmenter, frame, bad, f"^mask: .*{message}")
    with pytest.raises(InputError, match="no object 1; alive: none"):
        segmenter.remove(1)
    fresh = begin(any_model, online=True)
    frames, prompts = small.frames[:2, :40, :50], {0: mask[:40, :50]}  # of another size
    assert_same(play(segmenter, frames, prompts), play(fresh, frames, prompts))


def test_a_fault_inside_the_network_leaves_the_stream_as_it_was(
    any_model: str, small: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a failure in any verb; the proposal source is then called again for the same frame."""
    disturbed, calm = (begin(any_model, online=True) for _ in range(2))
    method = calm.method
    if method.needs_proposals:
        disturbed.proposals, calm.proposals = tiny_source(), tiny_source()
    prompts = {0: small.masks[0]} if method.takes_mask else {}
    for index, verb in enumerate((None, "encode", "segment", "remember")):
        frame = small.frames[index]
        if verb is not None:
            with monkeypatch.context() as patch:
                patch.setattr(disturbed.method, verb, lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    disturbed.step(frame, rectangle(9, 9, 9, 9, 50) if method.takes_mask else None)
        assert (disturbed.ids, disturbed.frame_count) == (calm.ids, calm.frame_count)
        one, other = (segmenter.step(frame, prompts.get(index)) for segmenter in (disturbed, calm))
        assert one is not None
        assert other is not None
        assert_same([one], [other])


BAD_PROPOSALS: list[tuple[Callable[[Proposals], Any], str]] = [
    (lambda p: Proposals(p.boxes, p.masks[:, 1:], p.scores), r"masks: wanted \[4, 48, 64\]"),
    (lambda p: Proposals(p.boxes[:1], p.masks, p.scores), r"boxes: wanted \[4, 4\]"),
    (lambda p: Proposals(p.boxes, p.masks.float(), p.scores), "masks: wanted bool"),
    (lambda p: Proposals(-p.boxes, p.masks, p.scores), "left <= right"),
    (lambda p: Proposals(p.boxes / 0, p.masks, p.scores), "boxes: wanted finite"),
    (lambda p: [p], "wanted Proposals, given list"),
]


@pytest.mark.parametrize("model", PROPOSED)
def test_bad_proposals_leave_no_trace(model: str, small: Clip) -> None:
    disturbed, calm = (begin(model, proposals=quarters) for _ in range(2))
    prompts = {0: small.masks[0]}
    assert_same(play(disturbed, small.frames[:2], prompts), play(calm, small.frames[:2], prompts))
    for spoil, message in BAD_PROPOSALS:
        disturbed.proposals = lambda frame, index, spoil=spoil: spoil(quarters(frame, index))
        refuse(disturbed, small.frames[2], None, f"^proposals: .*{message}")
    disturbed.proposals = quarters
    assert_same(play(disturbed, small.frames[2:4]), play(calm, small.frames[2:4]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_objects": 0}, ConfigError, "max_objects: wanted 1..255"),
        ({"precision": "int8"}, ConfigError, "precision: wanted one of"),
        ({"size": 8}, ConfigError, "size: wanted 32"),
        ({"device": "cuda:99"}, DeviceError, "finds"),
        ({"device": "abacus"}, DeviceError, "wanted auto, cpu, cuda"),
        ({"device": "meta"}, DeviceError, "wanted auto, cpu, cuda"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Segmenter("stm", **options)
    with pytest.raises(ConfigError, match="wanted one of stm, munet"):
        Segmenter("sam")
