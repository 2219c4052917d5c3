"""`vosengine eval`: how good masks are, those in a folder or those that a model gives now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import __version__
from ..engine.segmenter import Segmenter
from ..engine.video import Answer, segment_video
from ..errors import InputError
from ..evaluation import (
    FEWEST_FRAMES,
    Annotated,
    Evaluation,
    FirstMask,
    Frame,
    Labels,
    SequenceScore,
    WarpedMask,
    best_ids,
    centred_ellipse,
    find_annotated,
    measure,
    outside_void,
    report,
)
from ..files import Given, Ledger, check_output_folder, keep_apart
from ..timing import device_name, summarise
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

MASKS = "masks.json"  # beside the masks: which they are
MODEL = "model"
COPIED = "first mask copied"
WARPED = "mask warped by flow"
PROPAGATED = "labels propagated"
ELLIPSE = "centred ellipse"


@dataclass(frozen=True)
class EvaluateOptions:
    """What a model's evaluation is asked for.

    data       a data set in DAVIS layout
    sequences  their names; None takes all
    limit      the first frames of every sequence, at least 3; None takes all
    binary     all ids above 0 are one object when J and F are taken
    rule       what 255 is in an annotation, as `measure_folders` has it
    out        keep the masks there as OUT/<sequence>/<frame>.png, as they were scored: with the
               annotation's ids, objects that match none left out
    json       where the caller will put the figures: no file that is read
    propagation  whether a model that needs a mask is also held against PropagatedMask, which takes
               about as long as a small model

    The rest is as in Segmenter.
    """

    model: str
    data: Path
    weights: str | None = None
    device: str = "auto"
    precision: str = "auto"
    size: int | tuple[int, int] | str | None = None
    memory: str | None = None
    sequences: tuple[str, ...] | None = None
    limit: int | None = None
    binary: bool = False
    rule: MaskRule = AS_FOUND
    out: Path | None = None
    json: Path | None = None
    propagation: bool = True


@dataclass(frozen=True)
class Progress:
    """Frames answered, of how many, and the sequence of the last one."""

    done: int
    total: int
    sequence: str


@dataclass(frozen=True)
class ModelEvaluation:
    """A model beside baselines on the same frames.

    baselines     by name
    note          what to say of random weights; None where they are trained
    settings      what it was run with
    milliseconds  of every frame but the first of each sequence
    """

    evaluation: Evaluation
    baselines: dict[str, Evaluation]
    note: str | None
    settings: dict[str, Any]
    milliseconds: list[float] = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """`report` of the model, with its baselines, settings and times."""
        return {
            **report(self.evaluation),
            "baselines": {name: report(found) for name, found in self.baselines.items()},
            **self.settings,
            "timed_frames": len(self.milliseconds),
            **summarise(self.milliseconds),
        }


class Baseline(Protocol):
    """An answer for every frame after the first."""

    def step(self, frame: Frame) -> Labels:
        """The answer for the next frame."""
        ...


def evaluate(
    options: EvaluateOptions, progress: Callable[[Progress], None] = lambda progress: None
) -> ModelEvaluation:
    """Run a model over annotated sequences and take J and F of what it says, and of baselines.

    A model that needs a mask is given that of the first frame and follows the objects in it; those
    that only a later annotation shows are left out of it. Its baselines are that mask copied to
    every frame, carried on by optical flow, and by features that nobody trained for it. A model
    that needs none is given none. Where it can find but one object, that is held against all
    annotated ones together; where it finds more, `match_objects` says which is which. Its
    baseline, a centred ellipse, is treated alike.

    progress  is called after every frame

    Raises  InputError and whatever Segmenter raises.
    """
    found = _find(options)
    _check_outputs(options, found)
    sources = [_open(sequence) for sequence in found]
    with_void = []
    if options.out is not None:
        prepare_output_folder(options.out)
    segmenter = Segmenter(
        options.model,
        weights=options.weights,
        device=options.device,
        precision=options.precision,
        size=options.size,
        memory=options.memory,
    )
    propagation = options.propagation and segmenter.method.needs_mask
    features = Features(segmenter.device) if propagation else None
    total, done = sum(len(sequence.frames) for sequence in found), 0
    scores: dict[str, dict[str, SequenceScore]] = {}
    milliseconds: list[float] = []
    for sequence, frames in zip(found, sources, strict=True):
        run = SequenceRun(sequence, segmenter, features, options.rule)
        for answer in segment_video(segmenter, run.checked(frames), run.prompts):
            run.take(answer)
            done += 1
            progress(Progress(done, total, sequence.name))
        run.finish(options.binary)
        for name, score in run.scores.items():
            scores.setdefault(name, {})[sequence.name] = score
        milliseconds += run.milliseconds[1:]  # the first frame is cold
        if run.has_void:
            with_void.append(sequence.name)
        if options.out is not None:
            _keep(run, options.out, note_of(segmenter))
    return ModelEvaluation(
        evaluation=Evaluation(scores.pop(MODEL), tuple(with_void)),
        baselines={
            name: Evaluation(by_sequence, tuple(with_void)) for name, by_sequence in scores.items()
        },
        note=note_of(segmenter),
        settings=_settings(options, segmenter),
        milliseconds=milliseconds,
    )


def _open(sequence: Annotated) -> Images:
    frames = Images(sequence.frames, sequence.name)
    if frames.length != len(sequence.frames):
        raise InputError(
            f"{sequence.name}: {len(sequence.frames)} files with {frames.length} images; wanted "
            "one image in a file, beside its mask"
        )
    return frames


class SequenceRun:
    """One sequence: what the model and the baselines say of it, and the scores in the end.

    features  for the mask to be propagated by; None: it is not

    Raises  InputError where the model needs a mask and the first annotation shows no object.
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
            self._follow_first_objects()
        self.answers: dict[str, list[Labels]] = {MODEL: [self.annotations[0]] * len(self)}
        self._baselines: dict[str, Baseline] = {}
        segmenter.reset()

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def has_void(self) -> bool:
        """Whether any annotation has void in it, which counts for nobody."""
        return any(mask.void is not None for mask in self.masks)

    @property
    def prompts(self) -> dict[int, Labels]:
        """The masks that the model is given, by frame."""
        return {0: self.annotations[0]} if self._prompted else {}

    def checked(self, frames: Iterable[SourceFrame]) -> Iterator[SourceFrame]:
        """The frames. Raises InputError at one whose annotation has another size."""
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
        """The model's answer for the next frame, to which the baselines have theirs."""
        frame = answer.frame
        self.milliseconds.append(answer.milliseconds)
        self.answers[MODEL][frame.index] = answer.result.numpy()
        if frame.index == 0:
            self._start_baselines(frame.image)
            return
        for name, baseline in self._baselines.items():
            self.answers[name].append(baseline.step(frame.image))

    def finish(self, binary: bool) -> None:
        """Take all scores."""
        binary = binary or (not self._prompted and self.segmenter.max_objects == 1)
        for name, labels in self.answers.items():
            counted = [outside_void(*each) for each in zip(labels, self.masks, strict=True)]
            if not self._prompted and not binary:
                table = best_ids(counted, self.annotations, name=self.sequence.name)
                self.answers[name] = [table[each] for each in labels]
                counted = [table[each] for each in counted]
            pairs = zip(counted, self.annotations, strict=True)
            self.scores[name] = measure(pairs, binary=binary, name=self.sequence.name)

    def _follow_first_objects(self) -> None:
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


def _find(options: EvaluateOptions) -> list[Annotated]:
    """The sequences, cut to the limit. Raises InputError for one that is too short."""
    found = []
    for sequence in find_annotated(options.data, options.sequences):
        frames = sequence.frames[: options.limit]
        if len(frames) < FEWEST_FRAMES:
            raise InputError(
                f"{sequence.name}: {len(frames)} frames, wanted at least {FEWEST_FRAMES}; the "
                "first and the last are left out"
            )
        found.append(Annotated(sequence.name, frames, sequence.annotations[: options.limit]))
    return found


def _check_outputs(options: EvaluateOptions, found: list[Annotated]) -> None:
    """See that no mask and no figures are written over what is read, or over files that are not
    masks of an earlier evaluation. Raises OutputError."""
    written = [] if options.json is None else [options.json]
    if options.out is not None:
        check_output_folder(options.out)
        written += [options.out / s.name / f"{p.stem}.png" for s in found for p in s.frames]
        written.append(options.out / MASKS)
    keep_apart(
        [
            *Given.named("the data", options.data / "JPEGImages", tree=True),
            *Given.named("the data", options.data / "Annotations", tree=True),
            *Given.named("the weights", options.weights),
        ],
        written,
    )
    if options.out is not None:
        Ledger(options.out / MASKS).check(f"{s.name}/{p.stem}.png" for s in found for p in s.frames)


def _keep(run: SequenceRun, out: Path, note: str | None) -> None:
    folder = prepare_output_folder(out / run.sequence.name)
    for path, labels in zip(run.sequence.frames, run.answers[MODEL], strict=True):
        write_labels(folder / f"{path.stem}.png", labels, note)
    Ledger(out / MASKS).add(f"{folder.name}/{path.stem}.png" for path in run.sequence.frames)


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
