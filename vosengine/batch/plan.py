"""Plan a batch: make its jobs and check its inputs and outputs before it begins."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..commands.run import RunOptions
from ..errors import InputError, OutputError
from ..naming import listed
from ..video import mask_files
from ..zoo.registry import entry
from ..zoo.weights import cards
from .clips import Clip, find_clips
from .results import Results
from .stores import AnyPath, is_address, list_files, reaching
from .unit import Job, Remote, part_of

# Fields of RunOptions that do not change results.
NOT_IN_STAMP = ("out", "device", "checkpoint", "resume")


@dataclass(frozen=True)
class BatchOptions:
    """Options of `batch`.

    clips        sources of clips, see `find_clips`
    out          results folder, with one folder per clip; a path, or an address for fsspec
    run          options of every clip, fields of RunOptions by name; at least "model"
    mask_suffix  see `find_clips`
    workers      number of processes, or of actors in a cluster
    retries      how often a clip is retried after its process died
    rle          also write masks as COCO RLE
    redo         process clips again that were finished with other inputs or options
    ray          Ray cluster: an address, "auto" or "local"; None: processes on this machine
    scratch      local folder for clips that lie at addresses; None: the temporary folder
    """

    clips: tuple[str, ...]
    out: Path | str
    run: dict[str, Any]
    mask_suffix: str = ""
    workers: int = 1
    retries: int = 2
    rle: bool = False
    redo: bool = False
    ray: str | None = None
    scratch: Path | None = None


def plan(options: BatchOptions) -> list[Job]:
    """Make a job of every clip; write nothing.

    Raises  InputError, ConfigError, WeightsError or StorageError.
    """
    if options.scratch is not None and not options.scratch.is_dir():
        raise InputError(
            f"scratch: {options.scratch}: no such folder; create it, or omit --scratch"
        )
    jobs = [_job(options, clip) for clip in find_clips(options.clips, options.mask_suffix)]
    for model, weights in dict.fromkeys((j.options.model, j.options.weights) for j in jobs):
        _check_weights(model, weights)
    needy = [job for job in jobs if entry(job.options.model).build.needs_mask]
    bare = [job.name for job in needy if not job.has_mask]
    if bare:
        raise InputError(
            f"clips: {len(bare)} without a mask: {listed(bare)}; wanted NAME.png beside the clip, "
            "--mask-suffix for another name, or a manifest with masks"
        )
    return jobs


def _job(options: BatchOptions, clip: Clip) -> Job:
    run_options = {**options.run, **clip.options}
    mask = clip.mask
    if not entry(run_options["model"]).build.takes_mask:
        if clip.explicit_mask:
            raise InputError(
                f"{clip.name}: {run_options['model']} finds the foreground by itself and takes no "
                "mask; omit it"
            )
        mask = None
    remote_out = is_address(options.out)
    folder = Path(clip.name) if remote_out else Path(options.out) / clip.name
    remote = Remote(
        source=clip.source if is_address(clip.source) else None,
        mask=None if mask is None or isinstance(mask, Path) else str(mask),
        folder=f"{str(options.out).rstrip('/')}/{clip.name}" if remote_out else None,
        scratch=options.scratch,
    )
    run = RunOptions(
        source=remote.source or os.path.abspath(clip.source),
        mask=Path(os.path.abspath(mask)) if isinstance(mask, Path) else None,
        out=part_of(folder),
        **run_options,
    )
    stamp = _stamp(run, mask, options.rle)
    run = replace(run, weights=_absolute(run.weights), proposals=_absolute(run.proposals))
    is_remote = any((remote.source, remote.mask, remote.folder))
    return Job(folder, run, stamp, options.rle, remote if is_remote else None)


def _absolute(name: str | None) -> str | None:
    """Make a file name absolute; names of weight sets and proposal sources are kept."""
    if name is None:
        return None
    kind, colon, path = name.rpartition(":")
    is_path = kind == "file" or (not colon and _is_file_of_weights(path))
    return f"{kind}{colon}{os.path.abspath(path)}" if is_path else name


def _is_file_of_weights(name: str) -> bool:
    return name.endswith(".safetensors") or "/" in name


def _stamp(run: RunOptions, mask: AnyPath | None, rle: bool) -> dict[str, Any]:
    """Everything that a clip's results depend on, as JSON types.

    That is the paths of its inputs, a hash of the masks' contents (at an address: of their entity
    tags or times), and options that differ from the defaults.
    """
    defaults = {option.name: option.default for option in fields(RunOptions)}
    stamp = {name: value for name, value in asdict(run).items() if value != defaults[name]}
    for name in NOT_IN_STAMP:
        stamp.pop(name, None)
    if run.mask is not None:
        files = mask_files(run.mask) if run.mask.is_dir() else [run.mask]
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        stamp |= {"mask": str(run.mask), "mask_sha256": digest.hexdigest()}
    elif mask is not None:
        stamp |= {"mask": str(mask), "mask_version": _version(mask)}
    as_json: dict[str, Any] = json.loads(json.dumps(stamp | {"rle": rle}))
    return as_json


def _version(mask: Any) -> str:
    """Hash the entity tags (or times and sizes) of a mask, or a folder of masks, at an address.

    Raises  StorageError.
    """
    with reaching(mask):
        paths = [mask / name for name in sorted(list_files(mask))] if mask.is_dir() else [mask]
        digest = hashlib.sha256()
        for path in paths:
            digest.update(f"{path.name}\0{path.fs.ukey(path.path)}\0".encode())
    return digest.hexdigest()


def _check_weights(model: str, weights: str | None) -> None:
    if weights is None:
        return
    if _is_file_of_weights(weights):
        if not Path(weights).is_file():
            raise InputError(f"weights: {weights}: no such file; nothing was started")
    elif (name := weights if "." in weights else f"{model}.{weights}") not in cards():
        raise InputError(f"weights: no set named {name}; `vosengine models` lists them")


def unfinished(options: BatchOptions, jobs: Sequence[Job], results: Results) -> list[Job]:
    """Select the unfinished jobs. Raises OutputError for results of other inputs or options."""
    todo, changed = [], []
    for job, existing in zip(jobs, results.find(jobs), strict=True):
        if existing.foreign is not None:
            raise OutputError(
                f"{existing.foreign}: is in the way: no batch wrote it; move it away, or give the "
                "clip another name or the batch another folder"
            )
        if existing.finished == job.stamp:
            if existing.leftover:
                results.tidy(job)
            continue
        todo.append(job)
        if existing.finished is not None:
            changed.append((job, existing.finished))
    if changed and not options.redo:
        raise OutputError(
            f"{options.out}: {len(changed)} were finished with other inputs or options: "
            f"{listed([job.name for job, _ in changed])}; {_difference(*changed[0])}; use --redo "
            "to process them again, or choose another folder"
        )
    for job, _ in changed:
        results.check_replaceable(job)
    return todo


def _difference(job: Job, old: dict[str, Any]) -> str:
    new = job.stamp
    name = next(n for n in sorted({*old, *new}) if old.get(n) != new.get(n))
    return f"the first was with {name} {old.get(name)!r}, now {new.get(name)!r}"
