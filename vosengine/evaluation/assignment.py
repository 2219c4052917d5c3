"""Matching of discovered objects to annotated objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from .measure import Labels, measure


def match_objects(
    predictions: Sequence[Labels], annotations: Sequence[Labels], *, name: str = "sequence"
) -> list[Labels]:
    """Relabel predictions with the annotation's ids, by the assignment with the best mean J&F.

    The assignment is one-to-one and holds for the whole sequence; unmatched predicted objects
    become background. Scored frames and exceptions are those of `measure`.
    """
    table = best_ids(predictions, annotations, name=name)
    return [table[prediction] for prediction in predictions]


def best_ids(
    predictions: Sequence[Labels], annotations: Sequence[Labels], *, name: str = "sequence"
) -> Labels:
    """The relabelling of `match_objects` as a lookup table, uint8 [256], by predicted id."""
    table: Labels = np.zeros(256, np.uint8)
    for predicted, annotated in _best_pairs(predictions, annotations, name).items():
        table[predicted] = annotated
    return table


def _best_pairs(
    predictions: Sequence[Labels], annotations: Sequence[Labels], name: str
) -> dict[int, int]:
    """Map predicted ids to annotated ids.

    F is slow, so every pair starts with an upper bound of its J&F. A pair is measured only when
    it is in the best assignment; the search ends when all pairs of that assignment are measured.
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
    """Upper bounds of J&F for every pair of ids: J exactly; F is 1, or 0 in frames where only one
    mask is empty and the other has a boundary.

    predicted, annotated  the ids; `predicted` ends with one 0 per annotated id, an empty mask,
                          which can score higher than every predicted object
    values                [predicted, annotated]; exact for empty masks
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
    """Pixel counts by id, [256 predicted, 256 annotated]."""
    joint = prediction.astype(np.int64) * 256 + annotation
    return np.bincount(joint.ravel(), minlength=65536).reshape(256, 256)


def _present(labels: Sequence[Labels]) -> NDArray[np.int64]:
    """The ids above 0 that occur in any frame, ascending."""
    counts = np.zeros(256, np.int64)
    for frame in labels:
        counts += np.bincount(frame.ravel(), minlength=256)
    return np.flatnonzero(counts[1:]) + 1
