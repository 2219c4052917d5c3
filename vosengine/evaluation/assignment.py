"""Matching of discovered objects to annotated objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from .measure import Labels, measure


def best_ids(
    predictions: Sequence[Labels], annotations: Sequence[Labels], *, name: str = "sequence"
) -> Labels:
    """Relabelling of predictions with the annotation's ids, by the best mean J&F.

    The assignment is one-to-one and holds for the whole sequence; unmatched predicted objects
    become background. Scored frames and exceptions are those of `measure`.

    F is slow, so every pair starts with an upper bound of its J&F. A pair is measured only when
    it is in the best assignment; the search ends when all pairs of that assignment are measured.

    Returns  lookup table, uint8 [256], by predicted id
    """
    mine, theirs, values = _bounds(predictions, annotations)
    known = np.broadcast_to(mine[:, None] == 0, values.shape).copy()
    while True:
        rows, columns = linear_sum_assignment(values, maximize=True)
        unknown = [pair for pair in zip(rows, columns, strict=True) if not known[pair]]
        if not unknown:
            break
        for row, column in unknown:
            masks = (
                ((p == mine[row]).astype(np.uint8), (a == theirs[column]).astype(np.uint8))
                for p, a in zip(predictions, annotations, strict=True)
            )
            values[row, column] = measure(masks, name=name).objects[1].jf
            known[row, column] = True
    table: Labels = np.zeros(256, np.uint8)
    table[mine[rows]] = theirs[columns]
    table[0] = 0
    return table


def _bounds(
    predictions: Sequence[Labels], annotations: Sequence[Labels]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Upper bounds of J&F for every pair of ids: J exactly; F is 1, or 0 in frames where only one
    mask is empty and the other has a boundary.

    Returns  predicted and annotated ids, the predicted ones with one 0 per annotated id at the end,
             an empty mask, which can score higher than every predicted object; and the bounds
             [predicted, annotated], exact for empty masks
    """
    annotated = _present(annotations[:-1])
    predicted = np.append(_present(predictions[1:-1]), np.zeros_like(annotated))
    values = np.zeros((len(predicted), len(annotated)))
    scored = list(zip(predictions, annotations, strict=True))[1:-1]
    for prediction, annotation in scored:
        joint = _joint_counts(prediction, annotation)
        unlabelled, joint[0] = joint[0].copy(), 0
        mine = joint.sum(1)[predicted][:, None]
        theirs = (joint.sum(0) + unlabelled)[annotated][None]
        both = joint[np.ix_(predicted, annotated)]
        union = mine + theirs - both
        j = np.where(union == 0, 1.0, both / np.maximum(union, 1))
        lone = (mine == 0) != (theirs == 0)
        f = np.where(lone & (union < prediction.size), 0.0, 1.0)
        values += (j + f) / 2 / len(scored)
    return predicted, annotated, values


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
