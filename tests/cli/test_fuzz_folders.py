"""`vosengine run` in random folders: no file is lost, and successful runs have the right frames.

`make fuzz` tries many more of them than the suite does: FUZZ is how many.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from stub_stream import stub_stream

from vosengine.cli import app as cli
from vosengine.commands import run as command
from vosengine.files import Fingerprint
from vosengine.video import VideoWriter, encode_labels, read_labels
from vosengine.video.images import is_image
from vosengine.video.names import in_order

COUNT = int(os.environ.get("FUZZ", "20"))
SIZE = 16, 24
FOLDERS = "a", "b"
STEMS = (
    "0",
    "00000",
    "00001",
    "2",
    "10",
    "0.25",
    "überall",
    "[x]",
    "a b",
    "shot-1",
    "-n",
    "\udce9",
)
NAMES = (
    *("overlay.mp4", "overlay.part.mp4", "summary.json", "journal.jsonl", "state.safetensors"),
    *("masks.json", ".00000.png.part", ".hidden.png", "x.txt", "clip.mp4", "n" * 251 + ".png"),
    *(f"{stem}.{extension}" for stem in STEMS for extension in ("png", "jpg", "PNG")),
)
KINDS = ("frame", "frame", "frame", "small", "mask", "video", "text", "list", "empty")


@cache
def content(kind: str) -> bytes:
    """Content of a file of that kind; frames are PNG whatever their extension."""
    if kind in ("frame", "small"):
        size = SIZE if kind == "frame" else (8, 8)
        data = io.BytesIO()
        Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(data, format="PNG")
        return data.getvalue()
    if kind == "mask":
        return encode_labels(np.ones(SIZE, np.uint8))
    if kind == "video":
        with tempfile.TemporaryDirectory() as folder:
            with VideoWriter(Path(folder) / "v.mp4", 25) as writer:
                for _ in range(3):
                    writer.write(np.full((*SIZE, 3), 90, np.uint8))
            return (Path(folder) / "v.mp4").read_bytes()
    return {"text": b"mine", "list": b"[]", "empty": b""}[kind]


places = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES))


@dataclass(frozen=True)
class Call:
    """A run: paths below the folder, and the other arguments."""

    source: str
    out: str
    mask: str | None
    arguments: tuple[str, ...]


targets = st.one_of(
    st.sampled_from(("a", "b", "a/../b", "way", "new", "a/new", "a/*.png", "a/*")),
    places.map("/".join),
)
outs = st.sampled_from(("a", "b", "b/../a", "way", "new", "new", "a/new"))
arguments = st.lists(
    st.sampled_from(("--resume", "--no-overlay", "--limit=2", "--fps=0", "--checkpoint=1")),
    max_size=2,
    unique=True,
).map(tuple)
calls = st.builds(Call, targets, outs, st.none() | targets, arguments)
files = st.dictionaries(places, st.sampled_from(KINDS), max_size=8)
links = st.lists(st.tuples(places, places, st.booleans()), max_size=2)
changes = st.lists(places, max_size=2)


def build(root: Path, files: dict[tuple[str, str], str], links: list[tuple]) -> None:
    for folder in FOLDERS:
        (root / folder).mkdir()
    (root / "way").symlink_to(root / "b")
    for (folder, name), kind in files.items():
        (root / folder / name).write_bytes(content(kind))
    for here, there, hard in links:
        one, other = root.joinpath(*here), root.joinpath(*there)
        with suppress(OSError):  # where one is there already, or the other is not
            os.link(other, one) if hard else one.symlink_to(other)


def snapshot(root: Path) -> dict[Path, object]:
    contents: dict[Path, object] = {}
    for place, _, names in os.walk(root):
        for name in names:
            path = Path(place, name)
            link = os.readlink(path) if path.is_symlink() else None
            contents[path] = (link, Fingerprint.read(path) if path.is_file() else None)
    return contents


def owned(root: Path) -> set[Path]:
    """Files that an earlier run lists and that are unchanged: only these may be replaced."""
    paths = set()
    for path in (*root.rglob("summary.json"), *root.rglob("journal.jsonl")):
        with suppress(ValueError, TypeError, KeyError, OSError, AttributeError):
            listed = json.loads(path.read_text())["files"]
            paths.add(path)
            for name, known in listed.items():
                file = path.parent / name
                wanted = Fingerprint(known["bytes"], known["sha256"])
                if file.is_file() and not file.is_symlink() and Fingerprint.read(file) == wanted:
                    paths.add(file)
    return paths


def vosengine(root: Path, call: Call) -> tuple[int, str]:
    """Run the command in this process; returns its exit code and error output."""
    line = ["vosengine", "run", str(root / call.source), "--out", str(root / call.out)]
    line += ["--model", "stm", *call.arguments]
    if call.mask is not None:
        line += ["--mask", str(root / call.mask)]
    output = io.StringIO()
    with (
        mock.patch.object(command, "make_stream", stub_stream),
        mock.patch.object(sys, "argv", line),
        redirect_stderr(output),
        redirect_stdout(io.StringIO()),
    ):
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), output.getvalue().strip()
    return 0, output.getvalue().strip()


def expected(root: Path, call: Call) -> list[str]:
    """Names of the frames, in order."""
    source = root / call.source
    if source.is_dir():
        images = [p for p in source.iterdir() if is_image(p)]
    elif source.exists():
        images = [source] if is_image(source) else []
    else:
        images = [p for p in source.parent.glob(source.name) if is_image(p)]
    names = [p.stem for p in in_order(images)]
    if not names:  # a video, or an image by another name
        still = source.is_file() and source.read_bytes().startswith(b"\x89PNG")
        names = [f"{i:05d}" for i in range(1 if still else 3)]
    return names[:2] if "--limit=2" in call.arguments else names


def check(root: Path, call: Call) -> None:
    before, free, wanted = snapshot(root), owned(root), expected(root, call)
    code, output = vosengine(root, call)
    after = snapshot(root)
    lost = [p for p, what in before.items() if p not in free and after.get(p) != what]
    assert not lost, (lost, output)
    if code == 0:
        out = root / call.out
        summary = json.loads((out / "summary.json").read_text())
        assert summary["complete"] and summary["frames"] == wanted
        for index, name in enumerate(wanted):
            assert read_labels(out / f"{name}.png")[0, 0] == 1 + index
        return
    assert code == 1 and output.startswith("error: "), (code, output)
    assert len(output.splitlines()) == 1, output


@settings(
    max_examples=COUNT,
    deadline=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(files, links, st.lists(calls, min_size=1, max_size=3), changes)
def test_nothing_is_lost_in_any_folder(
    files: dict[tuple[str, str], str],
    links: list[tuple],
    runs: list[Call],
    changes: list[tuple[str, str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        build(root, files, links)
        for call in runs:
            check(root, call)
            for place in changes:  # by the caller, between two runs
                path = root.joinpath(*place)
                if path.is_file() and not path.is_symlink():
                    path.write_bytes(b"changed")
