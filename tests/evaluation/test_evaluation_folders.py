"""Scoring of mask folders, finding of data sets, and errors of both."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_evaluation import Labels, random_masks

from vosengine.errors import DependencyError, InputError
from vosengine.evaluation import (
    Score,
    find_annotated,
    measure,
    measure_folders,
)
from vosengine.video import read_mask, write_labels


def write_folder(folder: Path, masks: Labels) -> Path:
    folder.mkdir(parents=True)
    for index, mask in enumerate(masks):
        write_labels(folder / f"{index:05d}.png", mask)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and annotations of the sequences a and b."""
    for seed, name in enumerate(("a", "b")):
        write_folder(tmp_path / "predictions" / name, random_masks(seed, 5, 2))
        write_folder(tmp_path / "annotations" / name, random_masks(seed + 50, 5, 2))
    return tmp_path / "predictions", tmp_path / "annotations"


def test_folders_are_measured_sequence_by_sequence(folders: tuple[Path, Path]) -> None:
    write_folder(folders[0] / "unasked", random_masks(0, 3, 1))
    write_labels(folders[0] / "a" / "00005.png", np.zeros((3, 3), np.uint8))  # not annotated
    result = measure_folders(*folders)
    assert list(result.sequences) == ["a", "b"]
    for seed, name in enumerate(("a", "b")):
        pairs = zip(random_masks(seed, 5, 2), random_masks(seed + 50, 5, 2), strict=True)
        assert result.sequences[name] == measure(pairs)


def test_masks_of_0_and_255_show_object_1(folders: tuple[Path, Path]) -> None:
    for path in (folders[1] / "a").glob("*.png"):
        grey = (np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255
        Image.fromarray(grey).save(path)
        Image.fromarray(grey // 255).save(folders[0] / "a" / path.name)
    assert read_mask(folders[1] / "a" / "00000.png").max() == 1
    assert measure_folders(*folders).sequences["a"].objects == {1: Score(1.0, 1.0)}


def spoil_size(predictions: Path, annotations: Path) -> None:
    write_labels(predictions / "b" / "00002.png", np.zeros((30, 40), np.uint8))


def spoil_mode(predictions: Path, annotations: Path) -> None:
    Image.new("RGB", (41, 30)).save(predictions / "b" / "00002.png")


def spoil_file(predictions: Path, annotations: Path) -> None:
    (predictions / "b" / "00002.png").write_bytes(b"no image")


def lose_frame(predictions: Path, annotations: Path) -> None:
    (predictions / "b" / "00002.png").unlink()


def lose_sequence(predictions: Path, annotations: Path) -> None:
    (predictions / "b").rename(predictions / "c")


def lose_annotations(predictions: Path, annotations: Path) -> None:
    for path in annotations.glob("*/*.png"):
        path.unlink()


def lose_root(predictions: Path, annotations: Path) -> None:
    annotations.rename(annotations.with_name("elsewhere"))


def shorten(predictions: Path, annotations: Path) -> None:
    for index in (2, 3, 4):
        (annotations / "b" / f"0000{index}.png").unlink()


def empty(predictions: Path, annotations: Path) -> None:
    for path in (annotations / "b").glob("*.png"):
        write_labels(path, np.zeros((30, 41), np.uint8))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_size, r"b, frame 2: the prediction is 30 x 40, the annotation 30 x 41"),
        (spoil_mode, r"00002\.png: is a RGB image"),
        (spoil_file, r"00002\.png: not a readable image"),
        (lose_frame, r"lacks 1 frames that are annotated, b/00002\.png the first"),
        (lose_sequence, r"lacks the folders b;"),
        (lose_annotations, r"holds no sequences"),
        (lose_root, r"annotations: no such folder"),
        (shorten, r"b: has 2 frames, wanted at least 3"),
        (empty, r"b: the annotation shows no object"),
    ],
)
def test_bad_folders_are_refused(
    spoil: Callable[[Path, Path], None], message: str, folders: tuple[Path, Path]
) -> None:
    spoil(*folders)
    with pytest.raises(InputError, match=message):
        measure_folders(*folders)


def test_what_is_no_label_image_is_refused() -> None:
    mask = np.zeros((4, 4), np.uint8)
    with pytest.raises(InputError, match=r"prediction: wanted uint8 \[H, W\], given int64"):
        measure([(mask.astype(np.int64), mask)] * 3)
    with pytest.raises(InputError, match=r"annotation: wanted uint8 \[H, W\], given uint8 \[4, 4"):
        measure([(mask, mask[..., None])] * 3)


def test_without_vos_benchmark_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vos_benchmark.evaluator", None)
    with pytest.raises(DependencyError, match="pip install --no-deps vos-benchmark"):
        measure([(np.ones((4, 4), np.uint8),) * 2] * 3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set with the sequences a and b, of five frames each."""
    for name in ("a", "b"):
        write_folder(tmp_path / "Annotations" / "480p" / name, random_masks(3, 5, 2))
        (tmp_path / "JPEGImages" / "480p" / name).mkdir(parents=True)
        for index in range(5):
            frame = Image.new("RGB", (41, 30))
            frame.save(tmp_path / "JPEGImages" / "480p" / name / f"{index:05d}.jpg")
    return tmp_path


def test_sequences_are_found_with_and_without_a_resolution(data: Path) -> None:
    both = find_annotated(data)
    assert [sequence.name for sequence in both] == ["a", "b"]
    assert [path.stem for path in both[0].frames] == [path.stem for path in both[0].annotations]
    for name in ("JPEGImages", "Annotations"):
        (data / name / "480p").rename(data / "moved")
        (data / name).rmdir()
        (data / "moved").rename(data / name)
    assert [sequence.name for sequence in find_annotated(data, ["b"])] == ["b"]


def test_bad_data_sets_are_refused(data: Path) -> None:
    with pytest.raises(InputError, match=r"has no c; wanted among a, b"):
        find_annotated(data, ["a", "c"])
    with pytest.raises(InputError, match=r"JPEGImages: no such folder"):
        find_annotated(data / "Annotations")
    (data / "Annotations/480p/b/00003.png").unlink()
    with pytest.raises(InputError, match=r"5 frames in .* and 4 masks .*\(00003 stands alone\)"):
        find_annotated(data)
    (data / "JPEGImages/480p/b/00003.jpg").unlink()
    assert len(find_annotated(data)[1].frames) == 4
    Image.new("RGB", (41, 30)).save(data / "JPEGImages/480p/b/00002.png")
    with pytest.raises(InputError, match="do not go together"):
        find_annotated(data)
    for path in (data / "JPEGImages/480p").glob("*/*"):
        path.unlink()
    for name in ("a", "b"):
        (data / "JPEGImages/480p" / name).rmdir()
    with pytest.raises(InputError, match="holds no sequences"):
        find_annotated(data)
