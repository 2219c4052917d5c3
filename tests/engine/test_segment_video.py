"""`segment_video`: the loop over the frames of a video, also used by `run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from vosengine import segment_video
from vosengine.errors import InputError
from vosengine.types import Result


class Ahead:
    """Segmenter with a delay of `latency` frames, whose labels are the frame's first channel."""

    def __init__(self, latency: int) -> None:
        self.latency, self.frame_count = latency, 0
        self.prompts: dict[int, Any] = {}
        self._held: list[np.ndarray] = []

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> Result[Any] | None:
        if frame.ndim != 3:
            raise InputError("frame: wanted [H, W, 3]")
        if mask is not None:
            self.prompts[self.frame_count] = mask
        self._held.append(frame)
        self.frame_count += 1
        if self.frame_count <= self.latency:
            return None
        return self._answer(self.frame_count - 1 - self.latency)

    def flush(self) -> list[Result[Any]]:
        first = max(0, self.frame_count - self.latency)
        return [self._answer(index) for index in range(first, self.frame_count)]

    def _answer(self, index: int) -> Result[Any]:
        return Result(self._held[index][..., 0], (1,), index, lambda: None)


@dataclass
class Shot:
    """Named frame, as from a source."""

    name: str
    image: np.ndarray


def pictures(count: int) -> list[np.ndarray]:
    return [np.full((4, 6, 3), index, np.uint8) for index in range(count)]


@pytest.mark.parametrize("latency", [0, 1, 3, 7])
def test_every_frame_has_its_own_answer_in_order(latency: int) -> None:
    shots = [Shot(f"f{i}", image) for i, image in enumerate(pictures(5))]
    answers = list(segment_video(Ahead(latency), iter(shots)))
    assert [answer.frame.name for answer in answers] == ["f0", "f1", "f2", "f3", "f4"]
    assert all((a.result.labels == a.frame.image[..., 0]).all() for a in answers)
    flushed = min(latency, 5)
    assert [a.pending for a in answers] == [0] * (5 - flushed) + [*range(flushed - 1, -1, -1)]
    assert all(a.milliseconds >= 0 for a in answers)


def test_prompts_by_index_and_by_function() -> None:
    mask = np.ones((4, 6), np.uint8)
    segmenter = Ahead(1)
    list(segment_video(segmenter, pictures(4), {0: mask, 2: 2 * mask}))
    assert {index: int(m.max()) for index, m in segmenter.prompts.items()} == {0: 1, 2: 2}
    segmenter = Ahead(0)
    list(segment_video(segmenter, pictures(4), lambda frame: mask if frame[0, 0, 0] == 3 else None))
    assert list(segmenter.prompts) == [3]


def test_a_stopped_video_goes_on_with_the_frames_that_wait() -> None:
    frames = pictures(6)
    segmenter = Ahead(2)
    stops = iter([False, False, False, True])
    first = list(segment_video(segmenter, frames, should_stop=lambda: next(stops)))
    assert [answer.result.frame_index for answer in first] == [0]  # 1 and 2 are not answered for
    rest = list(segment_video(segmenter, frames[3:], waiting=frames[1:3]))
    assert [answer.result.frame_index for answer in rest] == [1, 2, 3, 4, 5]
    assert all((a.result.labels == a.frame[..., 0]).all() for a in rest)


def test_frames_are_read_one_by_one_and_faults_come_after_what_was_answered() -> None:
    read = []

    def frames() -> Any:
        for index, frame in enumerate(pictures(3)):
            read.append(index)
            yield frame if index < 2 else frame[0]

    answers = segment_video(Ahead(0), frames())
    next(answers)
    assert read == [0]
    next(answers)
    with pytest.raises(InputError):
        next(answers)


def test_no_frames_are_no_answers() -> None:
    assert list(segment_video(Ahead(2), [])) == []
