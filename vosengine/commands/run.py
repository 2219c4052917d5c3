"""`vosengine run`: segment a video; write masks, an overlay video and a summary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
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

    source       a video file, a folder of images, a glob, a camera number, or an address
    out          folder for the results; files of an earlier run there are replaced
    engine       "fast" or "eager", see Segmenter; or "onnx", which runs an export
    export       folder of the export, for "onnx"; `model` is then ignored
    mask         PNG of object ids of the first frame, or a folder of PNGs matched to frames by name
                 or number; None for models that find objects themselves
    first_masks  with a folder of masks: each object is taken only from the first mask that has it
    boxes, points  marks in the first frame in place of a mask, see `parse_marks`
    prompt_method  how marks become a mask, see `mask_from`; None: "auto"
    mask_void    how 255 in masks is read: True: void; False: an id; None: see `MaskRule`
    threshold    masks are soft, object 1 where at least this bright (1..255); None: masks have ids
    proposals    source of proposals, see `open_proposals`; None: the model's default
    boxes_as_masks  for a file of proposals, see FileSource
    bits         bit depth of deep pixels; None: from the first frames
    reconnect    how often a dropped address is reopened
    fps          frame rate of the overlay; None: frames are shown at their times
    limit        stop after this many frames; None: at the end
    checkpoint   also save the stream every this many frames, so that a killed run can be resumed
    resume       continue the run that wrote `out`

    Other options are those of Segmenter.
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
    """Progress of a run: frames written, their total (None: unknown), time of the last one."""

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

    Files of an earlier run are removed only after the first frame has its result. Files that no run
    wrote, or that were changed since, are never touched.

    shared       an engine that `make_engine` made of equal options; None: the run makes its own
    report       called after every frame
    should_stop  asked before every frame; True ends the run, which can be resumed later
    saved        called after every checkpoint
    returns      the summary as written; not written if no frame was processed

    Raises  a VosError. Results before the error are on disk, and the summary names the error.
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
        running = _Run(options, outputs, prompts, stream, source)
        answered = running.resume() if options.resume else 0
        stream.segmenter.reserve(prompts.ids)
        outputs.check(options, source, answered)
        try:
            running.process_frames(report, should_stop, saved)
        except VosError as error:
            if not outputs.begun:
                raise
            running.faults.append(error)
        return running.finish()


def _check_options(options: RunOptions) -> None:
    if options.fps is not None and not (options.fps > 0 and math.isfinite(options.fps)):
        raise ConfigError(
            f"fps: wanted a number above 0, given {options.fps}; omit it for the source's times"
        )
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"limit: wanted at least 1, given {options.limit}")
    if options.checkpoint < 0:
        raise ConfigError(f"checkpoint: wanted 0 or more frames, given {options.checkpoint}")


def _prompts(options: RunOptions) -> Prompts:
    """The masks of the stream, from files or from marks. Raises ConfigError, InputError."""
    if not (options.boxes or options.points):
        if options.prompt_method is not None:
            raise ConfigError("prompt_method: is for boxes and points only; omit it")
        rule = MaskRule(options.mask_void, options.threshold)
        return Prompts(options.mask, rule, first_masks=options.first_masks)
    for name in ("mask", "mask_void", "threshold"):
        if getattr(options, name) is not None:
            raise ConfigError(f"{name}: cannot be used with boxes and points; omit one of them")
    objects = parse_marks(options.boxes, options.points)
    return MarkedPrompts(objects, options.prompt_method or "auto")


def _check_prompted(options: RunOptions, stream: Stream) -> None:
    marked, model = bool(options.boxes or options.points), stream.facts["model"]
    if options.mask is None and not marked and stream.needs_mask:
        raise InputError(
            f"mask: {model} needs a prompt; wanted --mask with an indexed PNG of the object "
            "ids of the first frame, or --box or --point"
        )
    if marked and not stream.takes_mask:
        name = "box" if options.boxes else "point"
        raise InputError(f"{name}: {model} finds the foreground by itself and takes none; omit it")
    if options.mask is not None and not stream.takes_mask:
        raise InputError(
            f"mask: {model} finds the foreground by itself and takes none; omit --mask"
        )
    if options.checkpoint and not stream.can_be_saved:
        raise ConfigError("checkpoint: a stream of exported graphs cannot be saved; omit it")


@dataclass
class _Run:
    """A run that all its inputs allow.

    stopped  whether it was stopped before the end of the source
    faults   errors of it, the first one first
    """

    options: RunOptions
    outputs: Outputs
    prompts: Prompts
    stream: Stream
    source: FrameSource
    stopped: bool = False
    faults: list[VosError] = field(default_factory=list)

    def resume(self) -> int:
        """Load the saved stream of the run to resume; return the number of frames it has written.

        If the run was killed before it saved anything, all frames are processed again and their
        masks replaced.
        """
        folder, earlier = self.outputs.folder, self.outputs.earlier
        if earlier.complete:
            raise OutputError(f"{folder}: the run there is complete; there is nothing to resume")
        if not (earlier.has_summary or earlier.interrupted):
            raise OutputError(f"{folder}: holds no run to resume; start one without --resume")
        if self.source.live:
            raise InputError(
                f"{self.source.description}: a live source cannot be resumed; start a new run"
            )
        if self.stream.can_be_saved and (folder / STATE).is_file():
            self.prompts.check_resumed(earlier.mask)
            self.stream.segmenter.load_state(folder / STATE)
        return self._answered()

    def _answered(self) -> int:
        """Number of frames that the stream has returned results for."""
        segmenter = self.stream.segmenter
        answered: int = segmenter.frame_count - segmenter.latency
        return max(0, answered)

    def process_frames(
        self,
        report: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        saved: Callable[[], None],
    ) -> None:
        """Process the frames up to the end of the source, or until stopped."""
        options, outputs, prompts, source = self.options, self.outputs, self.prompts, self.source
        segmenter, note = self.stream.segmenter, self.stream.note
        known = (count for count in (options.limit, source.length) if count is not None)
        total = min(known, default=None)
        done_before, answered = segmenter.frame_count, self._answered()
        begin = partial(outputs.begin, options, note, source, answered, prompts.facts())
        frames = self._checked_frames(max(1, done_before))

        def check_stop() -> bool:
            self.stopped = should_stop()
            return self.stopped

        if answered:
            begin()
        for frame in islice(frames, answered):
            outputs.replay(frame)
        # Read by the earlier run, without results yet.
        waiting = list(islice(frames, done_before - answered))
        answers = segment_video(
            segmenter, frames, prompts.of, waiting=waiting, should_stop=check_stop
        )
        try:
            for frame, result, milliseconds, pending in answers:
                begin()  # the first result exists: from here on files may be replaced
                outputs.behind = True  # the stream does not return a result again
                outputs.write(frame, result.numpy(), round(milliseconds, 3))
                outputs.behind = pending > 0
                report(Progress(len(outputs.names), total, milliseconds))
                taken = segmenter.frame_count
                newest = frame.index + segmenter.latency + 1 == taken
                if options.checkpoint and newest and taken % options.checkpoint == 0:
                    outputs.save(segmenter)
                    saved()
        finally:  # also if a model with latency has not returned a result yet
            if segmenter.frame_count:
                begin()
        if not self.stopped:
            prompts.check_reached(segmenter.frame_count)
            if options.limit is None and isinstance(self.stream.proposals, FileSource):
                self.stream.proposals.check_reached(segmenter.frame_count)

    def _checked_frames(self, wanted: int) -> Iterator[SourceFrame]:
        """The source's frames up to the limit.

        Raises  InputError if the prompts do not fit the first frame; SourceError if there are fewer
                frames than wanted.
        """
        count = 0
        for frame in islice(self.source, self.options.limit):
            if not count:
                self.prompts.check(frame.image.shape[:2], frame.sar)
            count += 1
            yield frame
        if count < wanted:
            where = self.source.description
            raise SourceError(f"{where}: holds {count} frames, wanted at least {wanted}")

    def finish(self) -> dict[str, Any]:
        """Close all files, also after an error; return the summary, or raise the first error."""
        outputs = self.outputs
        if not outputs.begun:  # stopped before the first frame
            return self._summary(complete=False)
        self._attempt(outputs.close)
        complete = not (self.faults or self.stopped)
        # A stream ahead of the masks on disk would lose a mask: then the older saved stream stays.
        if not complete and self.stream.can_be_saved and not outputs.behind:
            self._attempt(lambda: outputs.save(self.stream.segmenter))
        summary: dict[str, Any] = self._attempt(lambda: outputs.sum_up(self._summary(complete)))
        if self.faults:
            raise self.faults[0]
        return summary

    def _attempt(self, work: Callable[[], Any]) -> Any:
        """The result of some work, or None and a fault."""
        try:
            return work()
        except VosError as error:
            self.faults.append(error)
            return None

    def _summary(self, complete: bool) -> dict[str, Any]:
        segmenter, outputs = self.stream.segmenter, self.outputs
        geometry, times, aspect = segmenter.geometry, outputs.times, outputs.pixel_aspect
        return {
            "vosengine": __version__,
            "source": without_password(self.options.source),
            **self.stream.facts,
            "mask": self.prompts.facts(),
            "frame_size": list(geometry.frame) if geometry else None,
            "network_size": list(geometry.network) if geometry else None,
            "pixel_aspect": None if aspect == 1 else f"{aspect.numerator}:{aspect.denominator}",
            **self.source.facts(),
            "objects": list(segmenter.ids),
            "complete": complete,
            "fault": "; ".join(map(str, self.faults)) or None,
            "frame_count": len(outputs.names),
            "first_frame_ms": times[0] if times else None,
            **summarise(times[1:]),  # without the first frame, which includes warm-up
            "frames": outputs.names,
            "times_s": None if None in outputs.shown_s else outputs.shown_s,
            "per_frame_ms": times,
        }
