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
from .worker import FatalWorkError

STAMP = "clip.json"
MASKS = "masks.jsonl"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Remote:
    """Addresses of a clip's remote inputs and results.

    source, mask, folder  addresses; None: local, see Job
    scratch               local folder for temporary copies; None: the temporary folder
    """

    source: str | None = None
    mask: str | None = None
    folder: str | None = None
    scratch: Path | None = None


@dataclass(frozen=True)
class Job:
    """A clip and its result folder.

    folder   results folder; until the clip is finished its results are in `part`
    options  of `run`; their `out` is `part`
    stamp    inputs and options that the results depend on: equal stamps, equal results
    rle      also write MASKS
    remote   addresses that replace folder, and source and mask of the options; None: all local
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
        """Where an old finished folder is moved while the new one replaces it."""
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
    """Processes clips one at a time, with one engine per model; used by processes and by actors.

    threads  maximum number of torch threads; None leaves it to torch
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(min(threads, torch.get_num_threads()))
        self._engines: dict[tuple[Any, ...], Engine] = {}

    def __call__(
        self, job: Job, report: Callable[[int], None], should_stop: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """See `process_clip`. Raises FatalWorkError if the device is missing, the disk is full, or
        an address cannot be reached."""
        engine = self._engine(job.options)
        try:
            if job.remote is None:
                return process_clip(job, engine, report, should_stop)
            from .remote import process_remote

            return process_remote(job, job.remote, engine, report, should_stop)
        except StorageError as error:
            raise FatalWorkError(error) from error
        except OutputError as error:
            if getattr(error.__cause__, "errno", None) in DISK_FULL:
                raise FatalWorkError(error) from error
            raise

    def _engine(self, options: RunOptions) -> Engine:
        network = options.model, options.weights, options.device, options.precision, options.engine
        if network not in self._engines:
            try:
                self._engines[network] = make_engine(options)
            except DeviceError as error:  # concerns the machine, not the clip
                raise FatalWorkError(error) from error
        return self._engines[network]


def process_clip(
    job: Job,
    engine: Engine | None = None,
    report: Callable[[int], None] = lambda frames: None,
    should_stop: Callable[[], bool] = lambda: False,
    saved: Callable[[], None] = lambda: None,
    origin: tuple[str, str | None] | None = None,
) -> dict[str, Any] | None:
    """Process a clip in `part`, continuing an earlier attempt, then rename `part` to `folder`.

    A folder with its final name is always complete. A clip that is finished already is skipped.

    engine       an engine for the job's options; None: creates one
    report       called with 1 after every frame
    should_stop  asked before every frame; True stops the clip, to be continued later
    saved        called after the stream was saved, every `--checkpoint` frames
    origin       source and mask as the summary shall name them; None: those of the options
    returns      {"frames": number of frames, "seconds": duration of this attempt}; None if stopped

    Raises  a VosError of the clip, or OutputError.
    """
    start_s = time.perf_counter()
    if read_stamp(job.folder) != job.stamp:
        earlier = _prepare(job)
        if not earlier.complete:
            resume = earlier.has_summary or earlier.interrupted
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
    return {"frames": frames, "seconds": round(time.perf_counter() - start_s, 3)}


def _name_origin(path: Path, source: str, mask: str | None) -> None:
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary["source"] = source
    if mask is not None:
        summary["mask"]["path"] = mask
    write_whole(path, json.dumps(summary, indent=1) + "\n")


def frame_count(folder: Path) -> int:
    """Number of frames of a finished folder. Raises OutputError if its summary is not a run's."""
    return len(read_earlier(folder).frames)


def _prepare(job: Job) -> Earlier:
    """Read the earlier attempt in `part`; remove results with another stamp."""
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
    """Remove the files of a run; the summary last, because it lists the others. Raises OSError."""
    names = {*earlier.files, *earlier.leftovers(), STATE, OVERLAY}
    for name in (*filter(earlier.owns, names), MASKS, JOURNAL, SUMMARY):
        (earlier.folder / name).unlink(missing_ok=True)


def _finish(job: Job, earlier: Earlier) -> None:
    """Finish the folder; each step may be repeated after a crash. Raises OutputError."""
    try:
        if earlier.interrupted:  # killed right after its summary
            for name in (*earlier.leftovers(), STATE, JOURNAL):
                (job.part / name).unlink(missing_ok=True)
        if job.rle:
            write_whole(job.part / MASKS, _rle_lines(job.part, list(earlier.frames)))
        if job.folder.exists():
            os.rename(job.folder, job.old)
        os.rename(job.part, job.folder)
        if job.old.exists():
            shutil.rmtree(job.old)
    except OSError as error:
        raise cannot_write(job.folder, error) from error


def _rle_lines(folder: Path, frames: list[str]) -> str:
    """One line of JSON for every object in every frame, with its mask as COCO RLE."""
    lines = []
    for name in frames:
        labels = read_labels(folder / f"{name}.png")
        for object_id in np.unique(labels[labels > 0]).tolist():
            mask = labels == object_id
            rle = {"size": list(mask.shape), "counts": encode(mask)}
            lines.append(json.dumps({"frame": name, "id": object_id, "segmentation": rle}) + "\n")
    return "".join(lines)
