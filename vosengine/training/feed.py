"""Data set and loader of a training run: source, window, augmentation, batches."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..config.checks import check
from ..errors import InputError
from ..types import Size
from .augment import augment
from .samples import Sample, Source, collate
from .streams import Stream, check_seed, generator

_TRIES = 4


class Feed(Dataset[Sample]):
    """Data set of all steps * batch clips of a run.

    Clip n depends only on the seed and n, not on earlier reads or on the process.
    """

    def __init__(
        self, source: Source, size: Size, frames: int, seed: int, steps: int, batch: int
    ) -> None:
        """Make the feed.

        size          (height, width) of the training clips
        frames        frames per clip
        steps, batch  number of steps, clips per step

        Raises  ConfigError for values below 1.
        """
        sides = {"height": size[0], "width": size[1]}
        for name, value in {**sides, "frames": frames, "steps": steps, "batch": batch}.items():
            check(value >= 1, name, "at least 1", value)
        self._source, self._size, self._frames = source, size, frames
        self._seed = check_seed(seed)
        self.steps, self.batch = steps, batch

    def __len__(self) -> int:
        return self.steps * self.batch

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < len(self):
            raise IndexError(f"clip {number} of {len(self)}")
        rng = generator(Stream.FEED, self._seed, number)
        sample = self._source.sample(number, number // self.batch / self.steps)
        return augment(_window(sample, self._frames, rng), self._size, rng)


def _window(sample: Sample, frames: int, rng: np.random.Generator) -> Sample:
    """Choose `frames` frames of the clip in order, preferring a first frame with an object."""
    length = len(sample.frames)
    if length < frames:
        raise InputError(
            f"{sample.origin}: has {length} frames, wanted {frames}; train on shorter clips, or"
            " write a cache of longer ones"
        )
    chosen = np.arange(length)
    for _ in range(_TRIES):
        if rng.random() < 0.5:
            chosen = rng.integers(length - frames + 1) + np.arange(frames)
        else:
            chosen = np.sort(rng.choice(length, frames, replace=False))
        if sample.masks[chosen[0]].any():
            break
    return replace(sample, frames=sample.frames[chosen], masks=sample.masks[chosen])


def loader(feed: Feed, first_step: int = 0, workers: int = 0) -> DataLoader[Sample]:
    """Loader of the run's batches from step `first_step` on, one per step.

    workers  number of loader processes; 0: load in this one. It does not change the batches.

    Does not use torch's global random state.

    Raises  ConfigError if `first_step` is not in 0..feed.steps.
    """
    check(0 <= first_step <= feed.steps, "first_step", f"0 to {feed.steps}", first_step)
    return DataLoader(
        feed,
        batch_size=feed.batch,
        sampler=range(first_step * feed.batch, len(feed)),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_one_thread,
        # Spawned, not forked: the training process has threads.
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator(),
    )


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)
