"""Saved sessions on disk: what is refused, and by which error."""

from __future__ import annotations

from pathlib import Path

import pytest

from vosengine.errors import OutputError, StateError
from vosengine.server.store import Saved, Store

NAME = 32 * "a"


def saved() -> Saved:
    lists: list[int] = []
    return Saved(NAME, "stm", "", [], "all", "labels", {}, 3, lists, 3, 0, None)


def test_a_session_comes_back_and_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path / "sessions")
    store.save(saved(), b"stream")
    assert store.list() == [NAME] and store.load(NAME) == (saved(), b"stream")
    store.remove(NAME)
    store.remove(NAME)
    assert store.list() == []
    with pytest.raises(StateError, match="cannot be read"):
        store.load(NAME)


@pytest.mark.parametrize("name", ["", "..", "../" + NAME, NAME + "a", NAME[:-1] + "A"])
def test_only_ids_of_sessions_are_names_of_files(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for call in (store.load, store.remove):
        with pytest.raises(StateError, match="not a valid session id"):
            call(name)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(saved(), b"stream")
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    for damaged in (b"", data[:30], data[:-1], data[:-1] + b"x", b"x" + data[1:]):
        path.write_bytes(damaged)
        with pytest.raises(StateError, match="damaged"):
            store.load(NAME)


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be created .* --state-dir"):
        Store(tmp_path / "file" / "sessions")
