"""Atomic replacement of an export in its folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...errors import OutputError
from ...files import Given, cannot_write, check_output_folder, keep_apart
from ..manifest import MANIFEST, hash_of


@contextmanager
def replaced_export(
    folder: Path, names: Sequence[str], weights: str | Path | None
) -> Iterator[Path]:
    """Context manager that yields an empty folder for the graphs of these names and the manifest.

    At the end of the block they replace those of an earlier export in `folder`. After an error in
    the block nothing has changed.

    weights  the option of the export; a file there must not be one of those to be replaced

    Raises  OutputError: a file to be replaced is not of an earlier export, or was changed since.
    """
    check_output_folder(folder)
    earlier = _listed(folder)
    written = [folder / name for name in dict.fromkeys((*names, MANIFEST, *earlier))]
    keep_apart(Given.named("the weights", weights), written)
    ours = {name for name, known in earlier.items() if _is(folder / name, known)}
    for name in names:
        if os.path.lexists(folder / name) and name not in ours:
            raise OutputError(
                f"{folder / name}: is in the way: {MANIFEST} does not list it, or it was changed "
                "since; move it away or choose another folder"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
            yield Path(scratch)
            if earlier:
                (folder / MANIFEST).unlink()
            for name in ours:
                (folder / name).unlink()
            for name in (*names, MANIFEST):
                os.replace(Path(scratch) / name, folder / name)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _listed(folder: Path) -> dict[str, str]:
    """Hashes of the graphs of an earlier export by file name; empty if there is none."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return {}
    try:
        graphs = json.loads(path.read_text(encoding="utf-8"))["graphs"].values()
        listed = {str(graph["file"]): str(graph["sha256"]) for graph in graphs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        listed = {}
    if not listed or any(Path(name).name != name for name in listed):
        raise OutputError(
            f"{folder}: holds a {MANIFEST} of something else; move it away or choose another folder"
        )
    return listed


def _is(path: Path, known: str) -> bool:
    return path.is_file() and not path.is_symlink() and hash_of(path) == known
