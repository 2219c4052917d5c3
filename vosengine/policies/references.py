"""First frames of DMN-AOA's objects: rows of a store, shared by objects of the same frame."""

from __future__ import annotations

from collections.abc import Iterable


class FirstFrames:
    """The store row of each slot's first frame.

    least  first row available; rows are used from there without gaps
    rows   row by slot
    """

    def __init__(self, least: int, rows: Iterable[int] = ()) -> None:
        self.least = least
        self.rows = list(rows)

    @property
    def end(self) -> int:
        """The first unused row."""
        return 1 + max(self.rows, default=self.least - 1)

    def begin(self, objects: int) -> int | None:
        """Grow to `objects` objects, the new ones sharing one row; returns it, or None if there are
        no new objects."""
        row, fresh = self.end, objects - len(self.rows)
        self.rows += [row] * fresh
        return row if fresh > 0 else None

    def forget(self, slot: int) -> tuple[int, int] | None:
        """Remove an object; the last one takes its slot.

        If its row is no longer referenced, the last row moves there. Returns that move as
        (from, to), or None.
        """
        freed, last = self.rows[slot], self.end - 1
        self.rows[slot] = self.rows[-1]
        self.rows.pop()
        if freed in self.rows or freed == last:
            return None
        self.rows = [freed if row == last else row for row in self.rows]
        return last, freed
