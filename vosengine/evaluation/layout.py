"""Data sets in DAVIS layout: JPEGImages/480p/<sequence>/*.jpg with Annotations beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..video.images import is_image
from ..video.names import in_order


@dataclass(frozen=True)
class Annotated:
    """A sequence with a mask for every frame: the files, in order."""

    name: str
    frames: tuple[Path, ...]
    annotations: tuple[Path, ...]


def find_annotated(root: Path, names: Sequence[str] | None = None) -> list[Annotated]:
    """The sequences of a data set, by name.

    root   holds JPEGImages and Annotations; their folder 480p is entered where there is one
    names  only these

    Raises  InputError: no such folders, no sequences or not those asked for, and a sequence where
            frames and masks do not go together.
    """
    images, masks = (resolution_folder(root / name) for name in ("JPEGImages", "Annotations"))
    found = {folder.name: folder for folder in list_folders(images)}
    if not found:
        raise InputError(f"{images}: holds no sequences, wanted <sequence>/<frame>.jpg beneath it")
    unknown = [name for name in names or () if name not in found]
    if unknown:
        raise InputError(
            f"sequences: {images} has no {', '.join(unknown)}; wanted among {', '.join(found)}"
        )
    return [_annotated(found[name], masks / name) for name in names or found]


def list_folders(path: Path) -> list[Path]:
    """The folders directly beneath, by name; raises InputError where there is no such folder."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    return sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")


def annotation_files(folder: Path) -> list[Path]:
    """The masks of one sequence, in order."""
    return in_order(path for path in folder.glob("*.png") if is_image(path))


def resolution_folder(folder: Path) -> Path:
    """The folder 480p in it, where there is one; else itself."""
    return folder / "480p" if (folder / "480p").is_dir() else folder


def _annotated(images: Path, masks: Path) -> Annotated:
    frames = in_order(filter(is_image, images.iterdir()))
    annotations = annotation_files(masks) if masks.is_dir() else []
    shown, annotated = ({p.stem for p in files} for files in (frames, annotations))
    if shown != annotated or len(frames) != len(annotations):
        alone = sorted(shown - annotated) or sorted(annotated - shown) or ["no name once"]
        raise InputError(
            f"{images.name}: {len(frames)} frames in {images} and {len(annotations)} masks in "
            f"{masks} do not go together ({alone[0]} stands alone); wanted a mask for every frame"
        )
    return Annotated(images.name, tuple(frames), tuple(annotations))
