"""Score a model and its baselines on one annotated sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from .. import __version__
from ..batch.worker import FatalWorkError
from ..engine.segmenter import Segmenter
from ..engine.video import Answer, segment_video
from ..errors import InputError, VosError
from ..evaluation import (
    Annotated,
    FirstMask,
    Frame,
    Labels,
    SequenceScore,
    WarpedMask,
    best_ids,
    centred_ellipse,
    measure,
    outside_void,
)
from ..timing import device_name
from ..video import (
    AS_FOUND,
    MaskRule,
    MaskSequence,
    SourceFrame,
    prepare_output_folder,
    write_labels,
)
from ..video.images import Images
from .engines import note_of
from .propagation import Features, PropagatedMask

if TYPE_CHECKING:
    from .evaluate import EvaluateOptions

MODEL = "model"
COPIED = "first mask copied"
WARPED = "mask warped by flow"
PROPAGATED = "labels propagated"
ELLIPSE = "centred ellipse"


class Baseline(Protocol):
    """Predicts labels for every frame after the first."""

    def step(self, frame: Frame) -> Labels:
        """Labels of the next frame, uint8 [H, W]."""
        ...


@dataclass(frozen=True)
class Scored:
    """Scores of a sequence.

    scores        by name: MODEL and the baselines
    with_void     whether any annotation has void pixels
    milliseconds  time of every frame but the first
    settings      options and environment of the model
    """

    scores: dict[str, SequenceScore]
    with_void: bool
    milliseconds: list[float]
    settings: dict[str, Any]


class SequenceWorker:
    """Scores sequences one at a time with one segmenter; a `Work` for a process or an actor.

    threads  maximum number of torch threads; None leaves it to torch
    """

    def __init__(self, options: EvaluateOptions, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(min(threads, torch.get_num_threads()))
        self._options = options
        self._loaded: tuple[Segmenter, Features | None] | None = None

    def __call__(
        self,
        sequence: Annotated,
        report: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> Scored | None:
        """Score a sequence; None if stopped.

        Raises  FatalWorkError, because a mean over part of the sequences would be wrong; its error
                names the sequence, unless it is about the model.
        """
        try:
            segmenter, features = self._models()
        except VosError as error:
            raise FatalWorkError(error) from error
        try:
            return self._score(sequence, segmenter, features, report, should_stop)
        except VosError as error:
            named = sequence.name in str(error)
            with_name = error if named else type(error)(f"{sequence.name}: {error}")
            raise FatalWorkError(with_name) from error

    def _models(self) -> tuple[Segmenter, Features | None]:
        if self._loaded is None:
            options = self._options
            segmenter = Segmenter(
                options.model,
                weights=options.weights,
                device=options.device,
                precision=options.precision,
                size=options.size,
                memory=options.memory,
            )
            propagation = options.propagation and segmenter.method.needs_mask
            self._loaded = segmenter, Features(segmenter.device) if propagation else None
        return self._loaded

    def _score(
        self,
        sequence: Annotated,
        segmenter: Segmenter,
        features: Features | None,
        report: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> Scored | None:
        options = self._options
        run = SequenceRun(sequence, segmenter, features, options.rule)
        frames = run.checked(open_frames(sequence))
        for answer in segment_video(segmenter, frames, run.prompts, should_stop=should_stop):
            run.take(answer)
            report(1)
        if len(run.milliseconds) < len(run):  # stopped
            return None
        run.finish(options.binary)
        settings = _settings(options, segmenter)
        if options.out is not None:
            _write_masks(run, options.out, settings["weights"]["note"])
        return Scored(
            scores=run.scores,
            with_void=run.has_void,
            milliseconds=run.milliseconds[1:],  # without the first frame, which includes warm-up
            settings=settings,
        )


def open_frames(sequence: Annotated) -> Images:
    """Open the frames. Raises InputError if a file has several images."""
    frames = Images(sequence.frames, sequence.name)
    if frames.length != len(sequence.frames):
        raise InputError(
            f"{sequence.name}: {len(sequence.frames)} files with {frames.length} images; wanted "
            "one image in a file, beside its mask"
        )
    return frames


class SequenceRun:
    """Predictions of the model and the baselines for one sequence, and their scores.

    features  features for PropagatedMask; None: it is not scored

    Raises  InputError if the model needs a mask and the first annotation has no object.
    """

    def __init__(
        self,
        sequence: Annotated,
        segmenter: Segmenter,
        features: Features | None = None,
        rule: MaskRule = AS_FOUND,
    ) -> None:
        self.sequence, self.segmenter, self._features = sequence, segmenter, features
        files = MaskSequence(sequence.annotations, rule)
        self.masks = [files.read(path) for path in sequence.annotations]
        self.annotations = [mask.labels for mask in self.masks]
        self.scores: dict[str, SequenceScore] = {}
        self.milliseconds: list[float] = []
        self._prompted = segmenter.method.needs_mask
        if self._prompted:
            self._keep_first_objects()
        self.answers: dict[str, list[Labels]] = {MODEL: [self.annotations[0]] * len(self)}
        self._baselines: dict[str, Baseline] = {}
        segmenter.reset()

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def has_void(self) -> bool:
        """Whether any annotation has void pixels, which are not scored."""
        return any(mask.void is not None for mask in self.masks)

    @property
    def prompts(self) -> dict[int, Labels]:
        """The masks given to the model, uint8 [H, W], by frame index."""
        return {0: self.annotations[0]} if self._prompted else {}

    def checked(self, frames: Iterable[SourceFrame]) -> Iterator[SourceFrame]:
        """The frames. Raises InputError if an annotation has another size than its frame."""
        for frame in frames:
            annotation = self.annotations[frame.index]
            if frame.image.shape[:2] != annotation.shape:
                raise InputError(
                    f"{self.sequence.name}/{frame.name}: the frame is {frame.image.shape[0]} x "
                    f"{frame.image.shape[1]}, its annotation {annotation.shape[0]} x "
                    f"{annotation.shape[1]}; wanted equal sizes"
                )
            yield frame

    def take(self, answer: Answer) -> None:
        """Add the model's result of the next frame, and those of the baselines."""
        frame = answer.frame
        self.milliseconds.append(answer.milliseconds)
        self.answers[MODEL][frame.index] = answer.result.numpy()
        if frame.index == 0:
            self._start_baselines(frame.image)
            return
        for name, baseline in self._baselines.items():
            self.answers[name].append(baseline.step(frame.image))

    def finish(self, binary: bool) -> None:
        """Compute all scores."""
        binary = binary or (not self._prompted and self.segmenter.max_objects == 1)
        for name, labels in self.answers.items():
            counted = [outside_void(*pair) for pair in zip(labels, self.masks, strict=True)]
            if not self._prompted and not binary:
                table = best_ids(counted, self.annotations, name=self.sequence.name)
                self.answers[name] = [table[frame] for frame in labels]
                counted = [table[frame] for frame in counted]
            pairs = zip(counted, self.annotations, strict=True)
            self.scores[name] = measure(pairs, binary=binary, name=self.sequence.name)

    def _keep_first_objects(self) -> None:
        first = np.bincount(self.annotations[0].ravel(), minlength=256) > 0
        if not first[1:].any():
            raise InputError(
                f"{self.sequence.annotations[0]}: shows no object; {self.segmenter.model} needs "
                "the mask of the first frame"
            )
        kept = np.where(first, np.arange(256), 0).astype(np.uint8)
        self.annotations = [kept[annotation] for annotation in self.annotations]

    def _start_baselines(self, image: Frame) -> None:
        first = self.annotations[0]
        if self._prompted:
            self._baselines[COPIED] = FirstMask(image, first)
            self._baselines[WARPED] = WarpedMask(image, first)
            if self._features is not None:
                self._baselines[PROPAGATED] = PropagatedMask(self._features, image, first)
        else:
            first = centred_ellipse(*first.shape)
            self._baselines[ELLIPSE] = FirstMask(image, first)
        self.answers.update({name: [first] for name in self._baselines})


def _write_masks(run: SequenceRun, out: Path, note: str | None) -> None:
    folder = prepare_output_folder(out / run.sequence.name)
    for path, labels in zip(run.sequence.frames, run.answers[MODEL], strict=True):
        write_labels(folder / f"{path.stem}.png", labels, note)


def _settings(options: EvaluateOptions, segmenter: Segmenter) -> dict[str, Any]:
    card, geometry = segmenter.card, segmenter.geometry
    return {
        "vosengine": __version__,
        "model": options.model,
        "weights": {"name": card.name, "trained": card.trained, "note": note_of(segmenter)},
        "data": str(options.data),
        "limit": options.limit,
        "binary": options.binary,
        "void": options.rule.void,
        "threshold": options.rule.threshold,
        "device": str(segmenter.device),
        "device_name": device_name(segmenter.device),
        "precision": str(segmenter.dtype).removeprefix("torch."),
        "network_size": list(geometry.network) if geometry else None,
    }
