"""`vosengine run`: segment a video; write masks, an overlay video and a summary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from .. import __version__
from ..detectors.file import FileSource
from ..engine.engine import Engine
from ..engine.video import segment_video
from ..errors import ConfigError, InputError, OutputError, SourceError, VosError
from ..timing import summarise
from ..video import FrameSource, MaskRule, SourceFrame, open_source, without_password
from .engines import Stream, make_stream
from .late import begin_late
from .marks import MarkedPrompts, parse_marks
from .outputs import Outputs
from .prompts import Prompts
from .record import STATE


@dataclass(frozen=True)
class RunOptions:
    """Options of `run`.

    source      a video file, a folder of images, a glob, a camera number, or an address
    mask        the first frame's object ids as a PNG, or a folder of PNGs: a frame is prompted with
                the one of its name, or of its number; None for methods that find objects themselves
    first_masks of a folder of masks, each object is shown by the first of them that has it alone
    boxes, points  in place of a mask: what is marked in the first frame, as `parse_marks` reads it;
                prompt_method, as in `mask_from`, makes the mask; None: "auto"
    mask_void   what 255 is in a mask: True, void; False, an id; None, as `MaskRule` tells
    threshold   masks are soft: what is at least that bright (1..255) is object 1; None: ids
    engine      "fast" or "eager", as in Segmenter; or "onnx", which runs an export
    export      the folder of that export; `model` is then what was exported
    proposals   where object proposals come from, as `open_proposals` takes it; None leaves it to
                the model; boxes_as_masks, as in FileSource, is of a file
    bits        depth of the data of deep pixels; None chooses it by the first frames
    reconnect   how often an address that drops is opened again
    fps         of the overlay; None shows frames at their times
    out         the folder to write to; an earlier run's files there are replaced
    limit       stop after that many frames; None goes to the end
    checkpoint  save the stream every that many frames too, so that even a killed run can be resumed
    resume      go on where the run that wrote `out` stopped
    """

    source: str
    model: str
    out: Path
    engine: str = "fast"
    export: Path | None = None
    mask: Path | None = None
    first_masks: bool = False
    boxes: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    prompt_method: str | None = None
    mask_void: bool | None = None
    threshold: int | None = None
    proposals: str | None = None
    boxes_as_masks: bool = False
    weights: str | None = None
    device: str = "auto"
    precision: str = "auto"
    max_objects: int | None = None
    size: int | tuple[int, int] | str | None = None
    memory: str | None = None
    online: bool = False
    bits: int | None = None
    reconnect: int = 0
    fps: float | None = None
    limit: int | None = None
    checkpoint: int = 0
    overlay: bool = True
    resume: bool = False


@dataclass(frozen=True)
class Progress:
    """Where a run is: frames answered, of how many (None if unknown), and the last frame's time."""

    done: int
    total: int | None
    last_ms: float


def run(
    options: RunOptions,
    *,
    shared: Engine | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    saved: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Segment a whole source and write DIR/<frame>.png, DIR/overlay.mp4 and DIR/summary.json.

    Files that an earlier run wrote there are removed when the first frame has been answered, not
    before; those that it did not write, or that were changed since, are never touched.

    shared       an engine that `make_engine` made of such options; None: the run has its own
    report       is called after every frame
    should_stop  is asked before every frame; True ends the run cleanly, to be resumed later
    saved        is called after every checkpoint
    returns      the summary, as written; not written where no frame was begun

    Raises  a VosError. What was answered before a fault is on disk; the summary names the fault.
    """
    _check_options(options)
    outputs = Outputs(options)
    prompts = _prompts(options)
    stream = make_stream(options, shared)
    source = open_source(options.source, bits=options.bits, reconnect=options.reconnect)
    with ExitStack() as stack:
        stack.callback(outputs.abandon)
        stack.callback(source.close)
        if shared is not None:
            stack.callback(shared.close, stream.segmenter)
        _check_prompted(options, stream)
        prompts.match(source.names, source.length, options.limit)
        if isinstance(stream.proposals, FileSource):
            stream.proposals.match(source.names, source.length, options.limit)
        if stream.needs_mask and prompts.first_frame:
            stream = begin_late(stream, prompts.first_frame)
        answered = 0
        if options.resume:
            answered = _resume(options, outputs, stream, source, prompts)
        stream.segmenter.reserve(prompts.ids)
        outputs.check(options, source, answered)
        stopped = False
        faults: list[VosError] = []
        try:
            stopped = _drive(options, stream, source, prompts, outputs, report, should_stop, saved)
        except VosError as error:
            if not outputs.begun:
                raise
            faults.append(error)
        return _finish(options, stream, source, prompts, outputs, stopped, faults)


def _check_options(options: RunOptions) -> None:
    if options.fps is not None and not (options.fps > 0 and math.isfinite(options.fps)):
        raise ConfigError(
            f"fps: wanted a number above 0, given {options.fps}; left out, it is the source's"
        )
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"limit: wanted at least 1, given {options.limit}")
    if options.checkpoint < 0:
        raise ConfigError(f"checkpoint: wanted 0 or more frames, given {options.checkpoint}")


def _prompts(options: RunOptions) -> Prompts:
    """What the stream is shown. Raises ConfigError, InputError."""
    if not (options.boxes or options.points):
        if options.prompt_method is not None:
            raise ConfigError("prompt_method: is for boxes and points; leave it out")
        rule = MaskRule(options.mask_void, options.threshold)
        return Prompts(options.mask, rule, first_masks=options.first_masks)
    for name in ("mask", "mask_void", "threshold"):
        if getattr(options, name) is not None:
            raise ConfigError(
                f"{name}: boxes and points say what to follow; leave one or the other out"
            )
    objects = parse_marks(options.boxes, options.points)
    return MarkedPrompts(objects, options.prompt_method or "auto")


def _resume(
    options: RunOptions,
    outputs: Outputs,
    stream: Stream,
    source: FrameSource,
    prompts: Prompts,
) -> int:
    """Load what the run to resume saved; how many frames it has answered by then.

    A run that was killed before it saved anything answers its frames once more, and writes each
    mask over the one that is there.
    """
    folder, earlier = outputs.folder, outputs.earlier
    if earlier.complete:
        raise OutputError(f"{folder}: the run there is complete; there is nothing to resume")
    if not (earlier.has_summary or earlier.interrupted):
        raise OutputError(f"{folder}: holds no run to resume; start one without --resume")
    if source.live:
        raise InputError(f"{source.description}: a live source cannot be resumed; start a new run")
    if stream.can_be_saved and (folder / STATE).is_file():
        prompts.check_resumed(earlier.mask)
        stream.segmenter.load_state(folder / STATE)
    answered: int = stream.segmenter.frame_count - stream.segmenter.latency
    return max(0, answered)


def _finish(
    options: RunOptions,
    stream: Stream,
    source: FrameSource,
    prompts: Prompts,
    outputs: Outputs,
    stopped: bool,
    faults: list[VosError],
) -> dict[str, Any]:
    """Close every file, even after a failure; raises the first error."""

    def attempt(work: Callable[[], None]) -> None:
        try:
            work()
        except VosError as error:
            faults.append(error)

    if not outputs.begun:  # stopped before the first frame
        return _summary(options, stream, source, prompts, outputs, False, faults)
    attempt(outputs.close)
    complete = not (faults or stopped)
    # A stream that is ahead of the masks on disk would leave one out: an older one stays.
    if not complete and stream.can_be_saved and not outputs.behind:
        attempt(lambda: outputs.save(stream.segmenter))
    summary = _summary(options, stream, source, prompts, outputs, complete, faults)
    try:
        summary = outputs.sum_up(summary)
    except VosError as error:
        faults.append(error)
    if faults:
        raise faults[0]
    return summary


def _check_prompted(options: RunOptions, stream: Stream) -> None:
    marked = bool(options.boxes or options.points)
    if options.mask is None and not marked and stream.needs_mask:
        raise InputError(
            f"mask: {stream.model} follows what it is shown; wanted --mask with the object ids of "
            "the first frame, as an indexed PNG, or --box or --point"
        )
    if marked and not stream.takes_mask:
        name = "box" if options.boxes else "point"
        raise InputError(
            f"{name}: {stream.model} finds the foreground by itself and takes none; leave it out"
        )
    if options.mask is not None and not stream.takes_mask:
        raise InputError(
            f"mask: {stream.model} finds the foreground by itself and takes none; leave out --mask"
        )
    if options.checkpoint and not stream.can_be_saved:
        raise ConfigError("checkpoint: a stream of exported graphs cannot be saved; leave it out")


def _drive(
    options: RunOptions,
    stream: Stream,
    source: FrameSource,
    prompts: Prompts,
    outputs: Outputs,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    saved: Callable[[], None],
) -> bool:
    """Frame by frame to the end of the source; True if it was stopped before that."""
    segmenter = stream.segmenter
    total = source.length if options.limit is None else min(options.limit, source.length or 1 << 62)
    done_before = segmenter.frame_count
    answered = max(0, done_before - segmenter.latency)
    begin = partial(outputs.begin, options, stream.note, source, answered, prompts.facts())
    frames = _checked(source, options.limit, prompts, max(1, done_before))
    stopped = False

    def asked_to_stop() -> bool:
        nonlocal stopped
        stopped = should_stop()
        return stopped

    if answered:
        begin()
    for frame in islice(frames, answered):
        outputs.replay(frame)
    seen = list(islice(frames, done_before - answered))  # by the stopped run; answers to come
    answers = segment_video(segmenter, frames, prompts.of, waiting=seen, should_stop=asked_to_stop)
    try:
        for frame, result, milliseconds, pending in answers:
            begin()  # the first frame has passed: nothing that could be known speaks against it
            outputs.behind = True  # the stream does not give an answer again
            outputs.write(frame, result.numpy(), round(milliseconds, 3))
            outputs.behind = pending > 0
            report(Progress(len(outputs.names), total, milliseconds))
            newest = frame.index + segmenter.latency + 1 == segmenter.frame_count
            if options.checkpoint and newest and segmenter.frame_count % options.checkpoint == 0:
                outputs.save(segmenter)
                saved()
    finally:  # likewise where a model that looks ahead has answered for none yet
        if segmenter.frame_count:
            begin()
    if not stopped:
        prompts.check_reached(segmenter.frame_count)
        if options.limit is None and isinstance(stream.proposals, FileSource):
            stream.proposals.check_reached(segmenter.frame_count)
    return stopped


def _checked(
    source: FrameSource, limit: int | None, prompts: Prompts, wanted: int
) -> Iterator[SourceFrame]:
    """The source's frames up to the limit, of which there are as many as wanted at least.

    Raises  InputError where the prompts do not fit the first; SourceError for too few.
    """
    seen = 0
    for frame in source:
        if limit is not None and frame.index >= limit:
            break
        if not seen:
            prompts.check(frame.image.shape[:2], frame.sar)
        seen += 1
        yield frame
    if seen < wanted:
        raise SourceError(f"{source.description}: holds {seen} frames, wanted at least {wanted}")


def _summary(
    options: RunOptions,
    stream: Stream,
    source: FrameSource,
    prompts: Prompts,
    outputs: Outputs,
    complete: bool,
    faults: list[VosError],
) -> dict[str, Any]:
    geometry, times, aspect = stream.segmenter.geometry, outputs.times, outputs.pixel_aspect
    return {
        "vosengine": __version__,
        "source": without_password(options.source),
        **stream.facts,
        "mask": prompts.facts(),
        "frame_size": list(geometry.frame) if geometry else None,
        "network_size": list(geometry.network) if geometry else None,
        "pixel_aspect": None if aspect == 1 else f"{aspect.numerator}:{aspect.denominator}",
        **source.facts(),
        "objects": list(stream.segmenter.ids),
        "complete": complete,
        "fault": "; ".join(map(str, faults)) or None,
        "frame_count": len(outputs.names),
        "first_frame_ms": times[0] if times else None,
        **summarise(times[1:]),  # the first frame is cold; it stands by itself
        "frames": outputs.names,
        "times_s": None if None in outputs.shown_s else outputs.shown_s,
        "per_frame_ms": times,
    }
