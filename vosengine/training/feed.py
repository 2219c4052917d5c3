"""What a training run reads, in order: sources, augmentation and batches by step."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import ConfigError, InputError
from ..types import Size
from .augment import augment
from .object_ids import renumber
from .samples import Sample, Source, collate
from .streams import Stream, check_seed, generator

_TRIES = 4


class Feed(Dataset[Sample]):
    """The clips of a whole run by number: steps * batch of them.

    Clip n depends on the seed and on n alone, whatever was read before and in which process.
    """

    def __init__(
        self,
        source: Source,
        size: Size,
        frames: int,
        seed: int,
        steps: int,
        batch: int,
        most_objects: int = 255,
    ) -> None:
        """size  (height, width) of the training clips; frames  of each; batch  clips in a step
        most_objects  of a clip with more, some at random; the others become background

        Raises ConfigError for values below 1.
        """
        wanted = {
            "height": size[0], "width": size[1], "frames": frames, "steps": steps, "batch": batch,
            "most_objects": most_objects,
        }  # fmt: skip
        for name, value in wanted.items():
            if value < 1:
                raise ConfigError(f"{name}: wanted at least 1, given {value}")
        self._source, self._size, self._frames = source, size, frames
        self._seed, self._most = check_seed(seed), most_objects
        self.steps, self.batch = steps, batch

    def __len__(self) -> int:
        return self.steps * self.batch

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < len(self):
            raise IndexError(f"clip {number} of {len(self)}")
        rng = generator(Stream.FEED, self._seed, number)
        sample = self._source.sample(number, number // self.batch / self.steps)
        clip = _window(sample, self._frames, rng)
        clip = replace(clip, masks=renumber(clip.masks, self._most, rng))
        return augment(clip, self._size, rng)


def _window(sample: Sample, frames: int, rng: np.random.Generator) -> Sample:
    """`frames` frames of the clip in their order, the first of which shows an object if it can."""
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
    """Batches of the run from step `first_step` on, one for each step.

    workers  processes that prepare them; 0 prepares them in this one. The batches are the same.
    Iterating neither reads nor changes torch's global random state.
    """
    if not 0 <= first_step <= feed.steps:
        raise ConfigError(f"first_step: wanted 0 to {feed.steps}, given {first_step}")
    return DataLoader(
        feed,
        batch_size=feed.batch,
        sampler=range(first_step * feed.batch, len(feed)),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_one_thread,
        # Spawned, not forked: the process that trains holds threads.
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator(),
    )


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)
