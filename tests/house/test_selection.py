"""Selection of tests by machine and process (tests/support/selection.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import selection
import torch

from vosengine.kernels import gpu


def case(*marks: str, backend: str = "reference") -> Any:
    return SimpleNamespace(
        get_closest_marker=lambda name: name if name in marks else None,
        callspec=SimpleNamespace(params={"backend": backend}),
    )


@pytest.mark.parametrize(
    ("item", "here", "with_gpu", "interpreting"),
    [
        (case(), None, None, selection.COMPILED),
        (case("gpu"), selection.GPU, None, selection.COMPILED),
        (case("gpu", backend="triton"), selection.GPU, None, selection.COMPILED),
        (case("interpreter"), selection.INTERPRETER, selection.INTERPRETER, None),
        (case(backend="triton"), None, None, None),
    ],
)
def test_what_is_left_out(
    item: Any,
    here: str | None,
    with_gpu: str | None,
    interpreting: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = []
    for there, interpreted in ((False, False), (True, False), (True, True)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(gpu, "INTERPRETED", interpreted)
        missing.append(selection.missing_for(item))
    assert missing == [here, with_gpu, interpreting]


def test_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    items = [case("gpu"), case(), case("interpreter"), case("gpu")]
    config: Any = SimpleNamespace(stash={})
    kept = items[1]
    selection.pytest_collection_modifyitems(config, items)
    assert items == [kept]
    lines: list[str] = []
    selection.pytest_terminal_summary(SimpleNamespace(write_line=lines.append), config)
    assert lines == ["left out: 2 need an NVIDIA GPU; 1 need TRITON_INTERPRET=1"]


def test_files_of_slow_tests_are_there(pytestconfig: pytest.Config) -> None:
    for name in selection.SLOW:
        folder, _, stem = name.rpartition("/")
        assert list((pytestconfig.rootpath / folder).glob(f"{stem}*")), name
