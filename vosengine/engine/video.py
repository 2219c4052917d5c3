"""A whole video through a segmenter, answer by answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from ..timing import timed
from ..types import Result

Prompts = Mapping[int, Any] | Callable[[Any], Any]
CPU = torch.device("cpu")


class Answer(NamedTuple):
    """A frame with its masks.

    frame         as it was given
    result        labels [H, W] uint8 and object ids
    milliseconds  that the step took; of the frames that a model answers for at the end, their share
    pending       answers that the segmenter has given and that are yet to come: above 0 at the end
                  of a video, where a model that looks ahead answers for several frames at once
    """

    frame: Any
    result: Result[Any]
    milliseconds: float
    pending: int = 0


def segment_video(
    segmenter: Any,
    frames: Iterable[Any],
    prompts: Prompts | None = None,
    *,
    waiting: Iterable[Any] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Answer]:
    """Step a segmenter through the frames of a video; every frame's answer, in order.

        for frame, result, *_ in segment_video(Segmenter("giel"), frames, {0: first_mask}):
            ...

    segmenter    a Segmenter or an OnnxSegmenter; it may have begun the stream already
    frames       [H, W, 3] RGB each, as `step` takes them, or objects with such an `image`; read one
                 by one, so they may come from a camera
    prompts      masks by frame index, counted from the stream's beginning, or a function of the
                 frame that returns one, or None
    waiting      of a stream that was resumed, the frames that it has seen and not answered for
    should_stop  asked before every frame; True ends the iteration, and the last `latency` frames
                 are not answered for: the stream can go on

    Raises  what `step` raises; what was answered before stays answered.
    """
    device = getattr(segmenter, "device", CPU)  # onnxruntime's answers are arrays: no wait
    held = dict(enumerate(waiting, max(0, segmenter.frame_count - segmenter.latency)))
    for frame in frames:
        if should_stop():
            return
        held[segmenter.frame_count] = frame
        mask = _prompt_of(prompts, frame, segmenter.frame_count)
        image = getattr(frame, "image", frame)
        result, milliseconds = timed(partial(segmenter.step, image, mask), device)
        if result is not None:
            yield Answer(held.pop(result.frame_index), result, milliseconds)
    results, milliseconds = timed(segmenter.flush, device)
    for number, result in enumerate(results, 1):
        share = milliseconds / len(results)
        yield Answer(held.pop(result.frame_index), result, share, len(results) - number)


def _prompt_of(prompts: Prompts | None, frame: Any, index: int) -> Any:
    if prompts is None:
        return None
    return prompts(frame) if callable(prompts) else prompts.get(index)
