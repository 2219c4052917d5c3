"""Data sets in DAVIS layout: JPEGImages/480p/<sequence>/*.jpg, and Annotations likewise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..video.images import is_image
from ..video.names import in_order


@dataclass(frozen=True)
class Annotated:
    """A sequence with one annotation per frame; files in frame order."""

    name: str
    frames: tuple[Path, ...]
    annotations: tuple[Path, ...]


def find_annotated(root: Path, names: Sequence[str] | None = None) -> list[Annotated]:
    """Find the annotated sequences of a data set, sorted by name.

    root   folder with JPEGImages and Annotations; a subfolder 480p of these is used if it exists
    names  the sequences to return; None: all

    Raises  InputError: a folder or a named sequence is missing, there are no sequences, or the
            frames and masks of a sequence do not match.
    """
    images, masks = (resolution_folder(root / name) for name in ("JPEGImages", "Annotations"))
    sequences = {folder.name: folder for folder in list_folders(images)}
    if not sequences:
        raise InputError(f"{images}: holds no sequences, wanted <sequence>/<frame>.jpg beneath it")
    unknown = [name for name in names or () if name not in sequences]
    if unknown:
        raise InputError(
            f"sequences: {images} has no {', '.join(unknown)}; wanted among {', '.join(sequences)}"
        )
    return [_annotated(sequences[name], masks / name) for name in names or sequences]


def list_folders(path: Path) -> list[Path]:
    """List the direct subfolders, sorted. Raises InputError if `path` is not a folder."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    return sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")


def annotation_files(folder: Path) -> list[Path]:
    """The mask files of one sequence, in frame order."""
    return in_order(path for path in folder.glob("*.png") if is_image(path))


def resolution_folder(folder: Path) -> Path:
    """The subfolder 480p if it exists, else the folder itself."""
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
