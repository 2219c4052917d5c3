"""What a batch is going to do, and what it must not touch: decided before it begins."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..commands.record import SUMMARY, read_earlier
from ..commands.run import RunOptions
from ..errors import InputError, OutputError
from ..files import check_output_folder
from ..naming import listed
from ..video import mask_files
from ..zoo.registry import entry
from ..zoo.weights import cards
from .clips import Clip, find_clips
from .unit import MASKS, STAMP, Job, part_of, read_stamp

NOT_OF_THE_RESULT = ("out", "device", "checkpoint", "resume")  # fields of RunOptions


@dataclass(frozen=True)
class BatchOptions:
    """What `batch` is asked for.

    clips        as `find_clips` takes them, with mask_suffix
    out          the folder for a folder of every clip
    run          for every clip, fields of RunOptions by name: model at least
    workers      how many processes
    retries      how often a clip is begun again after its process died
    rle          write each clip's masks as COCO RLE too
    redo         clips that were finished of other inputs or with other options are done again
    """

    clips: tuple[str, ...]
    out: Path
    run: dict[str, Any]
    mask_suffix: str = ""
    workers: int = 1
    retries: int = 2
    rle: bool = False
    redo: bool = False


def plan(options: BatchOptions) -> list[Job]:
    """Every clip as a job. Raises InputError, ConfigError or WeightsError; writes nothing."""
    check_output_folder(options.out)
    jobs = [_job(options, clip) for clip in find_clips(options.clips, options.mask_suffix)]
    for model, weights in dict.fromkeys((j.options.model, j.options.weights) for j in jobs):
        _check_weights(model, weights)
    bare = [job.name for job in jobs if job.options.mask is None and _kind(job).needs_mask]
    if bare:
        raise InputError(
            f"clips: {len(bare)} without a mask: {listed(bare)}; wanted NAME.png beside the clip, "
            "--mask-suffix for another name, or a manifest with masks"
        )
    return jobs


def _kind(job: Job) -> Any:
    return entry(job.options.model).build


def _job(options: BatchOptions, clip: Clip) -> Job:
    given = {**options.run, **clip.options}
    mask = clip.mask
    if not entry(given["model"]).build.takes_mask:
        if clip.given:
            raise InputError(
                f"{clip.name}: {given['model']} finds the foreground by itself and takes no mask; "
                "leave it out"
            )
        mask = None
    folder = options.out / clip.name
    source = os.path.abspath(clip.source)
    run = RunOptions(
        source=source,
        mask=None if mask is None else Path(os.path.abspath(mask)),
        out=part_of(folder),
        **given,
    )
    return Job(folder, run, _stamp(run, options.rle), options.rle)


def _stamp(run: RunOptions, rle: bool) -> dict[str, Any]:
    """What decides about a clip's files, in JSON's types: its inputs' places, the masks' contents,
    and the options that are not the defaults."""
    defaults = {each.name: each.default for each in fields(RunOptions)}
    stamp = {name: value for name, value in asdict(run).items() if value != defaults[name]}
    for name in NOT_OF_THE_RESULT:
        stamp.pop(name, None)
    if run.mask is not None:
        files = mask_files(run.mask) if run.mask.is_dir() else [run.mask]
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        stamp |= {"mask": str(run.mask), "mask_sha256": digest.hexdigest()}
    stamp |= {"rle": rle}
    found: dict[str, Any] = json.loads(json.dumps(stamp))
    return found


def _check_weights(model: str, weights: str | None) -> None:
    if weights is None:
        return
    if weights.endswith(".safetensors") or "/" in weights:
        if not Path(weights).is_file():
            raise InputError(f"weights: {weights}: no such file; nothing was started")
    elif (name := weights if "." in weights else f"{model}.{weights}") not in cards():
        raise InputError(f"weights: no set named {name}; `vosengine models` lists them")


def unfinished(options: BatchOptions, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that are to be done. Raises OutputError for results that are not theirs."""
    todo, changed = [], []
    for job in jobs:
        stamps = {folder: read_stamp(folder) for folder in (job.folder, job.part)}
        for folder, stamp in stamps.items():
            if stamp is None and os.path.lexists(folder) and not _is_empty_part(folder, job):
                raise OutputError(
                    f"{folder}: is in the way: no batch wrote it; move it away, or give the clip "
                    "another name or the batch another folder"
                )
        if stamps[job.folder] == job.stamp:
            shutil.rmtree(job.old, ignore_errors=True)  # if it was killed before it could do that
            continue
        todo.append(job)
        if stamps[job.folder] is not None:
            changed.append(job)
    if changed and not options.redo:
        raise OutputError(
            f"{options.out}: {len(changed)} were finished of other inputs or with other options: "
            f"{listed([job.name for job in changed])}; {_difference(changed[0])}; --redo does them "
            "again, or choose another folder"
        )
    for job in changed:
        _check_own(job.folder)
    return todo


def _is_empty_part(folder: Path, job: Job) -> bool:
    """Whether it is what a batch leaves that is killed before it has written a byte there."""
    names = os.listdir(folder) if folder == job.part and folder.is_dir() else ["another"]
    return not {*names} - {f".{STAMP}.part"}


def _difference(job: Job) -> str:
    old, new = read_stamp(job.folder) or {}, job.stamp
    name = next(n for n in sorted({*old, *new}) if old.get(n) != new.get(n))
    return f"the first was with {name} {old.get(name)!r}, now {new.get(name)!r}"


def _check_own(folder: Path) -> None:
    """Raise OutputError where a finished folder holds what no batch wrote, or was changed since."""
    earlier = read_earlier(folder)
    for name in sorted({*os.listdir(folder)} - {SUMMARY, STAMP, MASKS}):
        if not earlier.owns(name):
            raise OutputError(
                f"{folder / name}: would be lost, but no batch wrote it, or it was changed since; "
                "move it away"
            )
