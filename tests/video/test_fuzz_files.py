"""A few damaged files of every kind; `make fuzz` tries ten thousand."""

from __future__ import annotations

import pytest
from fuzz_files import try_many


@pytest.mark.slow
def test_every_damaged_file_is_a_typed_error_or_a_right_answer() -> None:
    lines: list[str] = []
    outcomes = try_many(first=0, count=96, report=lines.append)
    assert not [line for line in lines if line.startswith("seed")]
    assert len({name for name, _ in outcomes}) == 8
    assert sum(count for (_, what), count in outcomes.items() if what == "error") > 48
