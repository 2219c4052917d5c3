"""Reading of masks: void, soft edges, palettes, several images in a file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vosengine.errors import ConfigError, InputError
from vosengine.training.synthetic import ClipConfig, iterate_clip
from vosengine.video import MaskRule, MaskSequence, mask_files, read_mask, write_labels

SIZE = (48, 64)


def disc(radius: int = 14) -> np.ndarray:
    """Object 1, uint8 [48, 64]."""
    return cv2.circle(np.zeros(SIZE, np.uint8), (30, 24), radius, 1, -1)


def rimmed(labels: np.ndarray, width: int = 5) -> np.ndarray:
    """With 255 around every object, as PASCAL VOC has it."""
    square = np.ones((width, width), np.uint8)
    edge = cv2.dilate(labels, square) != cv2.erode(labels, square)
    return np.where(edge, 255, labels).astype(np.uint8)


def soft(labels: np.ndarray) -> np.ndarray:
    """Of one object, as an interpolation leaves it."""
    small = cv2.resize(labels * 255, (21, 16), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (64, 48), interpolation=cv2.INTER_LINEAR)


def grey(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


def indexed(path: Path, values: np.ndarray, *colours: tuple[int, int, int]) -> Path:
    image = Image.fromarray(values)
    image.putpalette([channel for colour in colours for channel in colour])
    image.save(path)
    return path


# Void


@pytest.mark.parametrize("write", [grey, write_labels])
def test_255_beside_ids_is_void(write: object, tmp_path: Path) -> None:
    path, values = tmp_path / "m.png", rimmed(disc() * 7)
    write(path, values)  # type: ignore[operator]
    mask = MaskSequence([path]).read(path)
    np.testing.assert_array_equal(mask.labels, np.where(values == 255, 0, values))
    assert mask.void is not None
    np.testing.assert_array_equal(mask.void, values == 255)
    np.testing.assert_array_equal(read_mask(path, MaskRule(void=False)), values)


def test_0_and_255_alone_are_object_1(tmp_path: Path) -> None:
    path = grey(tmp_path / "m.png", disc() * 255)
    np.testing.assert_array_equal(read_mask(path), disc())
    np.testing.assert_array_equal(read_mask(path, MaskRule(void=False)), disc() * 255)
    assert not read_mask(path, MaskRule(void=True)).any()


def test_the_sequence_decides_and_not_the_frame(tmp_path: Path) -> None:
    """A frame whose objects are hidden has void only, which is not object 1."""
    first = grey(tmp_path / "0.png", rimmed(disc()))
    hidden = grey(tmp_path / "1.png", np.where(disc() > 0, 255, 0).astype(np.uint8))
    masks = MaskSequence([hidden, first])
    assert not masks.read(hidden).labels.any() and not masks.binary
    assert MaskSequence([hidden]).read(hidden).labels.any()


# Soft edges


@pytest.mark.parametrize(
    "values",
    [
        soft(disc()),
        cv2.GaussianBlur(disc() * 255, (0, 0), 4),
        cv2.resize(disc() * 255, (32, 24), interpolation=cv2.INTER_AREA),
        cv2.resize(disc() * 10, (96, 72), interpolation=cv2.INTER_LINEAR),  # between 0 and id 10
        np.repeat(np.array([0] * 9 + [128] + [255] * 9, np.uint8)[None], 19, 0),
    ],
    ids=["resized", "blurred", "half", "ids resized", "one step"],
)
def test_values_that_only_edges_have_are_no_ids(values: np.ndarray, tmp_path: Path) -> None:
    path = grey(tmp_path / "m.png", values)
    with pytest.raises(InputError, match=r"looks like a mask with soft .* \(--threshold 128\)"):
        read_mask(path)
    ramp = np.arange(256, dtype=np.uint8).repeat(3)
    as_index = indexed(tmp_path / "p.png", values, *zip(*[iter(ramp.tolist())] * 3, strict=True))
    with pytest.raises(InputError, match="soft or JPEG edges"):
        read_mask(as_index)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_keeps_no_ids(quality: int, tmp_path: Path) -> None:
    path = tmp_path / "m.jpg"
    Image.fromarray(disc() * 255).save(path, quality=quality)
    with pytest.raises(InputError, match="JPEG does not keep ids"):
        read_mask(path)
    stored = grey(tmp_path / "m.png", np.asarray(Image.open(path)))
    with pytest.raises(InputError, match="soft or JPEG edges"):
        read_mask(stored)
    for file in (path, stored):
        assert np.mean(read_mask(file, MaskRule(threshold=128)) != disc()) < 0.01


def many_objects() -> np.ndarray:
    """200 ids in cells of 3 by 3 to 6 by 6 pixels, touching."""
    cells = np.arange(1, 201, dtype=np.uint8).reshape(10, 20)
    return np.kron(cells, np.ones((4, 3), np.uint8))


@pytest.mark.parametrize(
    "values",
    [
        many_objects(),
        rimmed(many_objects(), 3),
        rimmed(disc(1)),
        disc(0) * 3,  # one pixel
        np.eye(48, 64, dtype=np.uint8) * 9,  # a line
        np.tile(np.array([[0, 1, 0, 2, 0, 3]], np.uint8), (8, 4)),  # thin, on one ground
        np.full(SIZE, 4, np.uint8),
    ],
    ids=["many", "many in void", "small in void", "pixel", "line", "thin", "full"],
)
def test_ids_are_not_taken_for_soft_edges(values: np.ndarray, tmp_path: Path) -> None:
    labels = read_mask(grey(tmp_path / "m.png", values), MaskRule(void=False))
    np.testing.assert_array_equal(labels, values)


def test_drawn_clips_are_not_taken_for_soft_edges(tmp_path: Path) -> None:
    config = ClipConfig.demo()
    for seed in range(3):
        for index, (_, mask) in zip(range(2), iterate_clip(config, seed), strict=False):
            path = grey(tmp_path / f"{seed}-{index}.png", rimmed(mask))
            np.testing.assert_array_equal(read_mask(path, MaskRule(void=False)), rimmed(mask))


# Thresholds


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "1"])
def test_a_threshold_makes_one_object_of_a_soft_mask(mode: str, tmp_path: Path) -> None:
    path, values = tmp_path / "m.png", soft(disc())
    if mode == "I;16":
        Image.fromarray(values.astype(np.uint16) * 257).save(path)
    elif mode == "1":
        Image.fromarray(values >= 100).save(path)
    else:
        Image.fromarray(values).convert(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    labels = read_mask(path, MaskRule(threshold=100))
    np.testing.assert_array_equal(labels, (values >= 100).astype(np.uint8))


def test_what_a_threshold_cannot_read_is_refused(tmp_path: Path) -> None:
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[:9, :9] = 200, 0, 0
    Image.fromarray(colours).save(tmp_path / "colour.png")
    Image.fromarray(np.dstack([colours, colours[..., :1]])).save(tmp_path / "clear.png")
    for name, message in (("colour", "is coloured"), ("clear", "has transparent pixels")):
        with pytest.raises(InputError, match=message):
            read_mask(tmp_path / f"{name}.png", MaskRule(threshold=128))
    with pytest.raises(ConfigError, match=r"threshold: wanted 1\.\.255, given 0"):
        MaskRule(threshold=0)
    with pytest.raises(ConfigError, match="threshold: a soft mask shows one object and has no"):
        MaskRule(void=False, threshold=9)


# Palettes and files

RED, BLACK, WHITE, BLUE = (255, 0, 0), (0, 0, 0), (255, 255, 255), (0, 0, 255)


def test_a_palette_that_a_quantiser_sorted_is_refused(tmp_path: Path) -> None:
    path = indexed(tmp_path / "m.png", 1 - disc(), RED, BLACK)
    with pytest.raises(InputError, match=r"\(255, 0, 0\) at index 0, .* black at index 1"):
        read_mask(path)
    colours = np.where(disc()[..., None] > 0, RED, BLACK).astype(np.uint8)
    drawn = Image.fromarray(colours).quantize(2, method=Image.Quantize.MAXCOVERAGE)
    if drawn.getpalette()[:3] == [0, 0, 0]:  # the order is Pillow's affair
        drawn = drawn.remap_palette([1, 0])
    drawn.save(path)
    with pytest.raises(InputError, match="sorted the colours"):
        read_mask(path)


@pytest.mark.parametrize(
    "colours", [(BLACK, RED), (WHITE, RED), (WHITE, BLUE), (RED,), (BLACK, BLACK)]
)
def test_other_palettes_are_left_alone(
    colours: tuple[tuple[int, int, int]], tmp_path: Path
) -> None:
    path = indexed(tmp_path / "m.png", disc(), *colours)
    np.testing.assert_array_equal(read_mask(path), disc())


def test_a_file_with_several_images_is_no_mask(tmp_path: Path) -> None:
    pages = [Image.fromarray(disc(r)) for r in (3, 9)]
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="holds 2 images, wanted one mask a file"):
        read_mask(tmp_path / "m.tif")


def test_the_masks_of_a_folder_are_its_pngs_or_else_its_images(tmp_path: Path) -> None:
    for name in ("10.jpg", "9.jpg", "._9.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in mask_files(tmp_path)] == ["9.jpg", "10.jpg"]
    (tmp_path / "9.PNG").write_bytes(b"")
    assert [path.name for path in mask_files(tmp_path)] == ["9.PNG"]
