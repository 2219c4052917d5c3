"""Training clips made of photos: purity, masks, motion, and errors of a folder."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vosengine.errors import ConfigError, InputError
from vosengine.training.mixture import DataOptions, Mixture, parse_data
from vosengine.training.photos import casting
from vosengine.training.photos import library as library_module
from vosengine.training.photos.cutouts import cut_out
from vosengine.training.photos.library import Cutout, PhotoLibrary
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
        assert clip.masks[0].any() and clip.framed
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


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark photos, two of them with a bright disc and its mask."""
    folder = tmp_path_factory.mktemp("bright")
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 25, (60, 96, 3), np.uint8)
        mask = disc(40 + 5 * number, 30, 16)
        if number < 2:
            noise[mask > 0] += 210
            write_mask(folder / "masks" / f"{number}.png", mask)
        path = folder / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise).save(path)
    return folder


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


@pytest.mark.slow
def test_pasted_masks_are_what_is_pasted_and_it_moves(
    bright: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(casting, "KINDS", {"objects": 1.0, "regions": 0.0, "outlines": 0.0})
    # Only the dark photos are backgrounds: no mask shows an object in them.
    source = PasteSource(bright, 4, (64, 96), 0, labelled=True)
    overlaps, shifts = [], []
    for number in range(20):
        clip = source.sample(number, 1.0)
        for frame, mask in zip(clip.frames, clip.masks, strict=True):
            if np.count_nonzero(mask) > 150:
                overlaps.append(iou(frame.mean(axis=2) > 70, mask > 0))
        middles = [np.argwhere(mask == 1).mean(axis=0) for mask in clip.masks if (mask == 1).any()]
        shifts += [float(np.hypot(*step)) for step in np.diff(middles, axis=0)]
    assert len(overlaps) > 40 and np.median(overlaps) > 0.9 and np.min(overlaps) > 0.5
    assert np.median(shifts) > 1


@pytest.mark.slow
def test_not_all_that_moves_is_an_object_unless_it_is_asked_for(
    bright: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(casting, "KINDS", {"objects": 1.0, "regions": 0.0, "outlines": 0.0})
    monkeypatch.setattr(PhotoLibrary, "draw", lambda self, rng: int(rng.integers(2, 6)))
    unlabelled = {}
    for labelled in (True, False):
        source = PasteSource(bright, 2, (64, 96), 0, labelled)
        clips = [source.sample(number, 0.3) for number in range(24)]
        unlabelled[labelled] = sum(
            ((c.frames[0].min(axis=2) > 110) & (c.masks[0] == 0)).sum() > 100 for c in clips
        )
    assert unlabelled[True] <= 1 and unlabelled[False] >= 5


def test_where_all_objects_are_labelled_the_background_shows_none(photos: Path) -> None:
    library = PhotoLibrary(photos, 48)
    rng = np.random.default_rng(0)
    objects = {cutout.number for cutout in library.objects.cutouts}
    assert len(objects) == 2
    drawn = [library.draw_bare(rng) for _ in range(40)]
    assert set(drawn) == set(range(len(library.photos))) - objects
    everything_shows_one = PhotoLibrary(photos / "deep", 48)
    assert {everything_shows_one.draw_bare(rng) for _ in range(40)} == {0, 1}


def test_stills_show_the_photo_under_its_mask(bright: Path) -> None:
    source = StillsSource(bright, 3, (64, 96), 0)
    masks = []
    for number in range(8):
        clip = source.sample(number, 1.0)
        for frame, mask in zip(clip.frames, clip.masks, strict=True):
            assert iou(frame.mean(axis=2) > 120, mask > 0) > 0.9
        masks += [iou(a > 0, b > 0) for a, b in zip(clip.masks, clip.masks[1:], strict=False)]
    assert np.median(masks) < 0.9


def test_stills_of_all_objects(photos: Path) -> None:
    source = StillsSource(photos, 1, (60, 96), 0, labelled=True)
    origins = {clip.origin: clip for clip in (source.sample(n, 0.0) for n in range(20))}
    assert set(origins) == {"0.jpg warped", "1.jpg warped"}  # not 0.png, which has regions
    counts = [source.sample(n, 0.0).masks.max() for n in range(20)]
    assert set(counts) == {1, 2}


def test_cutouts_know_where_their_photo_ends(tmp_path: Path) -> None:
    write_photo(tmp_path / "images" / "a.jpg", 0)
    write_mask(tmp_path / "masks" / "a.png", disc(0, 55, 30))
    figure = cut_out(PhotoLibrary(tmp_path, 288), Cutout(0, 255))
    assert figure.cut.tolist() == [[True, False], [False, True]]
    assert figure.flipped().cut.tolist() == [[False, True], [False, True]]
    wanted = np.count_nonzero(disc(0, 55, 30))  # less a rim, which is half background
    assert 0.8 * wanted < figure.area < wanted
    rim = np.concatenate([figure.alpha[0], figure.alpha[-1], figure.alpha[:, 0]])
    assert not rim.any()


@pytest.mark.parametrize("anchored", [0.0, 1.0])
def test_what_a_photo_cuts_the_frame_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anchored: float
) -> None:
    """A bust whose photo ends at the chest stands on the frame's lower border."""
    write_photo(tmp_path / "images" / "a.jpg", 0)
    write_mask(tmp_path / "masks" / "a.png", disc(48, 50, 20))
    monkeypatch.setattr(casting, "KINDS", {"objects": 1.0, "regions": 0.0, "outlines": 0.0})
    monkeypatch.setattr(casting, "ANCHORED", anchored)
    monkeypatch.setattr(casting, "COUNTS", (1.0,))
    monkeypatch.setattr(casting, "LOOK_ALIKES", 0.0)
    source = PasteSource(tmp_path, 1, (64, 96), 0, labelled=True)
    clips = [source.sample(number, 0.0) for number in range(20)]
    standing = sum(bool(clip.masks[0, -3:].any()) for clip in clips)
    assert standing >= 19 if anchored else standing <= 15


def test_large_photos_are_reduced_with_their_masks(tmp_path: Path) -> None:
    mask = cv2.resize(disc(40, 30, 18), (960, 600), interpolation=cv2.INTER_NEAREST)
    for name in ("jpg", "png"):
        write_photo(tmp_path / name / "images" / f"a.{name}", 0, (600, 960))
        write_mask(tmp_path / name / "masks" / "a.png", mask)
        library = PhotoLibrary(tmp_path / name, 120)
        assert library.image(0).shape == (120, 192, 3) and library.labels(0).shape == (120, 192)
        assert (library.labels(0) > 0).mean() == pytest.approx((mask > 0).mean(), rel=0.02)


def test_photos_lie_as_their_camera_says(tmp_path: Path) -> None:
    write_photo(tmp_path / "images" / "a.jpg", 0)
    image = Image.open(tmp_path / "images" / "a.jpg")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "images" / "a.jpg", exif=exif)
    write_mask(tmp_path / "masks" / "a.png", np.rot90(disc(40, 30, 18)))
    assert PhotoLibrary(tmp_path, 288).image(0).shape == (96, 60, 3)


def test_photos_that_are_nearly_the_same_share_a_chance(tmp_path: Path) -> None:
    for number in range(8):
        write_photo(tmp_path / "images" / f"{number}.jpg", max(0, number - 5))
    library = PhotoLibrary(tmp_path, 288)
    assert library.rarity.tolist() == [1 / 6] * 6 + [1, 1]
    rng = np.random.default_rng(0)
    drawn = np.bincount([library.draw(rng) for _ in range(600)], minlength=8)
    assert drawn[:6].sum() / 200 == pytest.approx(1, rel=0.2)
    assert (drawn[6:] / 200 > 0.8).all() and (drawn > 0).all()


def test_what_is_in_memory_is_limited_and_stays_in_its_process(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 60 * 96 * 3
    monkeypatch.setattr(library_module, "CACHE_BYTES", 2 * one)
    library = PhotoLibrary(photos, 288)
    fresh = len(pickle.dumps(library))
    images = [library.image(number).copy() for number in range(len(library.photos))]
    assert library.bytes_kept == 2 * one
    assert len(pickle.dumps(library)) == fresh
    again = pickle.loads(pickle.dumps(library))
    for number, image in enumerate(images):
        np.testing.assert_array_equal(again.image(number), image)


def test_sources_of_one_folder_read_it_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    begin = PhotoLibrary.__init__

    def counted(self: PhotoLibrary, folder: Path, side: int) -> None:
        opened.append(folder)
        begin(self, folder, side)

    monkeypatch.setattr(PhotoLibrary, "__init__", counted)
    parse_data(f"paste:{photos}=2,stills:{photos}", DataOptions(SIZE, 2, 0))
    assert opened == [photos]


# What can be wrong with a folder


def test_folders_without_photos(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(InputError, match="is no folder; wanted a folder images"):
        PasteSource(tmp_path / "none", 2, SIZE, 0)
    with pytest.raises(InputError, match="holds no photos"):
        PasteSource(tmp_path, 2, SIZE, 0)
    with pytest.raises(InputError, match="no photo has a mask"):
        StillsSource(photos / "plain", 2, SIZE, 0)
    with pytest.raises(ConfigError, match="frames"):
        PasteSource(photos, 0, SIZE, 0)


def broken(folder: Path, kind: str) -> None:
    """A valid photo with its mask, and an invalid one."""
    write_photo(folder / "images" / "a.jpg", 0)
    write_mask(folder / "masks" / "a.png", disc(40, 30, 18))
    photo, mask = folder / "images" / "b.jpg", folder / "masks" / "b.png"
    write_photo(photo, 1)
    if kind == "no picture":
        photo.write_bytes(b"nothing")
    elif kind == "truncated":
        photo.write_bytes(photo.read_bytes()[:-200])
    elif kind == "tiny":
        write_photo(photo, 1, (31, 90))
    elif kind == "mask of another size":
        write_mask(mask, disc(40, 30, 18)[:-1])
    elif kind == "mask without photo":
        photo.unlink()
        write_mask(mask, disc(40, 30, 18))
    elif kind == "regions without photo":
        write_mask(folder / "regions" / "c.png", disc(40, 30, 18))
    elif kind == "broken mask":
        write_mask(mask, disc(40, 30, 18))
        mask.write_bytes(mask.read_bytes()[:60])
    elif kind == "mask in colours":
        write_mask(mask, np.repeat(disc(40, 30, 18)[..., None], 3, 2))
    elif kind == "matte":
        write_mask(mask, np.arange(60 * 96).reshape(60, 96).astype(np.uint8))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no picture", r"b\.jpg: cannot be read .*; repair or remove it"),
        ("truncated", r"b\.jpg: cannot be read .*; repair or remove it"),
        ("tiny", r"b\.jpg: is 31x90, wanted sides of at least 32; remove it"),
        ("mask of another size", r"b\.png: is 59x96, wanted 60x96 as .*b\.jpg"),
        ("mask without photo", r"b\.png: there is no photo b in .*images; remove the mask"),
        ("regions without photo", r"c\.png: there is no photo c in .*images; remove the mask"),
        ("broken mask", r"b\.png: cannot be read"),
        ("mask in colours", r"b\.png: is a picture of mode RGB, wanted object ids"),
        ("matte", r"b\.png: has 255 values, which is a soft matte; .*threshold"),
    ],
)
def test_what_is_wrong_is_said_when_the_folder_is_opened(
    tmp_path: Path, kind: str, message: str
) -> None:
    broken(tmp_path, kind)
    for source in ("paste", "stills"):
        with pytest.raises(InputError, match=message):
            parse_data(f"{source}:{tmp_path}", DataOptions(SIZE, 2, 0))
