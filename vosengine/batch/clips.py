"""Find the clips of a batch in files, folders, patterns, data sets and manifests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ..errors import InputError
from ..evaluation.layout import list_folders, resolution_folder
from ..naming import listed
from ..video.images import is_image
from ..video.names import in_order
from .stores import AnyPath, exists, find_pattern, is_address, is_pattern, open_place, reaching

VIDEOS = (
    *("3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts"),
    *("mxf", "ogv", "ts", "webm", "wmv", "y4m"),
)
MANIFESTS = (".jsonl", ".csv")
RESERVED = ("batch.json", "failed.jsonl")
LONGEST = 200  # maximum length of a name in bytes, which leaves room for suffixes


@dataclass(frozen=True)
class Clip:
    """A clip with its own mask and options.

    name           name of its results folder
    source         a video, a folder of images, or a pattern of images: a path or an address
    mask           a PNG or a folder of PNGs; None: no mask
    explicit_mask  whether the mask was named in a manifest; otherwise it was found beside the clip
    options        fields of RunOptions by name that override those of the batch
    """

    name: str
    source: str
    mask: AnyPath | None = None
    explicit_mask: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def find_clips(sources: Sequence[str], mask_suffix: str = "") -> list[Clip]:
    """Find the clips, in order; check that all exist and that names are unique.

    sources      videos, folders of frames, folders of videos and frame folders, patterns, data sets
                 (JPEGImages and Annotations), or one manifest; paths, or addresses for fsspec
    mask_suffix  the mask of NAME.mp4, and of a folder NAME, is NAME + suffix + .png beside it, or
                 the folder NAME + suffix of masks

    Raises  InputError, naming what is missing or which clips share a name; StorageError for an
            address that cannot be reached, DependencyError if its package is missing.
    """
    with reaching(", ".join(sources)):
        return _find(sources, mask_suffix)


def _find(sources: Sequence[str], mask_suffix: str) -> list[Clip]:
    from .manifest import read_manifest  # imports this module

    if any(source.lower().endswith(MANIFESTS) for source in sources):
        if len(sources) > 1:
            raise InputError(
                f"clips: wanted one manifest, or no manifest; given {', '.join(sources)}"
            )
        clips = read_manifest(open_place(sources[0]))
    else:
        clips = [clip for source in sources for clip in _expand(source, mask_suffix)]
    if not clips:
        raise InputError(
            f"clips: there are none in {', '.join(sources)}; wanted videos or folders of frames"
        )
    clips = [
        clip if clip.mask else replace(clip, mask=_mask_beside(clip, mask_suffix)) for clip in clips
    ]
    _check_exist(clips)
    _check_names(clips)
    return clips


def name_of(text: str) -> str:
    """Make a folder name: letters, digits and . _ - are kept, other characters become _."""
    return re.sub(r"[^\w.-]", "_", text).lstrip(".-")


def _expand(source: str, suffix: str) -> Iterator[Clip]:
    path = open_place(source)
    pattern = _is_pattern(source)
    if not pattern and not exists(path):
        raise InputError(f"{source}: no such file or folder; wanted videos or folders of frames")
    if pattern:
        matches = in_order(map(_as_path, find_pattern(source)))
        clips = [
            clip for match in _without_masks(matches, suffix) for clip in _expand(str(match), "")
        ]
        if not clips:
            raise InputError(
                f"{source}: matches no video and no folder of frames; if it matches frames, give "
                "their folder instead"
            )
        yield from clips
    elif path.is_dir():
        yield from _in_folder(path, suffix)
    elif is_image(_as_path(path)):
        raise InputError(f"{path}: is one image, wanted a video or a folder of frames")
    else:
        yield _plain(path)


def _in_folder(path: AnyPath, suffix: str) -> Iterator[Clip]:
    """The clips of a folder: the sequences of a data set, the folder itself, or its contents."""
    if (path / "JPEGImages").is_dir():
        yield from _sequences(path)
        return
    inner = [p for p in path.iterdir() if _is_video(p) or (p.is_dir() and _holds_images(p))]
    masks = {f"{_stem(p)}{suffix}.png" for p in inner}
    frames = any(is_image(_as_path(p)) and str(p) not in masks for p in path.iterdir())
    if frames and not any(map(_is_video, inner)):
        yield _plain(path)
        return
    clips = _without_masks(in_order(map(_as_path, inner)), suffix)
    if not clips:
        raise InputError(f"{path}: holds no videos, no frames and no folders of frames")
    yield from map(_plain, clips)


def _sequences(root: AnyPath) -> Iterator[Clip]:
    """Sequences of a data set in DAVIS or YouTube-VOS layout, with their objects' first masks."""
    images, masks = (
        resolution_folder(_as_path(root / name)) for name in ("JPEGImages", "Annotations")
    )
    for folder in list_folders(images):
        annotated = masks / folder.name
        options = {"first_masks": True}
        mask = annotated if annotated.is_dir() else None
        yield Clip(name_of(folder.name), str(folder), mask, False, options)


def _plain(path: AnyPath) -> Clip:
    real = path if path.name or not isinstance(path, Path) else path.resolve()  # "." has no name
    return Clip(name_of(real.name if path.is_dir() else path.stem), str(path))


def _without_masks(paths: Iterable[AnyPath], suffix: str) -> list[AnyPath]:
    """The paths without images, and without folders of masks that belong to another path."""
    paths = [path for path in paths if path.is_dir() or _is_video(path)]
    masks = {_stem(path) + suffix for path in paths if suffix or not path.is_dir()}
    return [p for p in paths if not (p.is_dir() and str(p) in masks)]


def _mask_beside(clip: Clip, suffix: str) -> AnyPath | None:
    if _is_pattern(clip.source):
        return None
    stem = _stem(open_place(clip.source))
    image, folder = open_place(f"{stem}{suffix}.png"), open_place(f"{stem}{suffix}")
    if image.is_file():
        return image
    same = os.path.abspath(str(folder)) == os.path.abspath(clip.source)
    return folder if folder.is_dir() and not same else None


def _stem(path: AnyPath) -> str:
    return str(path if path.is_dir() else path.with_suffix(""))


def _is_video(path: AnyPath) -> bool:
    return path.suffix[1:].lower() in VIDEOS and path.name[0] != "." and path.is_file()


def _holds_images(path: AnyPath) -> bool:
    return any(is_image(_as_path(file)) for file in path.iterdir())


def _as_path(place: AnyPath) -> Path:
    """A cast for functions that use of a Path only what a UPath has too."""
    return cast(Path, place)


def _is_pattern(source: str) -> bool:
    return is_pattern(source) and (is_address(source) or not os.path.exists(source))


def _check_exist(clips: Sequence[Clip]) -> None:
    missing = []
    for clip in clips:
        place = None if _is_pattern(clip.source) else open_place(clip.source)
        if not (find_pattern(clip.source) if place is None else exists(place)):
            missing.append(f"{clip.source} (clip {clip.name})")
        elif place is not None and place.is_dir() and not _holds_images(place):
            missing.append(f"frames in {clip.source} (clip {clip.name})")
        if clip.mask is not None and not exists(clip.mask):
            missing.append(f"{clip.mask} (mask of {clip.name})")
    if missing:
        raise InputError(
            f"clips: {len(missing)} missing: {listed(missing)}; wanted files and folders that "
            "exist; nothing was started"
        )


def _check_names(clips: Sequence[Clip]) -> None:
    owners: dict[str, Clip] = {}
    for clip in clips:
        name, low = clip.name, clip.name.casefold()
        if not name or low in RESERVED or low.endswith(".part") or len(name.encode()) > LONGEST:
            raise InputError(
                f"{clip.source}: cannot be named {name!r}, wanted at most {LONGEST} bytes, not "
                f"empty, not {' or '.join(RESERVED)}, and no .part at the end; give it a name in a "
                "manifest"
            )
        if low in owners:
            raise InputError(
                f"{clip.source}: would be named {name!r} as {owners[low].source}; wanted "
                "different names: give them in a manifest, or run two batches"
            )
        owners[low] = clip
