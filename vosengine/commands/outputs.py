"""Output files of a run, and checks before replacing existing files."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, OutputError, VosError
from ..files import (
    Fingerprint,
    Given,
    check_output_folder,
    keep_apart,
    scratch_of,
    write_whole,
)
from ..video import (
    FrameSource,
    SourceFrame,
    VideoWriter,
    encode_labels,
    overlay,
    prepare_output_folder,
    read_labels,
)
from ..video.video_writer import part_of
from .record import FIXED, OVERLAY, STATE, SUMMARY, Journal, read_earlier

if TYPE_CHECKING:
    from .run import RunOptions

# Mask file of a numbered frame, and its temporary file.
NUMBERED = r"(\d{5,})\.png|\.(\d{5,})\.png\.part"
LONGEST_NAME = 255 - len("..png.part")  # maximum length of a frame's name in bytes
MIN_MASK_BYTES = 800  # of a PNG: its palette and headers


def inputs_of(options: RunOptions, source: FrameSource) -> Iterable[Given]:
    """Every file and folder that a run reads."""
    for path in source.reads:
        yield Given("the source", path)
    yield from Given.named("the mask", options.mask)
    yield from Given.named("the weights", options.weights)
    yield from Given.named("the export", options.export)
    if options.proposals is not None:
        yield from Given.named("the proposals", options.proposals.partition(":")[2])


class Outputs:
    """The output files of a run.

    Nothing is written or removed before `begin`. By then `check` has made sure that no input is
    overwritten, and no file that no earlier run wrote or that was changed since.

    names    names of the frames written
    times    times of their steps in ms
    shown_s  their presentation times in seconds
    behind   whether the stream has returned a result that is not yet on disk
    """

    def __init__(self, options: RunOptions) -> None:
        self.folder = options.out
        check_output_folder(self.folder)
        self.earlier = read_earlier(self.folder)
        self.names: list[str] = []
        self.times: list[float] = []
        self.shown_s: list[float | None] = []
        self.pixel_aspect = Fraction(1)
        self.begun = self.behind = False
        self._overlay = options.overlay
        self._constant_rate = options.fps is not None
        self._files: dict[str, Fingerprint] = {}
        self._existing = {p.name for p in self.folder.iterdir()} if self.folder.is_dir() else set()
        self._kept: dict[str, Fingerprint] = {}
        self._video: VideoWriter | None = None

    def check(self, options: RunOptions, source: FrameSource, answered: int) -> None:
        """Check that this run loses no file of the user.

        answered  number of frames on disk from the run to resume; 0: a new run

        Raises  OutputError, naming the file that would be lost; InputError for a frame name that is
                too long for a file.
        """
        names = source.names
        if names is not None:
            names = names[answered : options.limit]
            _check_names(names)
        written = self._written(names, answered)
        removed = [name for name in self.earlier.files if name in self._existing]
        targets = dict.fromkeys((*written, *removed))
        keep_apart(inputs_of(options, source), (self.folder / name for name in targets))
        foreign = [n for n in written if n in self._existing and not self.earlier.owns(n)]
        if foreign:
            raise self._overwrite_error(foreign)
        if answered:
            self._check_answered(answered)
        length = min(options.limit or 1 << 62, source.length or 0)
        self._check_free_space(max(0, length - answered))

    def _written(self, names: Sequence[str] | None, answered: int) -> list[str]:
        """Every file name that this run may write and that could exist."""
        fixed = [n for n in FIXED if self._overlay or n != OVERLAY]
        if names is not None:
            fixed += [f"{name}.png" for name in names]
        else:  # numbered frames: only existing files matter
            numbered = (re.fullmatch(NUMBERED, name) for name in self._existing)
            numbers = {m[1] or m[2] for m in numbered if m}
            fixed += [f"{number}.png" for number in sorted(numbers) if int(number) >= answered]
        scratches = [scratch_of(Path(name)).name for name in fixed]
        return [*fixed, *scratches, *([part_of(Path(OVERLAY)).name] if self._overlay else [])]

    def _overwrite_error(self, names: Sequence[str]) -> OutputError:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        return OutputError(
            f"{self.folder / names[0]}{more}: is in the way: it would be replaced, but no earlier "
            "run wrote it, or it was changed since; move it away or choose another folder"
        )

    def _check_answered(self, answered: int) -> None:
        names = list(self.earlier.frames)[:answered]
        missing = [name for name in names if f"{name}.png" not in self._existing]
        if missing or len(names) < answered:
            what = f"{missing[0]}.png" if missing else f"a mask of the first {answered} frames"
            raise OutputError(
                f"{self.folder}: {what} of the run to resume no longer exists; start a new run "
                "without --resume"
            )

    def begin(
        self,
        options: RunOptions,
        note: str | None,
        source: FrameSource,
        answered: int,
        mask: dict[str, Any] | None,
    ) -> None:
        """Start writing: remove the files of an earlier run, or keep its masks when resuming. Later
        calls do nothing.

        Raises  OutputError.
        """
        if self.begun:
            return
        prepare_output_folder(self.folder)
        self.note = note
        ours = {n for n in self.earlier.files if n in self._existing and self.earlier.owns(n)}
        unfinished = self.earlier.leftovers() & self._existing
        if self.earlier.interrupted:
            ours |= {STATE, OVERLAY} & self._existing
        frames = dict(list(self.earlier.frames.items())[:answered])
        self._journal = Journal(self.folder, mask, self.earlier, frames)
        self.begun = True
        self._clear(unfinished)
        if options.resume:
            replaced = {STATE, OVERLAY} if options.overlay else {STATE}
            self._kept = {n: Fingerprint.read(self.folder / n) for n in ours - replaced}
        else:
            self._clear(ours)
        self._clear([SUMMARY])
        self.times = list(frames.values())
        if options.overlay:
            rate = options.fps or source.fps
            self._video = VideoWriter(self.folder / OVERLAY, rate, tick=source.tick)

    def _check_free_space(self, frames: int) -> None:
        place = self.folder.absolute()
        while not place.exists():
            place = place.parent
        old = (self.folder / name for name in self.earlier.files if name in self._existing)
        free = shutil.disk_usage(place).free + sum(path.stat().st_size for path in old)
        if free < frames * MIN_MASK_BYTES:
            raise OutputError(
                f"{self.folder}: {frames} masks need at least "
                f"{frames * MIN_MASK_BYTES / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free; make "
                "room or choose another disk"
            ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _clear(self, names: Iterable[str]) -> None:
        for name in names:
            path = self.folder / name
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{path}: cannot be removed ({error.strerror})") from error

    def write(self, frame: SourceFrame, labels: np.ndarray, ms: float) -> None:
        """Write the mask of a frame. Raises OutputError, naming the file that failed."""
        name = f"{frame.name}.png"
        if name in self._existing and name not in self._kept and name not in self.earlier.files:
            raise self._overwrite_error([name])
        data = encode_labels(labels, self.note)
        known = Fingerprint.of(data)
        self._journal.frame(frame.name, ms, name, known)
        write_whole(self.folder / name, data)
        self._kept.pop(name, None)
        self._files[name] = known
        self.names.append(frame.name)
        self.times.append(ms)
        self._add_to_overlay(frame, labels)

    def replay(self, frame: SourceFrame) -> None:
        """Add a frame whose mask is already on disk to the overlay. Raises InputError if it is
        not the frame of the earlier run."""
        expected = list(self.earlier.frames)[frame.index]
        if frame.name != expected:
            raise InputError(
                f"resume: frame {frame.index} is {frame.name}, in the run to resume it was "
                f"{expected}; give the same source, or start a new run without --resume"
            )
        name = f"{frame.name}.png"
        labels = read_labels(self.folder / name)
        if name in self._kept:
            self._files[name] = self._kept.pop(name)
        self.names.append(frame.name)
        self._add_to_overlay(frame, labels)

    def _add_to_overlay(self, frame: SourceFrame, labels: np.ndarray) -> None:
        self.shown_s.append(frame.time_s)
        self.pixel_aspect = frame.sar
        if self._video is not None:
            caption = None if self.note is None else "RANDOM WEIGHTS"
            time_s = None if self._constant_rate else frame.time_s
            self._video.write(overlay(frame.image, labels, caption=caption), time_s, frame.sar)

    def save(self, segmenter: Any) -> None:
        """Save the stream. Raises OutputError."""
        segmenter.save_state(self.folder / STATE)

    def close(self) -> None:
        """Finish the overlay. Raises OutputError."""
        if self._video is not None:
            self._video.close()

    def sum_up(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Write the summary, which lists all files, then remove the journal.

        Raises  OutputError; then the journal stays.
        """
        complete = summary["complete"]
        if complete:
            self._clear(self._kept)  # left by an earlier, longer run
            self._kept = {}
        files = {**self._kept, **self._files}
        for name, wanted in ((OVERLAY, self._video is not None), (STATE, not complete)):
            if wanted and (self.folder / name).is_file():
                files[name] = Fingerprint.read(self.folder / name)
        listed = {name: {"bytes": k.size, "sha256": k.sha256} for name, k in files.items()}
        summary = {**summary, "run": self._journal.run, "files": listed}
        write_whole(self.folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
        if complete:
            self._clear([STATE])
        self._journal.close(finished=True)
        return summary

    def abandon(self) -> None:
        """Close open files after an error; the journal stays."""
        if self.begun:
            with suppress(VosError):  # the first error is reported
                self.close()
            self._journal.close(finished=False)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise InputError(
                f"{name}: this frame name is too long for a mask file; wanted at most "
                f"{LONGEST_NAME} bytes; rename the frame's file"
            )
