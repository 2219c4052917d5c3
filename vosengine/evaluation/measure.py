"""J (region similarity) and F (boundary accuracy) of label images against annotations.

Both are computed per frame by vos-benchmark. Which objects and frames are scored follows
DAVIS-2017's rule for semi-supervised results.
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

FEWEST_FRAMES = 3  # the first and the last are not scored


@dataclass(frozen=True)
class Score:
    """J and F, 0 to 1."""

    j: float
    f: float

    @property
    def jf(self) -> float:
        """J&F: the mean of J and F."""
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
    """Scores of one sequence: the mean over frames of every annotated object, by id."""

    objects: Mapping[int, Score]

    @property
    def mean(self) -> Score:
        """The mean over the objects."""
        return Score.mean(self.objects.values())


@dataclass(frozen=True)
class Evaluation:
    """Scores of several sequences, by name; `with_void` names those whose annotation has void."""

    sequences: Mapping[str, SequenceScore]
    with_void: tuple[str, ...] = ()

    @property
    def mean(self) -> Score:
        """The mean over sequences, each with weight 1 regardless of its number of objects."""
        return Score.mean(sequence.mean for sequence in self.sequences.values())

    @property
    def mean_over_objects(self) -> Score:
        """The mean over all objects of all sequences, called global by DAVIS-2017 and
        vos-benchmark. Equals `mean` if all sequences have the same number of objects."""
        return Score.mean(
            score for sequence in self.sequences.values() for score in sequence.objects.values()
        )


def measure(
    pairs: Iterable[tuple[Labels, Labels]], *, binary: bool = False, name: str = "sequence"
) -> SequenceScore:
    """Measure J and F of one sequence.

    pairs   prediction and annotation, uint8 [H, W], of every frame in order. Include the first
            and the last frame; they are not scored, as in DAVIS
    binary  merge all ids above 0 into object 1
    name    name of the sequence, for error messages

    An object is scored if the annotation has it in any frame except the last. It is scored in
    every scored frame; J and F are 1 if neither mask has it. Predicted ids that are not annotated
    are background. (DAVIS's own program rejects ids above the annotated ones.)

    Raises  InputError: fewer than 3 frames, sizes differ, or no annotated object;
            DependencyError: vos-benchmark is not installed.
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
    """Set the prediction to background where the annotation is void.

    The annotation is background there too, so void pixels affect neither J nor F, as in DAVIS's
    own program.
    """
    if annotation.void is None or prediction.shape != annotation.void.shape:
        return prediction
    return np.where(annotation.void, 0, prediction).astype(np.uint8)


def measure_folders(
    predictions: Path, annotations: Path, *, binary: bool = False, rule: MaskRule = AS_FOUND
) -> Evaluation:
    """Measure J and F of PREDICTIONS/<sequence>/<frame>.png against the same in ANNOTATIONS.

    Every annotated frame needs a prediction; extra predictions are ignored. If all masks of a
    sequence hold only 0 and 255, as in DAVIS 2016, 255 is object 1. Otherwise 255 is void in an
    annotation (see `outside_void`) and background in a prediction. `rule` overrides this;
    `binary` as in `measure`.

    Raises  InputError: no sequences; a prediction or its folder is missing; an image is not
            indexed or grey; or as in `measure`.
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
    """Iterable of (prediction, annotation) per frame; `void` tells afterwards if any was void."""

    def __init__(self, predictions: Path, files: Sequence[Path], rule: MaskRule) -> None:
        self.void = False
        # Predictions have no void; that part of `rule` is for the annotation only.
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
    """Create vos-benchmark's Evaluator. Its `benchmark` function is not used: it prints, forks,
    writes into the predictions' folder and exits the process on an error."""
    try:
        return importlib.import_module("vos_benchmark.evaluator").Evaluator()
    except ImportError as error:
        raise DependencyError(
            f"evaluation: vos-benchmark cannot be imported ({error}); pip install "
            '"vosengine[eval]", then pip install --no-deps vos-benchmark (its dependencies would '
            "install a second OpenCV over this one)"
        ) from error


def _mean(values: Sequence[float], frames: int) -> float:
    """The mean over the frames. The evaluator starts at an object's first appearance in either
    mask; earlier frames, in which both masks are empty, count as 1."""
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
