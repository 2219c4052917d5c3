"""Process one clip into one finished folder: the unit of work of every pool."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..commands.engines import make_engine
from ..commands.record import JOURNAL, OVERLAY, STATE, SUMMARY, Earlier, read_earlier
from ..commands.run import RunOptions, run
from ..engine.engine import Engine
from ..errors import DeviceError, OutputError, StorageError
from ..files import cannot_write, write_whole
from ..rle import encode
from ..video import read_labels
from .worker import CannotGoOnError

STAMP = "clip.json"
MASKS = "masks.jsonl"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Remote:
    """What of a clip lies at addresses, None for what does not, and where on this machine it is
    while it is worked on (None: where temporary files are)."""

    source: str | None = None
    mask: str | None = None
    folder: str | None = None
    scratch: Path | None = None


@dataclass(frozen=True)
class Job:
    """A clip and its result folder.

    folder   where it is when it is finished; until then it is in `part`
    options  as `run` takes them; their `out` is `part`
    stamp    what the clip is made of and with, for JSON: the same stamp, the same result
    rle      write MASKS too
    remote   what lies elsewhere, in place of folder, and of source and mask of the options
    """

    folder: Path
    options: RunOptions
    stamp: dict[str, Any]
    rle: bool = False
    remote: Remote | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def part(self) -> Path:
        return part_of(self.folder)

    @property
    def old(self) -> Path:
        """Where a finished folder is while another one takes its place."""
        return self.folder.with_name(f".{self.name}.old")

    @property
    def has_mask(self) -> bool:
        return self.options.mask is not None or bool(self.remote and self.remote.mask)


def part_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """Read the stamp of a clip's folder; None if there is none."""
    try:
        return parse_stamp((folder / STAMP).read_bytes())
    except OSError:
        return None


def parse_stamp(data: bytes) -> dict[str, Any] | None:
    """Parse the content of a stamp file; None if it is not a stamp."""
    try:
        stamp = json.loads(data)
    except ValueError:
        return None
    return stamp if isinstance(stamp, dict) else None


class ClipWorker:
    """Does one clip after another, with one engine for each model. An actor of a cluster may hold
    one as well as a process.

    threads  of torch at most; None leaves that to torch
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(min(threads, torch.get_num_threads()))
        self._engines: dict[tuple[Any, ...], Engine] = {}

    def __call__(
        self, job: Job, report: Callable[[int], None], should_stop: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """See `process_clip`. Raises CannotGoOnError where there is no engine, no room, or a bucket
        that cannot be reached."""
        engine = self._engine(job.options)
        try:
            if job.remote is None:
                return process_clip(job, engine, report, should_stop)
            from .remote import process_remote

            return process_remote(job, job.remote, engine, report, should_stop)
        except StorageError as error:
            raise CannotGoOnError(error) from error
        except OutputError as error:
            if getattr(error.__cause__, "errno", None) in NO_ROOM:
                raise CannotGoOnError(error) from error
            raise

    def _engine(self, options: RunOptions) -> Engine:
        network = options.model, options.weights, options.device, options.precision, options.engine
        if network not in self._engines:
            try:
                self._engines[network] = make_engine(options)
            except DeviceError as error:  # of a machine, not of a clip
                raise CannotGoOnError(error) from error
        return self._engines[network]


def process_clip(
    job: Job,
    engine: Engine | None = None,
    report: Callable[[int], None] = lambda frames: None,
    should_stop: Callable[[], bool] = lambda: False,
    saved: Callable[[], None] = lambda: None,
    origin: tuple[str, str | None] | None = None,
) -> dict[str, Any] | None:
    """Run a clip into its `part`, from where an earlier attempt came to, then give the folder its
    name by one rename: a folder that has it is complete. One that is there already stays.

    engine       for streams of the job's options; None: makes one
    report       is called with 1 after every frame
    should_stop  is asked before every frame; True ends it, to be gone on with later
    saved        is called when the stream was saved, `--checkpoint` frames after the last time
    origin       what the summary calls source and mask; None: as the options do
    returns      {"frames": how many, "seconds": of this attempt}; None where it was stopped

    Raises  a VosError of the clip, or OutputError.
    """
    began = time.perf_counter()
    if read_stamp(job.folder) != job.stamp:
        earlier = _prepare(job)
        if not earlier.complete:
            resume = earlier.summed_up or earlier.interrupted
            options = replace(job.options, resume=resume)
            summary = run(
                options,
                shared=engine,
                report=lambda progress: report(1),
                should_stop=should_stop,
                saved=saved,
            )
            if not summary["complete"]:
                return None
            earlier = read_earlier(job.part)
        if origin is not None:
            _name_origin(job.part / SUMMARY, *origin)
        _finish(job, earlier)
    frames = frame_count(job.folder)
    return {"frames": frames, "seconds": round(time.perf_counter() - began, 3)}


def _name_origin(path: Path, source: str, mask: str | None) -> None:
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary["source"] = source
    if mask is not None:
        summary["mask"]["path"] = mask
    write_whole(path, json.dumps(summary, indent=1) + "\n")


def frame_count(folder: Path) -> int:
    """Of a finished folder. Raises OutputError where its summary is not what a run wrote."""
    return len(read_earlier(folder).frames)


def _prepare(job: Job) -> Earlier:
    """What is in `part` of the same clip; what another one left there is removed."""
    part = job.part
    try:
        part.mkdir(parents=True, exist_ok=True)
        if read_stamp(part) != job.stamp:
            _clear(read_earlier(part))
            write_whole(part / STAMP, json.dumps(job.stamp, indent=1) + "\n")
    except OSError as error:
        raise cannot_write(part, error) from error
    return read_earlier(part)


def _clear(earlier: Earlier) -> None:
    """Remove what a run left; last what says that the rest is its own. Raises OSError."""
    names = {*earlier.files, *earlier.leftovers(), STATE, OVERLAY}
    for name in (*filter(earlier.owns, names), MASKS, JOURNAL, SUMMARY):
        (earlier.folder / name).unlink(missing_ok=True)


def _finish(job: Job, earlier: Earlier) -> None:
    """The last steps, each of which may be the second time. Raises OutputError."""
    try:
        if earlier.interrupted:  # killed right after its summary
            for name in (*earlier.leftovers(), STATE, JOURNAL):
                (job.part / name).unlink(missing_ok=True)
        if job.rle:
            write_whole(job.part / MASKS, _runs_of(job.part, list(earlier.frames)))
        if job.folder.exists():
            os.rename(job.folder, job.old)
        os.rename(job.part, job.folder)
        if job.old.exists():
            shutil.rmtree(job.old)
    except OSError as error:
        raise cannot_write(job.folder, error) from error


def _runs_of(folder: Path, frames: list[str]) -> str:
    """A line of JSON for every object in every frame, with its mask as COCO has it."""
    lines = []
    for name in frames:
        labels = read_labels(folder / f"{name}.png")
        for each in np.unique(labels[labels > 0]).tolist():
            mask = labels == each
            runs = {"size": list(mask.shape), "counts": encode(mask)}
            lines.append(json.dumps({"frame": name, "id": each, "segmentation": runs}) + "\n")
    return "".join(lines)
