"""Training clips from data sets of real video in DAVIS or YouTube-VOS layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config.checks import check
from ..errors import InputError
from ..types import Size
from .object_ids import renumber
from .pictures import files_in, opened, read_ids
from .samples import Sample
from .streams import Stream, check_request, check_seed, generator

FRAME_EXTENSIONS = (".jpg", ".jpeg", ".png")
WIDEST_GAP = 25  # maximum number of video frames skipped between clip frames (STM, section 3.4)
WIDEST_FROM = 0.5  # training progress from which this maximum applies


@dataclass(frozen=True)
class Layout:
    """Folder layout of a data set."""

    name: str
    frames: str  # folder of the frames, relative to the data set
    masks: str  # folder of the masks, likewise
    spacing: int  # video frames per annotated frame


LAYOUTS = {
    "davis": Layout("davis", "JPEGImages", "Annotations", 1),
    "youtube": Layout("youtube", "train/JPEGImages", "train/Annotations", 5),
}


@dataclass(frozen=True)
class Video:
    """Annotated frames of a video and their masks, in order."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]


class FolderSource:
    """Source of clips from annotated videos; gaps between frames grow with training progress.

    Only frames with a mask are used. An id may appear at any time; of more than `most_objects` a
    random subset is kept, the rest becomes background.
    """

    def __init__(
        self, folder: Path, layout: str, length: int, seed: int, most_objects: int
    ) -> None:
        """Find and check the videos; everything but the pixels is checked here.

        layout        "davis" or "youtube"
        length        frames per clip, 1..255
        most_objects  maximum per clip, 1..255

        Raises  ConfigError for an unknown layout or a value out of range; InputError if a video has
                fewer than two annotated frames, a mask without a frame or of another size, or a
                file that cannot be read.
        """
        check(layout in LAYOUTS, "layout", f"one of {', '.join(LAYOUTS)}", layout)
        for name, value in (("length", length), ("most_objects", most_objects)):
            check(1 <= value <= 255, name, "1 to 255", value)
        self._layout, self._length = LAYOUTS[layout], length
        self._seed, self._most = check_seed(seed), most_objects
        self._videos = _find(folder, self._layout)
        for video in self._videos:
            _check_sizes(video)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the videos."""
        return tuple(video.name for video in self._videos)

    def sample(self, index: int, progress: float) -> Sample:
        check_request(index, progress)
        rng = generator(Stream.SAMPLE, self._seed, index)
        video = self._videos[int(rng.integers(len(self._videos)))]
        gap = round(WIDEST_GAP * min(1.0, progress / WIDEST_FROM)) // self._layout.spacing
        chosen = _draw_frames(len(video.frames), self._length, gap, rng)
        frames = np.stack([_read_frame(video.frames[i]) for i in chosen])
        masks = _without_void(np.stack([read_ids(video.masks[i]) for i in chosen]))
        origin = f"{video.name}, frames {' '.join(video.frames[i].stem for i in chosen)}"
        return Sample(frames, renumber(masks, self._most, rng), origin)


def _without_void(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Set id 255 (void) to background; if it is the only id of the clip, it is an object."""
    void = masks == 255
    if not void.any() or not (~void & (masks > 0)).any():
        return masks
    return np.where(void, 0, masks).astype(np.uint8)


def _draw_frames(count: int, length: int, gap: int, rng: np.random.Generator) -> list[int]:
    """Draw `length` of `count` frame indices in order, skipping up to `gap` between neighbours.

    A video shorter than the clip is played forwards and backwards.
    """
    if count < length:
        cycle = [*range(count), *range(count - 2, 0, -1)]
        return [cycle[i % len(cycle)] for i in range(length)]
    widest = (count - 1) // max(1, length - 1) - 1
    steps = 1 + rng.integers(0, min(gap, widest) + 1, length - 1)
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
    """Resolution folder of a DAVIS data set: 480p if there are several."""
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
    """Names in DAVIS 2017's training list; without that file, all videos."""
    train_list = folder / "ImageSets" / "2017" / "train.txt"
    if train_list.is_file():
        return train_list.read_text(encoding="utf-8").split()
    return [path.name for path in _folders(frames)]


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pair(frames: Path, masks: Path) -> Video:
    by_stem = {path.stem: path for path in files_in(frames, FRAME_EXTENSIONS)}
    annotated = files_in(masks, (".png",))
    for mask in annotated:
        if mask.stem not in by_stem:
            raise InputError(f"{mask}: there is no frame {mask.stem} in {frames}; remove the mask")
    if len(annotated) < 2:
        raise InputError(
            f"{frames}: {len(annotated)} of {len(by_stem)} frames have a mask in {masks}, wanted at"
            " least 2; add masks or remove the video"
        )
    return Video(frames.name, tuple(by_stem[p.stem] for p in annotated), tuple(annotated))


def _check_sizes(video: Video) -> None:
    wanted = _size(video.frames[0])
    for frame, mask in zip(video.frames, video.masks, strict=True):
        for path in (frame, mask):
            size = _size(path, ids=path is mask)
            if size != wanted:
                raise InputError(
                    f"{path}: is {size[0]}x{size[1]}, wanted {wanted[0]}x{wanted[1]} as"
                    f" {video.frames[0]}; every frame and mask of a video has one size"
                )


def _size(path: Path, *, ids: bool = False) -> Size:
    """(height, width) from an image file's header."""
    with opened(path, ids=ids) as image:
        return image.height, image.width


def _read_frame(path: Path) -> NDArray[np.uint8]:
    with opened(path) as image:
        return np.asarray(image.convert("RGB"), np.uint8)
