"""Training clips made of photos: purity, masks, motion, and every way a folder can be wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vosengine.errors import ConfigError, InputError
from vosengine.training.mixture import DataOptions, Mixture, parse_data
from vosengine.training.photos.paste_source import PasteSource
from vosengine.training.photos.stills_source import StillsSource
from vosengine.training.samples import Source

SIZE = (48, 80)


def write_photo(path: Path, seed: int, size: tuple[int, int] = (60, 96)) -> None:
    """A smooth coloured texture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    pixels = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    Image.fromarray(pixels).save(path, quality=95)


def write_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def disc(x: int, y: int, radius: int, value: int = 255) -> np.ndarray:
    mask = np.zeros((60, 96), np.uint8)
    cv2.circle(mask, (x, y), radius, value, -1)
    return mask


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos without labels, two with a mask, one with regions."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(2):
        write_photo(folder / "plain" / "images" / f"{seed}.jpg", seed)
        write_photo(folder / "deep" / "people" / "images" / f"{seed}.jpg", 10 + seed)
    write_mask(folder / "deep" / "people" / "masks" / "0.png", disc(40, 30, 18))
    two = np.maximum(disc(20, 30, 12, 1), disc(70, 30, 14, 2))
    write_mask(folder / "deep" / "people" / "masks" / "1.png", two)
    write_photo(folder / "parts" / "images" / "0.png", 20)
    write_mask(folder / "parts" / "regions" / "0.png", 1 + disc(50, 30, 15, 1))
    return folder


def open_source(kind: str, folder: Path, seed: int = 0) -> Source:
    return (PasteSource if kind == "paste" else StillsSource)(folder, 3, SIZE, seed)


@pytest.mark.parametrize("kind", ["paste", "stills"])
def test_clips_depend_on_seed_and_number_alone(kind: str, photos: Path) -> None:
    source, again = open_source(kind, photos), open_source(kind, photos)
    clips = [source.sample(n, 0.5) for n in range(6)]
    for n in (5, 0, 3):
        clip = again.sample(n, 0.5)
        np.testing.assert_array_equal(clip.frames, clips[n].frames)
        np.testing.assert_array_equal(clip.masks, clips[n].masks)
    other = open_source(kind, photos, 1).sample(0, 0.5)
    assert (other.frames != clips[0].frames).any() and (clips[1].frames != clips[0].frames).any()


@pytest.mark.parametrize("kind", ["paste", "stills"])
def test_clips_have_objects_with_ids_without_gaps(kind: str, photos: Path) -> None:
    source = open_source(kind, photos)
    counts = set()
    for n in range(24):
        clip = source.sample(n, n / 24)
        assert clip.frames.shape == (3, *SIZE, 3) and clip.frames.dtype == np.uint8
        assert clip.masks.shape == (3, *SIZE) and clip.masks.dtype == np.uint8
        ids = np.unique(clip.masks)
        assert ids.tolist() in ([*range(ids.max() + 1)], [*range(1, ids.max() + 1)])
        assert clip.masks[0].any()
        counts.add(int(ids.max()))
    assert {1, 2} <= counts


def test_photos_are_named_in_words(photos: Path) -> None:
    options = DataOptions(SIZE, 2, 0)
    assert isinstance(parse_data(f"paste:{photos}", options), PasteSource)
    text = f"paste:{photos}=3,stills:{photos}=1,synthetic=1"
    mixture = parse_data(text, options)
    assert isinstance(mixture, Mixture)
    origins = [mixture.sample(n, 0.0).origin for n in range(20)]
    assert any(origin.startswith("pasted") for origin in origins)


def test_folders_without_photos(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(InputError, match="is no folder; wanted a folder images"):
        PasteSource(tmp_path / "none", 2, SIZE, 0)
    with pytest.raises(InputError, match="holds no photos"):
        PasteSource(tmp_path, 2, SIZE, 0)
    with pytest.raises(InputError, match="no photo has a mask"):
        StillsSource(photos / "plain", 2, SIZE, 0)
    with pytest.raises(ConfigError, match="frames"):
        PasteSource(photos, 0, SIZE, 0)
