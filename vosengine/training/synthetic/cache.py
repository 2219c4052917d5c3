"""Cache of procedural clips on disk, generated once by worker processes.

A cache is a folder with a description `cache.json` and shards of clips: `frames-0000.npy`
[clips, T, H, W, 3] uint8 RGB and `masks-0000.npy` [clips, T, H, W] uint8. Clip i has level i modulo
the number of levels.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from ...config.checks import check
from ...errors import ConfigError, InputError, OutputError
from ..streams import check_seed, clip_seed
from .levels import GENERATOR, LEVELS, check_levels, make_level_clip

DESCRIPTION = "cache.json"
SHARD = 256  # clips


@dataclass(frozen=True)
class CacheConfig:
    """Description of a cache; equal descriptions mean equal bytes.

    Raises  ConfigError for values out of range.
    """

    clips: int
    frames: int
    height: int
    width: int
    seed: int
    shard: int = SHARD  # clips per shard; the last may have fewer
    levels: int = len(LEVELS)
    generator: int = GENERATOR
    labelled: bool = False  # every object is annotated; see make_level_clip

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "labelled":
                check(isinstance(value, bool), name, "true or false", value)
                continue
            least = 0 if name == "seed" else 1
            fits = type(value) is int and value >= least
            check(fits, name, f"a whole number of at least {least}", value)
        wanted = f"at least one for each of {self.levels} levels"
        check(self.clips >= self.levels, "clips", wanted, self.clips)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.clips // self.shard)

    def shape(self, shard: int) -> tuple[int, int, int, int]:
        """Shape (clips, T, H, W) of a shard's masks."""
        clips = min(self.shard, self.clips - shard * self.shard)
        return clips, self.frames, self.height, self.width


def write_cache(
    folder: Path,
    clips: int,
    frames: int,
    size: tuple[int, int],
    workers: int = 1,
    seed: int = 0,
    *,
    labelled: bool = False,
    shard: int = SHARD,
    on_shard: Callable[[int, int], None] = lambda done, shards: None,
) -> None:
    """Write a cache, or the shards that an interrupted call has not written.

    clips, frames, size  number of clips, frames per clip, (height, width)
    workers   number of processes; 1: this process
    labelled  every object is annotated; see `make_level_clip`
    shard     clips per shard
    on_shard  called after each shard with the numbers of finished shards and of all shards

    Shards are written atomically.

    Raises  ConfigError for values out of range, or if the folder has a cache of another
            description; OutputError if it cannot be written.
    """
    config = CacheConfig(clips, frames, *size, check_seed(seed), shard, labelled=labelled)
    check_levels(frames, size)
    check(workers >= 1, "workers", "at least 1", workers)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _describe(folder, config)
        missing = [n for n in range(config.shards) if not _finished(folder, n)]
        done = config.shards - len(missing)
        for count, _ in enumerate(_write_shards(folder, config, missing, workers), done + 1):
            on_shard(count, config.shards)
    except OSError as error:
        raise OutputError(
            f"{folder}: the cache cannot be written ({error}); make room or name another folder,"
            " and run it again: finished parts are kept"
        ) from error


def read_description(folder: Path) -> CacheConfig:
    """Read the description of the cache in `folder`.

    Raises  InputError if there is no cache; ConfigError if its description is invalid.
    """
    path = folder / DESCRIPTION
    try:
        return CacheConfig(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(
            f"{folder}: holds no cache of clips ({error}); wanted a folder with {DESCRIPTION}"
        ) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: does not describe a cache ({error}); delete the folder and write it again"
        ) from error


def shard_files(folder: Path, shard: int) -> tuple[Path, Path]:
    """Paths of a shard's frames and masks."""
    return folder / f"frames-{shard:04d}.npy", folder / f"masks-{shard:04d}.npy"


def _describe(folder: Path, config: CacheConfig) -> None:
    """Write the description, or check that an existing one is equal."""
    if not (folder / DESCRIPTION).exists():
        stray = next(iter(sorted(folder.glob("*.npy"))), None)
        if stray is not None:
            raise OutputError(
                f"{stray}: is in the way: the folder has no {DESCRIPTION}; move it away or name"
                " another folder"
            )
        text = json.dumps(asdict(config), indent=2) + "\n"
        _write_atomic(folder / DESCRIPTION, lambda file: file.write(text.encode()))
        return
    stored, wanted = asdict(read_description(folder)), asdict(config)
    different = [f"{n} {stored[n]} (wanted {wanted[n]})" for n in stored if stored[n] != wanted[n]]
    if different:
        raise ConfigError(
            f"{folder}: holds another cache: {', '.join(different)}; name another folder or"
            " delete this one"
        )


def _write_shards(
    folder: Path, config: CacheConfig, missing: list[int], workers: int
) -> Iterator[None]:
    """Write the missing shards; yields after each."""
    jobs = [(folder, config, shard) for shard in missing]
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(_write_shard, jobs)
        return
    # Spawned, not forked: the parent may have torch's threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,))
    try:
        for shard in as_completed([pool.submit(_write_shard, job) for job in jobs]):
            yield shard.result()
    except BrokenProcessPool as error:
        raise OutputError(
            f"{folder}: a worker process was killed, perhaps out of memory; run it again with"
            " fewer workers: finished parts are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _write_shard(job: tuple[Path, CacheConfig, int]) -> None:
    folder, config, shard = job
    shape = config.shape(shard)
    frames, masks = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)
    for row in range(shape[0]):
        number = shard * config.shard + row
        seed = clip_seed(config.seed, number)
        level = number % config.levels
        clip = make_level_clip(level, seed, shape[1], shape[2:], config.labelled)
        frames[row], masks[row] = clip.frames, clip.masks
    # Frames are written last: if they exist, the shard is complete.
    frames_file, masks_file = shard_files(folder, shard)
    _write_atomic(masks_file, lambda file: np.save(file, masks))
    _write_atomic(frames_file, lambda file: np.save(file, frames))


def _write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: temporary file, fsync, rename."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _finished(folder: Path, shard: int) -> bool:
    return all(file.exists() for file in shard_files(folder, shard))
