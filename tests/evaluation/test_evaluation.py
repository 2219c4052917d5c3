"""J, F, the assignment and the baselines, against brute force and known cases."""

from __future__ import annotations

import io
import itertools

import cv2
import numpy as np
import pytest
from rich.console import Console

from vosengine.evaluation import (
    Evaluation,
    FirstMask,
    Score,
    SequenceScore,
    WarpedMask,
    best_ids,
    centred_ellipse,
    comparison,
    measure,
    report,
)

Labels = np.ndarray


def random_masks(seed: int, frames: int, ids: int, size: tuple[int, int] = (30, 41)) -> Labels:
    """Rectangles of ids 1..ids that move and overlap; every object is missing now and then."""
    random = np.random.default_rng(seed)
    masks = np.zeros((frames, *size), np.uint8)
    for mask, object_id in itertools.product(masks, range(1, ids + 1)):
        top, left = random.integers(0, size[0] - 6), random.integers(0, size[1] - 6)
        height, width = random.integers(4, 26, 2) * (random.random() > 0.2)
        mask[top : top + height, left : left + width] = object_id
    return masks


def brute_force_j(predictions: Labels, annotations: Labels) -> dict[int, float]:
    """J by sets of pixels, frame by frame."""
    object_ids = set(annotations[:-1].ravel().tolist()) - {0}
    scores = {}
    for object_id in sorted(object_ids):
        by_frame = []
        for prediction, annotation in list(zip(predictions, annotations, strict=True))[1:-1]:
            predicted = set(zip(*np.nonzero(prediction == object_id), strict=True))
            annotated = set(zip(*np.nonzero(annotation == object_id), strict=True))
            union = predicted | annotated
            by_frame.append(len(predicted & annotated) / len(union) if union else 1.0)
        scores[object_id] = float(np.mean(by_frame))
    return scores


def shifted(mask: Labels, down: int, right: int) -> Labels:
    return np.roll(mask, (down, right), (0, 1))


@pytest.mark.parametrize("seed", range(4))
def test_j_is_that_of_brute_force_exactly(seed: int) -> None:
    predictions, annotations = random_masks(seed, 6, 4), random_masks(seed + 10, 6, 3)
    result = measure(zip(predictions, annotations, strict=True))
    assert {i: score.j for i, score in result.objects.items()} == brute_force_j(
        predictions, annotations
    )
    assert 0 < result.mean.j < 1


def test_an_object_that_comes_late_counts_in_every_frame() -> None:
    annotations = random_masks(0, 7, 2)
    annotations[:4][annotations[:4] == 2] = 0
    predictions = random_masks(1, 7, 2)
    predictions[:3][predictions[:3] == 2] = 0
    scores = measure(zip(predictions, annotations, strict=True)).objects
    assert {i: score.j for i, score in scores.items()} == brute_force_j(predictions, annotations)
    assert scores[2].f >= 2 / 5  # frames 1 and 2 of 1..5, where neither side shows it


def test_f_is_symmetric_and_one_for_identical_masks() -> None:
    one, other = random_masks(5, 5, 2), random_masks(6, 5, 2)
    one[0] = other[0] = np.arange(41) % 3  # both know both objects
    there = measure(zip(one, other, strict=True)).objects
    back = measure(zip(other, one, strict=True)).objects
    for object_id in (1, 2):
        assert there[object_id].f == pytest.approx(back[object_id].f, abs=1e-15)
        assert 0 < there[object_id].f < 1
    same = measure(zip(one, one, strict=True))
    assert {(score.j, score.f) for score in same.objects.values()} == {(1.0, 1.0)}


def test_f_forgives_a_boundary_within_its_reach_and_no_further() -> None:
    """The reach is 0.8% of the diagonal, rounded up: 2 pixels here."""
    mask = np.zeros((120, 160), np.uint8)
    mask[40:80, 50:110] = 1

    def f_of(moved: Labels) -> float:
        return measure([(moved, mask)] * 3).mean.f

    assert f_of(shifted(mask, 2, 0)) == 1
    assert f_of(shifted(mask, 3, 0)) < 0.8
    assert f_of(np.zeros_like(mask)) == 0


def test_the_first_and_the_last_frame_are_left_out() -> None:
    annotations = random_masks(3, 5, 2)
    annotations[1:4, :3, :3], annotations[1:4, -3:, -3:] = 1, 2
    predictions = annotations.copy()
    predictions[[0, -1]] = 9
    assert measure(zip(predictions, annotations, strict=True)).mean == Score(1.0, 1.0)
    predictions[1] = 0
    assert measure(zip(predictions, annotations, strict=True)).mean == Score(
        pytest.approx(2 / 3), pytest.approx(2 / 3)
    )


def test_binary_takes_all_ids_for_one_object() -> None:
    annotations = random_masks(7, 4, 3)
    annotations[:, 0, 0] = 1
    renamed = np.where(annotations > 0, 4 - annotations.astype(int), 0).astype(np.uint8)
    pairs = list(zip(renamed, annotations, strict=True))
    assert measure(pairs, binary=True).objects == {1: Score(1.0, 1.0)}
    assert measure(pairs).mean.j < 1


def test_predicted_ids_that_the_annotation_lacks_are_background() -> None:
    annotations = random_masks(8, 4, 2)
    annotations[:, 0, :2] = 1, 2
    predictions = np.where(annotations == 2, 7, annotations).astype(np.uint8)
    scores = measure(zip(predictions, annotations, strict=True)).objects
    assert set(scores) == {1, 2}
    assert (scores[1].j, scores[2].j) == (1.0, 0.0)


def test_means_over_sequences_and_over_objects() -> None:
    two = SequenceScore({1: Score(0.2, 0.4), 2: Score(0.4, 0.8)})
    one = SequenceScore({1: Score(0.9, 0.3)})
    result = report(Evaluation({"two": two, "one": one}))
    assert result["sequences"]["two"]["J"] == pytest.approx(0.3)
    assert result["sequences"]["two"]["objects"]["2"] == {"J": 0.4, "F": 0.8}
    assert result["mean"] == pytest.approx({"J": 0.6, "F": 0.45, "JF": 0.525})
    assert result["mean_over_objects"] == pytest.approx({"J": 0.5, "F": 0.5, "JF": 0.5})
    table = comparison({"m": Evaluation({"two": two, "one": one})})
    cells = [list(column.cells) for column in table.columns]
    assert cells == [
        ["two", "one", "mean"],
        ["0.300", "0.900", "0.600"],
        ["0.600", "0.300", "0.450"],
    ]


def test_a_model_and_three_baselines_fit_into_80_columns() -> None:
    evaluation = Evaluation({"horsejump-high": SequenceScore({1: Score(0.123, 0.456)})})
    names = ("dmn_aoa", "first mask copied", "mask warped by flow", "labels propagated")
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(comparison(dict.fromkeys(names, evaluation)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert "horsejump-high" in text
    assert text.count("0.123") == text.count("0.456") == 8
    for word in " ".join(names).split():
        assert word in text


@pytest.mark.parametrize(("predicted", "annotated"), [(4, 2), (2, 3), (3, 3), (5, 1)])
def test_the_assignment_is_the_best_of_all(predicted: int, annotated: int) -> None:
    predictions = random_masks(20 + predicted, 6, predicted)
    annotations = random_masks(30 + annotated, 6, annotated)
    for frame in range(1, 5):  # something to find, under ids that are turned around
        part = annotations[frame] > 0
        part[frame * 5 :] = False
        turned = (annotations[frame].astype(int) + 1) % annotated + 1
        predictions[frame][part] = turned[part]

    def scored(labels: Labels) -> float:
        scores = measure(zip(labels, annotations, strict=True)).objects
        return sum(score.jf for score in scores.values())

    best = 0.0
    count = max(predicted, annotated)
    padded = [*range(1, annotated + 1), *[0] * count]
    for choice in set(itertools.permutations(padded, count)):
        table = np.array([0, *choice], np.uint8)
        best = max(best, scored(table[predictions]))
    matched = best_ids(list(predictions), list(annotations))[predictions]
    assert scored(matched) == pytest.approx(best, abs=1e-12)
    assert set(np.unique(matched)) <= set(range(annotated + 1))


def test_objects_found_under_other_ids_are_found() -> None:
    annotations = random_masks(40, 8, 3)
    table = np.array([0, 200, 17, 3], np.uint8)
    found = table[annotations]
    matched = best_ids(list(found), list(annotations))[found]
    np.testing.assert_array_equal(matched, annotations)


def test_nothing_found_is_no_error() -> None:
    annotations = random_masks(41, 4, 2)
    assert not best_ids([np.zeros_like(annotations[0])] * 4, list(annotations)).any()


def textured(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2.0)


def test_the_flow_carries_masks_with_a_texture_that_moves() -> None:
    frame = textured(96, 128)
    mask = np.zeros((96, 128), np.uint8)
    mask[30:60, 40:60], mask[30:60, 60:80] = 5, 9
    warped, copied = WarpedMask(frame, mask), FirstMask(frame, mask)
    for step in range(1, 7):
        moved = shifted(frame, 2 * step, 3 * step)
        labels = warped.step(moved)
        np.testing.assert_array_equal(copied.step(moved), mask)
    target = shifted(mask, 12, 18)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 5, 9}
    for object_id in (5, 9):
        both = np.sum((labels == object_id) & (target == object_id))
        assert both / np.sum((labels == object_id) | (target == object_id)) > 0.9


def test_the_flow_keeps_slow_motion() -> None:
    """A third of a pixel a frame: rounded in every frame, the mask would never move."""
    wide = textured(96, 3 * 128 + 60)
    mask = np.zeros((96, 128), np.uint8)
    mask[30:60, 40:80] = 1

    def window_at(step: int) -> np.ndarray:
        window = wide[:, 60 - step : 60 - step + 3 * 128]
        return cv2.resize(window, (128, 96), interpolation=cv2.INTER_AREA)

    warped = WarpedMask(window_at(0), mask)
    for step in range(1, 19):
        labels = warped.step(window_at(step))
    columns = np.nonzero(labels.sum(0) > 15)[0]
    assert abs(columns.mean() - (59.5 + 6)) < 1.5


@pytest.mark.parametrize("size", [(480, 854), (101, 60)])
def test_the_ellipse_is_centred_and_has_its_share(size: tuple[int, int]) -> None:
    mask = centred_ellipse(*size)
    assert (mask.shape, mask.dtype) == (size, np.uint8)
    assert mask.mean() == pytest.approx(0.15, abs=0.005)
    np.testing.assert_array_equal(mask, mask[::-1, ::-1])
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    assert len(rows) / size[0] == pytest.approx(len(columns) / size[1], abs=0.03)
