"""Which first frame every object of DMN-AOA has: rows of a store, shared by those that began in
the same frame."""

from __future__ import annotations

from collections.abc import Iterable


class FirstFrames:
    """Per slot, the row of the object's first frame; rows are in use from `least` on, without
    gaps."""

    def __init__(self, least: int, rows: Iterable[int] = ()) -> None:
        self.least = least
        self.rows = list(rows)

    @property
    def end(self) -> int:
        """The first row that is not in use."""
        return 1 + max(self.rows, default=self.least - 1)

    def begin(self, objects: int) -> int | None:
        """There are that many objects now: the row of the frame in which the new ones begin, None
        without any."""
        row, fresh = self.end, objects - len(self.rows)
        self.rows += [row] * fresh
        return row if fresh > 0 else None

    def forget(self, slot: int) -> tuple[int, int] | None:
        """Drop an object; the last one takes its slot. Where nobody has its first frame any more,
        the last row takes that one's place: (from, to)."""
        freed, last = self.rows[slot], self.end - 1
        self.rows[slot] = self.rows[-1]
        self.rows.pop()
        if freed in self.rows or freed == last:
            return None
        self.rows = [freed if row == last else row for row in self.rows]
        return last, freed
