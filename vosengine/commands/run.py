"""`vosengine run`: a video in; masks, an overlay video and a summary out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..detectors.file import FileSource
from ..errors import ConfigError, InputError, OutputError, SourceError, VosError
from ..timing import summarise, timed
from ..types import Result
from ..video import (
    FrameSource,
    MaskRule,
    SourceFrame,
    VideoWriter,
    open_source,
    overlay,
    prepare_output_folder,
    read_labels,
    write_labels,
)
from .engines import Stream, make_stream
from .late import begin_late
from .prompts import Prompts

SUMMARY = "summary.json"
STATE = "state.safetensors"
OVERLAY = "overlay.mp4"


@dataclass(frozen=True)
class RunOptions:
    """What `run` is asked for.

    source      a video file, a folder of images, a glob, a camera number, or an address
    mask        the first frame's object ids as a PNG, or a folder of PNGs: a frame is prompted with
                the one of its name, or of its number; None for methods that find objects themselves
    mask_void   what 255 is in a mask: True, void; False, an id; None, as `MaskRule` tells
    threshold   masks are soft: what is at least that bright (1..255) is object 1; None: ids
    engine      "fast" or "eager", as in Segmenter; or "onnx", which runs an export
    export      the folder of that export; `model` is then what was exported
    proposals   where object proposals come from, as `open_proposals` takes it; None leaves it to
                the model; boxes_as_masks, as in FileSource, is of a file
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


class Outputs:
    """The files of a run: masks and overlay frames as they come, the summary at the end."""

    def __init__(self, options: RunOptions, note: str | None, fps: float) -> None:
        self.folder = options.out
        self.note = note
        self.names: list[str] = []
        self._video = VideoWriter(self.folder / OVERLAY, fps) if options.overlay else None

    def write(self, frame: SourceFrame, labels: np.ndarray) -> None:
        write_labels(self.folder / f"{frame.name}.png", labels, self.note)
        self.replay(frame, labels)

    def replay(self, frame: SourceFrame, labels: np.ndarray) -> None:
        """A frame whose mask is on disk already: only the overlay needs it again."""
        self.names.append(frame.name)
        if self._video is not None:
            caption = None if self.note is None else "RANDOM WEIGHTS"
            self._video.write(overlay(frame.image, labels, caption=caption))

    def close(self) -> None:
        if self._video is not None:
            self._video.close()


def run(
    options: RunOptions,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Segment a whole source and write DIR/<frame>.png, DIR/overlay.mp4 and DIR/summary.json.

    report       is called after every frame
    should_stop  is asked before every frame; True ends the run cleanly, to be resumed later
    returns      the summary, as written

    Raises  a VosError. What was answered before a fault is on disk; the summary names the fault.
    """
    folder = prepare_output_folder(options.out)
    prompts = Prompts(options.mask, MaskRule(options.mask_void, options.threshold))
    earlier = _read_summary(folder)
    stream = make_stream(options)
    source = open_source(options.source)
    with ExitStack() as stack:
        stack.callback(source.close)
        _check_prompted(options, stream)
        prompts.match(source.names, source.length, options.limit)
        if isinstance(stream.proposals, FileSource):
            stream.proposals.match(source.names, source.length, options.limit)
        if stream.needs_mask and prompts.first_frame:
            stream = begin_late(stream, prompts.first_frame)
        segmenter = stream.segmenter
        if options.resume:
            _check_resumable(folder, earlier, source)
            prompts.check_resumed(earlier.get("mask"))
            segmenter.load_state(folder / STATE)
        else:
            _remove(folder, earlier)
            earlier = {}
        segmenter.reserve(prompts.ids)
        outputs = Outputs(options, stream.note, options.fps or source.fps)
        stack.callback(outputs.close)
        answered = max(0, segmenter.frame_count - segmenter.latency)
        times: list[float] = list(earlier.get("per_frame_ms", []))[:answered]
        fault: VosError | None = None
        stopped = False
        try:
            stopped = _drive(options, stream, source, prompts, outputs, times, report, should_stop)
        except VosError as error:
            fault = error
    complete = fault is None and not stopped
    if complete:
        (folder / STATE).unlink(missing_ok=True)
    elif segmenter.frame_count and stream.can_be_saved:
        segmenter.save_state(folder / STATE)
    summary = _summary(options, stream, prompts, outputs.names, times, complete, fault)
    _write_summary(folder, summary)
    if fault is not None:
        raise fault
    return summary


def _check_prompted(options: RunOptions, stream: Stream) -> None:
    if options.mask is None and stream.needs_mask:
        raise InputError(
            f"mask: {stream.model} follows what it is shown; wanted --mask with the object ids of "
            "the first frame, as an indexed PNG"
        )
    if options.mask is not None and not stream.takes_mask:
        raise InputError(
            f"mask: {stream.model} finds the foreground by itself and takes none; leave out --mask"
        )
    if (options.resume or options.checkpoint) and not stream.can_be_saved:
        raise ConfigError(
            "resume, checkpoint: a stream of exported graphs cannot be saved; leave them out"
        )


def _drive(
    options: RunOptions,
    stream: Stream,
    source: FrameSource,
    prompts: Prompts,
    outputs: Outputs,
    times: list[float],
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> bool:
    """Frame by frame to the end of the source; True if it was stopped before that."""
    segmenter = stream.segmenter
    total = source.length if options.limit is None else min(options.limit, source.length or 1 << 62)
    done_before = segmenter.frame_count
    waiting: dict[int, SourceFrame] = {}

    def answer(result: Result[Any] | None, milliseconds: float) -> None:
        if result is None:
            return
        outputs.write(waiting.pop(result.frame_index), result.numpy())
        times.append(round(milliseconds, 3))
        report(Progress(len(outputs.names), total, milliseconds))

    for frame in _limited(source, options.limit):
        if frame.index < done_before:
            _replay(frame, outputs, options.out, waiting, done_before - segmenter.latency)
            continue
        if should_stop():
            return True
        waiting[frame.index] = frame
        prompt = prompts.of(frame)
        answer(*timed(partial(segmenter.step, frame.image, prompt), stream.device))
        if options.checkpoint and segmenter.frame_count % options.checkpoint == 0:
            segmenter.save_state(options.out / STATE)
    if segmenter.frame_count < done_before or segmenter.frame_count == 0:
        raise SourceError(f"{options.source}: holds {segmenter.frame_count} frames")
    results, milliseconds = timed(segmenter.flush, stream.device)
    for result in results:
        answer(result, milliseconds / len(results))
    prompts.check_reached(segmenter.frame_count)
    if options.limit is None and isinstance(stream.proposals, FileSource):
        stream.proposals.check_reached(segmenter.frame_count)
    return False


def _replay(
    frame: SourceFrame,
    outputs: Outputs,
    folder: Path,
    waiting: dict[int, SourceFrame],
    answered: int,
) -> None:
    """A frame that the stopped run has seen: its mask is on disk, or its answer is to come."""
    if frame.index < answered:
        outputs.replay(frame, read_labels(folder / f"{frame.name}.png"))
    else:
        waiting[frame.index] = frame


def _limited(source: FrameSource, limit: int | None) -> Iterator[SourceFrame]:
    for frame in source:
        if limit is not None and frame.index >= limit:
            return
        yield frame


def _read_summary(folder: Path) -> dict[str, Any]:
    """The summary of an earlier run in that folder; empty if there is none."""
    path = folder / SUMMARY
    if not path.is_file():
        return {}
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise OutputError(f"{path}: not a summary that a run wrote ({error}); remove it") from error
    return summary


def _check_resumable(folder: Path, earlier: dict[str, Any], source: FrameSource) -> None:
    if earlier.get("complete"):
        raise OutputError(f"{folder}: the run there is complete; there is nothing to resume")
    if not (folder / STATE).is_file():
        raise OutputError(f"{folder}: holds no {STATE}, so no run to resume; start one without")
    if source.live:
        raise InputError(f"{source.description}: a live source cannot be resumed; start a new run")


def _remove(folder: Path, earlier: dict[str, Any]) -> None:
    """Delete what an earlier run's summary lists, and nothing else."""
    for name in earlier.get("frames", []):
        (folder / f"{name}.png").unlink(missing_ok=True)
    for name in (SUMMARY, STATE, OVERLAY):
        (folder / name).unlink(missing_ok=True)


def _summary(
    options: RunOptions,
    stream: Stream,
    prompts: Prompts,
    names: list[str],
    times: list[float],
    complete: bool,
    fault: VosError | None,
) -> dict[str, Any]:
    geometry = stream.segmenter.geometry
    return {
        "vosengine": __version__,
        "source": options.source,
        **stream.facts,
        "mask": prompts.facts(),
        "frame_size": list(geometry.frame) if geometry else None,
        "network_size": list(geometry.network) if geometry else None,
        "objects": list(stream.segmenter.ids),
        "complete": complete,
        "fault": str(fault) if fault else None,
        "frame_count": len(names),
        "first_frame_ms": times[0] if times else None,
        **summarise(times[1:]),  # the first frame is cold; it stands by itself
        "frames": names,
        "per_frame_ms": times,
    }


def _write_summary(folder: Path, summary: dict[str, Any]) -> None:
    try:
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder / SUMMARY}: cannot be written ({error})") from error
