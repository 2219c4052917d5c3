"""Training clips from folders of real video in the layouts of DAVIS and YouTube-VOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ConfigError, InputError
from ..types import Size
from .object_ids import renumber
from .samples import Sample
from .streams import Stream, check_request, check_seed, generator

FRAME_EXTENSIONS = (".jpg", ".jpeg", ".png")
WIDEST_GAP = 25  # video frames left out between two of a clip, at most (STM, section 3.4)
WIDEST_FROM = 0.5  # share of the training after which the gaps are as wide as that
MASK_MODES = ("P", "L", "1")  # Pillow's names: indexed, grey, black and white


@dataclass(frozen=True)
class Layout:
    """Where frames and masks of a data set lie, and how many video frames a mask stands for."""

    name: str
    frames: str
    masks: str
    spacing: int


LAYOUTS = {
    "davis": Layout("davis", "JPEGImages", "Annotations", 1),
    "youtube": Layout("youtube", "train/JPEGImages", "train/Annotations", 5),
}


@dataclass(frozen=True)
class Video:
    """The frames of a video that have a mask, in order."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]


class FolderSource:
    """Clips of `length` frames from annotated videos, drawn with gaps that grow with progress.

    Only frames with a mask are used. An id may appear at any time; of more than `most_objects`
    some are chosen at random and the others become background.
    """

    def __init__(
        self, folder: Path, layout: str, length: int, seed: int, most_objects: int
    ) -> None:
        """Everything but the pixels is checked here.

        Raises ConfigError for an unknown layout, InputError where a video has fewer than two
        frames with masks, a mask without frame or of another size, or a file that cannot be read.
        """
        if layout not in LAYOUTS:
            raise ConfigError(f"layout: wanted one of {', '.join(LAYOUTS)}, given {layout!r}")
        for name, value in (("length", length), ("most_objects", most_objects)):
            if not 1 <= value <= 255:
                raise ConfigError(f"{name}: wanted 1 to 255, given {value}")
        self._layout, self._length = LAYOUTS[layout], length
        self._seed, self._most = check_seed(seed), most_objects
        self._videos = _find(folder, self._layout)
        for video in self._videos:
            _check_sizes(video)

    @property
    def names(self) -> tuple[str, ...]:
        """The videos that clips are drawn from."""
        return tuple(video.name for video in self._videos)

    def sample(self, index: int, progress: float) -> Sample:
        check_request(index, progress)
        rng = generator(Stream.SAMPLE, self._seed, index)
        video = self._videos[int(rng.integers(len(self._videos)))]
        gap = round(WIDEST_GAP * min(1.0, progress / WIDEST_FROM)) // self._layout.spacing
        chosen = _draw_frames(len(video.frames), self._length, gap, rng)
        frames = np.stack([_read(video.frames[i], ("RGB",)) for i in chosen])
        masks = _without_void(np.stack([_read(video.masks[i], MASK_MODES) for i in chosen]))
        origin = f"{video.name}, frames {' '.join(video.frames[i].stem for i in chosen)}"
        return Sample(frames, renumber(masks, self._most, rng), origin)


def _without_void(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Beside other ids of the clip 255 is void, which is no object; alone it is one."""
    void = masks == 255
    if not void.any() or not (~void & (masks > 0)).any():
        return masks
    return np.where(void, 0, masks).astype(np.uint8)


def _draw_frames(count: int, length: int, gap: int, rng: np.random.Generator) -> list[int]:
    """`length` positions of `count` in order, up to `gap` left out between neighbours.

    A video that is too short for the clip is played to its end and back.
    """
    if count < length:
        there_and_back = [*range(count), *range(count - 2, 0, -1)]
        return [there_and_back[i % len(there_and_back)] for i in range(length)]
    fits = (count - 1) // max(1, length - 1) - 1
    steps = 1 + rng.integers(0, min(gap, fits) + 1, length - 1)
    start = int(rng.integers(count - int(steps.sum())))
    return [start, *(start + np.cumsum(steps)).tolist()]


def _find(folder: Path, layout: Layout) -> tuple[Video, ...]:
    masks, frames = folder / layout.masks, folder / layout.frames
    for part in (frames, masks):
        if not part.is_dir():
            raise InputError(f"{folder}: wanted a folder {part} in the {layout.name} layout")
    if layout.name == "davis":
        masks, frames = _resolution(masks), _resolution(frames)
    names = _training_names(folder, frames)
    videos = tuple(_pair(frames / name, masks / name) for name in names)
    if not videos:
        raise InputError(f"{frames}: holds no videos; wanted a folder of frames for each")
    return videos


def _resolution(folder: Path) -> Path:
    """DAVIS keeps a folder for each resolution: 480p where there is a choice."""
    inner = _folders(folder)
    if folder / "480p" in inner:
        return folder / "480p"
    if len(inner) != 1:
        raise InputError(
            f"{folder}: wanted one folder for the resolution, such as 480p, found"
            f" {', '.join(path.name for path in inner) or 'none'}"
        )
    return inner[0]


def _training_names(folder: Path, frames: Path) -> list[str]:
    """The videos that DAVIS 2017 lists for training, where its list is there; otherwise all."""
    listed = folder / "ImageSets" / "2017" / "train.txt"
    if listed.is_file():
        return listed.read_text(encoding="utf-8").split()
    return [path.name for path in _folders(frames)]


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pair(frames: Path, masks: Path) -> Video:
    by_stem = {path.stem: path for path in _images(frames, FRAME_EXTENSIONS)}
    annotated = _images(masks, (".png",))
    for mask in annotated:
        if mask.stem not in by_stem:
            raise InputError(f"{mask}: there is no frame {mask.stem} in {frames}; remove the mask")
    if len(annotated) < 2:
        raise InputError(
            f"{frames}: {len(annotated)} of {len(by_stem)} frames have a mask in {masks}, wanted at"
            " least 2; add masks or remove the video"
        )
    return Video(frames.name, tuple(by_stem[p.stem] for p in annotated), tuple(annotated))


def _images(folder: Path, extensions: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in extensions and not path.name.startswith(".")
    )


def _check_sizes(video: Video) -> None:
    wanted = _size(video.frames[0])
    for frame, mask in zip(video.frames, video.masks, strict=True):
        for path, modes in ((frame, None), (mask, MASK_MODES)):
            given = _size(path, modes)
            if given != wanted:
                raise InputError(
                    f"{path}: is {given[0]}x{given[1]}, wanted {wanted[0]}x{wanted[1]} as"
                    f" {video.frames[0]}; every frame and mask of a video has one size"
                )


def _size(path: Path, modes: tuple[str, ...] | None = None) -> Size:
    """(height, width) from the file's header."""
    try:
        with Image.open(path) as image:
            if modes is not None and image.mode not in modes:
                raise _wrong_mode(path, image.mode)
            return image.height, image.width
    except (OSError, SyntaxError) as error:
        raise _unreadable(path, error) from error


def _read(path: Path, modes: tuple[str, ...]) -> NDArray[np.uint8]:
    """[H, W, 3] for frames; for masks [H, W] as stored: indices or grey levels are the ids."""
    try:
        with Image.open(path) as image:
            if modes == ("RGB",):
                return np.asarray(image.convert("RGB"), np.uint8)
            if image.mode not in modes:
                raise _wrong_mode(path, image.mode)
            return np.asarray(image.convert("L") if image.mode == "1" else image, np.uint8)
    except (OSError, SyntaxError) as error:
        raise _unreadable(path, error) from error


def _wrong_mode(path: Path, mode: str) -> InputError:
    return InputError(
        f"{path}: is a picture of mode {mode}, wanted object ids: an indexed or 8-bit grey PNG"
    )


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read ({error}); repair it or remove the video")
