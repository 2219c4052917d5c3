"""J (region similarity) and F (boundary accuracy) of label images against annotations.

Both are vos-benchmark's, frame by frame; which objects and frames count is DAVIS-2017's rule for
semi-supervised results.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError, InputError
from ..video import AS_FOUND, Mask, MaskRule, MaskSequence
from .layout import annotation_files, list_folders

Labels = NDArray[np.uint8]  # [H, W] object ids, 0 is background

FEWEST_FRAMES = 3  # the first and the last are left out


@dataclass(frozen=True)
class Score:
    """J and F as fractions 0..1."""

    j: float
    f: float

    @property
    def jf(self) -> float:
        """J&F: the mean of the two."""
        return (self.j + self.f) / 2

    @classmethod
    def mean(cls, scores: Iterable[Score]) -> Score:
        """The mean of at least one score."""
        listed = list(scores)
        return cls(
            float(np.mean([score.j for score in listed])),
            float(np.mean([score.f for score in listed])),
        )


@dataclass(frozen=True)
class SequenceScore:
    """One sequence: every annotated object's mean over the frames, by its id."""

    objects: Mapping[int, Score]

    @property
    def mean(self) -> Score:
        """The mean over the objects."""
        return Score.mean(self.objects.values())


@dataclass(frozen=True)
class Evaluation:
    """The scores of several sequences, by name, and which of them have void in their annotation."""

    sequences: Mapping[str, SequenceScore]
    with_void: tuple[str, ...] = ()

    @property
    def mean(self) -> Score:
        """The mean over the sequences, each counting once however many objects it has."""
        return Score.mean(sequence.mean for sequence in self.sequences.values())

    @property
    def mean_over_objects(self) -> Score:
        """The mean over all objects of all sequences, the figure that DAVIS-2017 and vos-benchmark
        call global; the same as `mean` where every sequence has equally many objects."""
        return Score.mean(
            score for sequence in self.sequences.values() for score in sequence.objects.values()
        )


def measure(
    pairs: Iterable[tuple[Labels, Labels]], *, binary: bool = False, name: str = "sequence"
) -> SequenceScore:
    """J and F of one sequence.

    pairs   prediction and annotation [H, W] uint8 of every frame, in order, the first and the last
            among them: those are left out, for the first is given and the last counts for nothing
            in DAVIS either
    binary  all ids above 0 are one object, 1
    name    of the sequence, for messages

    An object counts if the annotation shows it in any frame but the last, and in all frames that
    count: where neither side shows it, J and F are 1. What the prediction calls by an id that the
    annotation lacks is background. (DAVIS's own program refuses ids above those annotated.)

    Raises  InputError: fewer than 3 frames, sizes that differ, no annotated object;
            DependencyError where vos-benchmark is not installed.
    """
    evaluator = _new_evaluator()
    waiting: tuple[Labels, Labels] | None = None
    count = 0
    for prediction, annotation in pairs:
        _check_pair(prediction, annotation, f"{name}, frame {count}")
        if binary:
            prediction, annotation = _as_one(prediction), _as_one(annotation)
        if count == 0:
            evaluator.objects_in_gt |= _ids(annotation)
        else:
            if waiting is not None:
                evaluator.feed_frame(*waiting)
            waiting = prediction, annotation
        count += 1
    if count < FEWEST_FRAMES:
        raise InputError(
            f"{name}: has {count} frames, wanted at least {FEWEST_FRAMES}; the first and the last "
            "are left out"
        )
    if not evaluator.objects_in_gt:
        raise InputError(f"{name}: the annotation shows no object in any frame that counts")
    return SequenceScore(
        {
            object_id: Score(
                _mean(evaluator.object_iou[object_id], count - 2),
                _mean(evaluator.boundary_f[object_id], count - 2),
            )
            for object_id in sorted(evaluator.objects_in_gt)
        }
    )


def outside_void(prediction: Labels, annotation: Mask) -> Labels:
    """The prediction with background where the annotation says nothing, as it has there itself: so
    void counts for neither side, in J and in F, as in DAVIS's own program."""
    if annotation.void is None or prediction.shape != annotation.void.shape:
        return prediction
    return np.where(annotation.void, 0, prediction).astype(np.uint8)


def measure_folders(
    predictions: Path, annotations: Path, *, binary: bool = False, rule: MaskRule = AS_FOUND
) -> Evaluation:
    """J and F of PREDICTIONS/<sequence>/<frame>.png against ANNOTATIONS/<sequence>/<frame>.png.

    Every annotated frame counts, so that it needs a prediction; more predictions do no harm. Where
    all masks of a sequence hold no ids but 0 and 255, as DAVIS 2016 has them, they show object 1;
    beside other ids 255 is void in an annotation (see `outside_void`), and no object in a
    prediction. `rule` says otherwise; `binary` as in `measure`.

    Raises  InputError: no sequences; a prediction or its whole folder is missing; not an indexed
            or grey image; or what `measure` refuses.
    """
    names = [folder.name for folder in list_folders(annotations) if any(folder.glob("*.png"))]
    if not names:
        raise InputError(
            f"{annotations}: holds no sequences, wanted <sequence>/<frame>.png beneath it"
        )
    missing = [name for name in names if not (predictions / name).is_dir()]
    if missing:
        raise InputError(
            f"{predictions}: lacks the folders {', '.join(missing)}; wanted one for each sequence "
            f"of {annotations}"
        )
    lacking = [
        str(path.relative_to(annotations))
        for name in names
        for path in annotation_files(annotations / name)
        if not (predictions / name / path.name).is_file()
    ]
    if lacking:
        raise InputError(
            f"{predictions}: lacks {len(lacking)} frames that are annotated, {lacking[0]} the "
            "first of them; wanted a mask for each"
        )
    scores, with_void = {}, []
    for name in names:
        read = _ReadPairs(predictions / name, annotation_files(annotations / name), rule)
        scores[name] = measure(read, binary=binary, name=name)
        if read.void:
            with_void.append(name)
    return Evaluation(scores, tuple(with_void))


class _ReadPairs:
    """Prediction and annotation of every frame, and afterwards whether there was void."""

    def __init__(self, predictions: Path, files: Sequence[Path], rule: MaskRule) -> None:
        self.void = False
        # A prediction has no void: what `rule` says of it is for the annotation alone.
        shown = replace(rule, void=None) if rule.void else rule
        self._predictions = MaskSequence([predictions / path.name for path in files], shown)
        self._annotations = MaskSequence(files, rule)

    def __iter__(self) -> Iterator[tuple[Labels, Labels]]:
        files = zip(self._predictions.files, self._annotations.files, strict=True)
        for prediction, annotation in files:
            mask = self._annotations.read(annotation)
            self.void = self.void or mask.void is not None
            yield outside_void(self._predictions.read(prediction).labels, mask), mask.labels


def _new_evaluator() -> Any:
    """vos-benchmark's Evaluator: its `benchmark` prints, forks, writes among the predictions and
    ends the process on an error."""
    try:
        return importlib.import_module("vos_benchmark.evaluator").Evaluator()
    except ImportError as error:
        raise DependencyError(
            f"evaluation: vos-benchmark cannot be imported ({error}); pip install "
            '"vosengine[eval]", then pip install --no-deps vos-benchmark (its own dependencies '
            "would put a second OpenCV over the one that is here)"
        ) from error


def _mean(values: Sequence[float], frames: int) -> float:
    """The mean over the frames; the evaluator starts at an object's first appearance in either
    mask, and before that both are empty."""
    return float(np.mean([1.0] * (frames - len(values)) + list(values)))


def _as_one(labels: Labels) -> Labels:
    return (labels > 0).astype(np.uint8)


def _ids(labels: Labels) -> set[int]:
    return set(np.unique(labels).tolist()) - {0}


def _check_pair(prediction: Labels, annotation: Labels, where: str) -> None:
    for what, labels in (("prediction", prediction), ("annotation", annotation)):
        if labels.dtype != np.uint8 or labels.ndim != 2:
            raise InputError(
                f"{where}: {what}: wanted uint8 [H, W], given {labels.dtype} {list(labels.shape)}"
            )
    if prediction.shape != annotation.shape:
        raise InputError(
            f"{where}: the prediction is {prediction.shape[0]} x {prediction.shape[1]}, the "
            f"annotation {annotation.shape[0]} x {annotation.shape[1]}; wanted equal sizes"
        )
