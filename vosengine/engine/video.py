"""segment_video: iterate over the results of a whole video."""

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
    """A frame with its result.

    frame         the item of `frames`
    result        labels [H, W] uint8 and object ids
    milliseconds  duration of the step; of `flush`, divided by the number of its frames
    pending       number of computed answers still to be yielded: above 0 only at the end of a
                  video, where `flush` answers for several frames at once
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
    """Step a segmenter through the frames of a video, and yield an Answer per frame, in order.

        for frame, result, *_ in segment_video(Segmenter("giel"), frames, {0: first_mask}):
            ...

    segmenter    a Segmenter or an OnnxSegmenter; its stream may have begun already
    frames       [H, W, 3] RGB each, as `step` takes them, or objects with such an `image`
                 attribute; read one at a time, so a live source works
    prompts      masks by frame index, counted from the beginning of the stream, or a function of
                 the frame that returns a mask or None
    waiting      for a resumed stream: the frames it has taken and not answered for
    should_stop  called before every frame; True ends the iteration without `flush`, so that the
                 stream can continue

    Raises  what `step` raises; answers yielded before remain valid.
    """
    device = getattr(segmenter, "device", CPU)  # onnxruntime returns arrays: nothing to wait for
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
