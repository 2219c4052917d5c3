"""Objects that a model found by itself, matched to those of an annotation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from .measure import Labels, measure


def match_objects(
    predictions: Sequence[Labels], annotations: Sequence[Labels], *, name: str = "sequence"
) -> list[Labels]:
    """The predictions with the annotation's ids: those of the assignment with the best mean J&F.

    Every predicted object goes to at most one annotated object and the other way round, once for
    the whole sequence; predicted objects that are left over become background. The frames that
    count are those of `measure`, which also says what is raised.
    """
    table = best_ids(predictions, annotations, name=name)
    return [table[prediction] for prediction in predictions]


def best_ids(
    predictions: Sequence[Labels], annotations: Sequence[Labels], *, name: str = "sequence"
) -> Labels:
    """uint8 [256]: what `match_objects` makes of every predicted id."""
    table: Labels = np.zeros(256, np.uint8)
    for predicted, annotated in _best_pairs(predictions, annotations, name).items():
        table[predicted] = annotated
    return table


def _best_pairs(
    predictions: Sequence[Labels], annotations: Sequence[Labels], name: str
) -> dict[int, int]:
    """Predicted id to annotated id.

    F is slow, so a pair starts with a bound on its J&F and is measured when the best assignment
    holds it; that assignment is the best one once all its pairs are measured.
    """
    bounds = _Bounds(predictions, annotations)
    known = np.broadcast_to(bounds.predicted[:, None] == 0, bounds.values.shape).copy()
    while True:
        rows, columns = linear_sum_assignment(bounds.values, maximize=True)
        unknown = [pair for pair in zip(rows, columns, strict=True) if not known[pair]]
        if not unknown:
            break
        for row, column in unknown:
            predicted, annotated = bounds.predicted[row], bounds.annotated[column]
            masks = (
                ((p == predicted).astype(np.uint8), (a == annotated).astype(np.uint8))
                for p, a in zip(predictions, annotations, strict=True)
            )
            bounds.values[row, column] = measure(masks, name=name).objects[1].jf
            known[row, column] = True
    return {
        int(bounds.predicted[row]): int(bounds.annotated[column])
        for row, column in zip(rows, columns, strict=True)
        if bounds.predicted[row]
    }


class _Bounds:
    """The most that J&F of every pair can be: J exactly, and F as 1 but for the frames in which one
    mask is empty and the other has a boundary.

    predicted, annotated  the ids; among the predicted ones a 0 for every annotated one, an empty
                          mask, which may be better than all that is there
    values                [predicted, annotated]; of empty masks exactly
    """

    def __init__(self, predictions: Sequence[Labels], annotations: Sequence[Labels]) -> None:
        present = _present(predictions[1:-1])
        self.annotated = _present(annotations[:-1])
        self.predicted = np.append(present, np.zeros_like(self.annotated))
        self.values = np.zeros((len(self.predicted), len(self.annotated)))
        scored = list(zip(predictions, annotations, strict=True))[1:-1]
        for prediction, annotation in scored:
            joint = _joint_counts(prediction, annotation)
            unlabelled, joint[0] = joint[0].copy(), 0
            mine = joint.sum(1)[self.predicted][:, None]
            theirs = (joint.sum(0) + unlabelled)[self.annotated][None]
            both = joint[np.ix_(self.predicted, self.annotated)]
            union = mine + theirs - both
            j = np.where(union == 0, 1.0, both / np.maximum(union, 1))
            lone = (mine == 0) != (theirs == 0)
            f = np.where(lone & (union < prediction.size), 0.0, 1.0)
            self.values += (j + f) / 2 / len(scored)


def _joint_counts(prediction: Labels, annotation: Labels) -> NDArray[np.int64]:
    """[predicted id, annotated id] pixels."""
    joint = prediction.astype(np.int64) * 256 + annotation
    return np.bincount(joint.ravel(), minlength=65536).reshape(256, 256)


def _present(labels: Sequence[Labels]) -> NDArray[np.int64]:
    """The ids above 0 in any of the frames."""
    counts = np.zeros(256, np.int64)
    for each in labels:
        counts += np.bincount(each.ravel(), minlength=256)
    return np.flatnonzero(counts[1:]) + 1
