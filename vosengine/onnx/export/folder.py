"""The folder of an export: what may be replaced there, and when."""

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
    """A fresh folder to write the graphs of these names and the manifest to; at the end of the
    block they take the places of an earlier export's. After an error nothing has changed.

    weights  as the export was asked for; where they are a file it must not be in the way

    Raises  OutputError: a file is in the way that no export wrote, or that was changed since.
    """
    check_output_folder(folder)
    earlier = _listed(folder)
    written = [folder / name for name in dict.fromkeys((*names, MANIFEST, *earlier))]
    keep_apart(Given.named("the weights", weights), written)
    ours = {name for name, known in earlier.items() if _is(folder / name, known)}
    for name in names:
        if os.path.lexists(folder / name) and name not in ours:
            raise OutputError(
                f"{folder / name}: is in the way: it would be replaced, but {MANIFEST} does not "
                "list it, or it was changed since; move it away or choose another folder"
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
    """The graphs of an earlier export by name, with their hashes; none without one."""
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
