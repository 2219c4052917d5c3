"""Folders of real video as training data: both layouts, gaps, ids, and errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vosengine.errors import ConfigError, InputError
from vosengine.training.folders import WIDEST_FROM, WIDEST_GAP, FolderSource
from vosengine.training.mixture import DataOptions, parse_data
from vosengine.training.samples import Sample

HEIGHT, WIDTH = 24, 32


def write_video(frames: Path, masks: Path, count: int, every: int = 1, ids: int = 2) -> None:
    """Frames whose grey is their number; masks at every so many, with objects 1..ids as columns."""
    frames.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = np.full((HEIGHT, WIDTH, 3), number, np.uint8)
        Image.fromarray(image).save(frames / f"{number:05d}.jpg", quality=100)
        if number % every == 0:
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[4:20, 2 : 2 + 4 * ids] = np.repeat(np.arange(1, ids + 1), 4)
            write_mask(masks / f"{number:05d}.png", mask)


def write_mask(path: Path, mask: np.ndarray) -> None:
    image = Image.fromarray(mask)
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def davis(folder: Path, **videos: int) -> Path:
    for name, count in videos.items():
        write_video(folder / "JPEGImages/480p" / name, folder / "Annotations/480p" / name, count)
    return folder


def youtube(folder: Path, **videos: int) -> Path:
    for name, count in videos.items():
        inner = (folder / "train" / part / name for part in ("JPEGImages", "Annotations"))
        write_video(*inner, count, every=5)
    return folder


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return davis(tmp_path_factory.mktemp("davis"), long=120)


def numbers(clip: Sample) -> list[int]:
    """The frames a clip was drawn from, read from its pixels; its origin must say the same."""
    indices = [int(word) for word in clip.origin.split()[2:]]
    assert [int(frame.mean().round()) for frame in clip.frames] == indices
    return indices


@pytest.mark.slow
def test_gaps_widen_with_progress(long_video: Path) -> None:
    source = FolderSource(long_video, "davis", 4, 0, 6)
    widest = []
    for progress in (0.0, WIDEST_FROM / 2, WIDEST_FROM, 1.0):
        steps = np.concatenate([np.diff(numbers(source.sample(i, progress))) for i in range(60)])
        assert steps.min() >= 1
        widest.append(int(steps.max()) - 1)
    assert widest[0] == 0 and 8 <= widest[1] <= WIDEST_GAP / 2
    assert WIDEST_GAP - 3 <= widest[2] <= WIDEST_GAP and widest[3] <= WIDEST_GAP


@pytest.mark.slow
def test_every_part_of_a_video_is_drawn(long_video: Path) -> None:
    source = FolderSource(long_video, "davis", 2, 0, 6)
    starts = [numbers(source.sample(i, 0.0))[0] for i in range(300)]
    assert min(starts) < 5 and max(starts) > 113


def test_a_sample_is_a_function_of_its_number_and_the_progress(long_video: Path) -> None:
    one, other = (FolderSource(long_video, "davis", 3, 1, 6) for _ in range(2))
    clips = [one.sample(i, 0.4) for i in range(5)]
    for i in reversed(range(5)):
        again = other.sample(i, 0.4)
        assert again.origin == clips[i].origin
        assert np.array_equal(again.masks, clips[i].masks)
    assert len({clip.origin for clip in clips}) == 5
    assert FolderSource(long_video, "davis", 3, 2, 6).sample(0, 0.4).origin != clips[0].origin


def test_both_layouts_give_frames_and_masks_as_stored(tmp_path: Path) -> None:
    first = FolderSource(davis(tmp_path / "d", bear=6, cat=7), "davis", 3, 0, 6)
    second = FolderSource(youtube(tmp_path / "y", a1=21, b2=16), "youtube", 3, 0, 6)
    assert first.names == ("bear", "cat") and second.names == ("a1", "b2")
    seen = set()
    for source in (first, second):
        for index in range(12):
            clip = source.sample(index, 1.0)
            seen.add(clip.origin.split(",")[0])
            assert clip.frames.shape == (3, HEIGHT, WIDTH, 3)
            assert clip.frames.dtype == clip.masks.dtype == np.uint8
            assert clip.masks[:, 10, [0, 2, 6, 10]].tolist() == [[0, 1, 2, 0]] * 3
            multiple = 5 if source is second else 1
            assert all(number % multiple == 0 for number in numbers(clip))
    assert seen == {"bear", "cat", "a1", "b2"}


def test_gaps_of_youtube_are_counted_in_video_frames(tmp_path: Path) -> None:
    source = FolderSource(youtube(tmp_path, long=150), "youtube", 2, 0, 6)
    steps = [int(np.diff(numbers(source.sample(i, 1.0)))[0]) for i in range(80)]
    assert {step // 5 for step in steps} == set(range(1, 2 + WIDEST_GAP // 5))


def test_only_frames_with_a_mask_are_used(tmp_path: Path) -> None:
    folder = davis(tmp_path, bear=8)
    for number in (0, 3, 4):
        (folder / f"Annotations/480p/bear/{number:05d}.png").unlink()
    source = FolderSource(folder, "davis", 2, 0, 6)
    assert {n for i in range(60) for n in numbers(source.sample(i, 1.0))} == {1, 2, 5, 6, 7}


def test_a_short_video_is_played_there_and_back(tmp_path: Path) -> None:
    source = FolderSource(davis(tmp_path, bear=3), "davis", 7, 0, 6)
    assert numbers(source.sample(0, 1.0)) == [0, 1, 2, 1, 0, 1, 2]
    exact = FolderSource(tmp_path, "davis", 3, 0, 6)
    assert numbers(exact.sample(0, 1.0)) == [0, 1, 2]


def test_more_objects_than_wanted_are_chosen_from(tmp_path: Path) -> None:
    write_video(tmp_path / "JPEGImages/480p/bear", tmp_path / "Annotations/480p/bear", 3, ids=5)
    source = FolderSource(tmp_path, "davis", 2, 0, 2)
    kept = set()
    for index in range(40):
        row = source.sample(index, 0.0).masks[0, 10, 2:22:4]
        assert row[row > 0].tolist() == [1, 2]
        kept.add(tuple(np.flatnonzero(row).tolist()))
    assert len(kept) > 5


def test_late_objects_and_ids_with_gaps_are_kept_in_order(tmp_path: Path) -> None:
    folder = davis(tmp_path, bear=3)
    for number in range(3):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[:8] = 200
        if number == 2:
            mask[16:] = 7
        write_mask(folder / f"Annotations/480p/bear/{number:05d}.png", mask)
    clip = FolderSource(folder, "davis", 3, 0, 6).sample(0, 0.0)
    assert clip.masks[:, [0, 20], 0].tolist() == [[2, 0], [2, 0], [2, 1]]


def test_black_and_white_masks_hold_one_object(tmp_path: Path) -> None:
    folder = davis(tmp_path, bear=4)
    for number, mode in enumerate(("L", "1", "L", "1")):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[:8] = 255
        path = folder / f"Annotations/480p/bear/{number:05d}.png"
        Image.fromarray(mask).convert(mode).save(path)
    clip = FolderSource(folder, "davis", 4, 0, 6).sample(0, 0.0)
    assert clip.masks[:, [0, 20], 0].tolist() == [[1, 0]] * 4


def test_255_beside_other_ids_is_void(tmp_path: Path) -> None:
    folder = davis(tmp_path, bear=2)
    for number in range(2):
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[:8] = 3 * (1 - number)
        write_mask(folder / f"Annotations/480p/bear/{number:05d}.png", mask)
    clip = FolderSource(folder, "davis", 2, 0, 6).sample(0, 0.0)
    assert sorted(clip.masks[:, [0, 20], 0].tolist()) == [[0, 0], [1, 0]]


def test_the_training_list_of_davis_is_obeyed(tmp_path: Path) -> None:
    folder = davis(tmp_path, bear=2, cat=2, dog=2)
    (folder / "ImageSets/2017").mkdir(parents=True)
    (folder / "ImageSets/2017/train.txt").write_text("bear\ndog\n")
    assert FolderSource(folder, "davis", 2, 0, 6).names == ("bear", "dog")


def test_480p_is_taken_where_there_is_a_choice(tmp_path: Path) -> None:
    folder = davis(tmp_path, bear=2)
    (folder / "JPEGImages/1080p").mkdir()
    assert FolderSource(folder, "davis", 2, 0, 6).names == ("bear",)
    os.rename(folder / "JPEGImages/480p", folder / "JPEGImages/720p")
    with pytest.raises(InputError, match="found 1080p, 720p"):
        FolderSource(folder, "davis", 2, 0, 6)


FRAMES, MASKS = "JPEGImages/480p/bear", "Annotations/480p/bear"


def no_masks(folder: Path) -> None:
    for path in (folder / MASKS).iterdir():
        path.unlink()


def one_mask(folder: Path) -> None:
    for path in list((folder / MASKS).iterdir())[1:]:
        path.unlink()


def one_frame(folder: Path) -> None:
    for part in (FRAMES, MASKS):
        for path in sorted((folder / part).iterdir())[1:]:
            path.unlink()


def small_mask(folder: Path) -> None:
    write_mask(folder / MASKS / "00002.png", np.zeros((HEIGHT, WIDTH - 1), np.uint8))


def small_frame(folder: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT - 1)).save(folder / FRAMES / "00002.jpg")


def mask_without_frame(folder: Path) -> None:
    (folder / FRAMES / "00002.jpg").unlink()


def no_image(folder: Path) -> None:
    (folder / FRAMES / "00001.jpg").write_bytes(b"\xff\xd8 no picture")


def empty_mask_file(folder: Path) -> None:
    (folder / MASKS / "00003.png").write_bytes(b"")


def coloured_mask(folder: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / MASKS / "00001.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_masks, r"bear: 0 of 4 frames have a mask in .*, wanted at least 2"),
        (one_mask, r"bear: 1 of 4 frames have a mask"),
        (one_frame, r"bear: 1 of 1 frames have a mask"),
        (small_mask, r"bear/00002\.png: is 24x31, wanted 24x32 as .*00000\.jpg"),
        (small_frame, r"bear/00002\.jpg: is 23x32, wanted 24x32"),
        (mask_without_frame, r"bear/00002\.png: there is no frame 00002"),
        (no_image, r"bear/00001\.jpg: cannot be read"),
        (empty_mask_file, r"bear/00003\.png: cannot be read"),
        (coloured_mask, r"bear/00001\.png: is a picture of mode RGB, wanted object ids"),
    ],
)
def test_what_is_wrong_is_said_when_the_folder_is_opened(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = davis(tmp_path, ant=3, bear=4)
    FolderSource(folder, "davis", 2, 0, 6)
    damage(folder)
    with pytest.raises(InputError, match=message):
        FolderSource(folder, "davis", 2, 0, 6)


def test_a_picture_cut_short_is_named_when_it_is_read(tmp_path: Path) -> None:
    folder = davis(tmp_path, bear=2)
    path = folder / FRAMES / "00001.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(path, quality=100)
    path.write_bytes(path.read_bytes()[:-400])
    source = FolderSource(folder, "davis", 2, 0, 6)
    with pytest.raises(InputError, match=r"00001\.jpg: cannot be read"):
        source.sample(0, 0.0)


def test_folders_that_are_none_of_the_layout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"wanted a folder .*JPEGImages in the davis layout"):
        FolderSource(tmp_path, "davis", 2, 0, 6)
    with pytest.raises(InputError, match=r"wanted a folder .*train/JPEGImages in the youtube"):
        FolderSource(davis(tmp_path / "d", bear=2), "youtube", 2, 0, 6)
    for part in ("JPEGImages", "Annotations"):
        (tmp_path / part / "480p").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no videos"):
        FolderSource(tmp_path, "davis", 2, 0, 6)
    with pytest.raises(ConfigError, match="wanted one of davis, youtube"):
        FolderSource(tmp_path, "kitti", 2, 0, 6)
    for length, most in ((0, 6), (2, 0), (2, 256)):
        with pytest.raises(ConfigError, match="wanted 1 to 255"):
            FolderSource(tmp_path, "davis", length, 0, most)


def test_folders_are_named_in_words(tmp_path: Path) -> None:
    davis(tmp_path / "d=1", bear=4)
    youtube(tmp_path / "y", fox=11)
    options = DataOptions((HEIGHT, WIDTH), 2, 0)
    mixture = parse_data(f"davis:{tmp_path / 'd=1'}=3,youtube:{tmp_path / 'y'}", options)
    origins = [mixture.sample(i, 0.0).origin for i in range(80)]
    bears = sum(origin.startswith("bear") for origin in origins)
    assert 48 < bears < 74
    assert all(origin.startswith(("bear", "fox")) for origin in origins)
