"""Which frames GIEL keeps, and which of them the next one is read from: by their numbers alone."""

from __future__ import annotations

import numpy as np

PROMPTED = 2  # later frames with a mask from the caller that are kept for good, the newest [O]


def choose_support(
    stored: list[int], now: int, size: int, *, literal: bool = False, prompted: tuple[int, ...] = ()
) -> list[int]:
    """Which of the stored frames support frame `now`, ascending (section 3.4).

    Up to `size` frames: all. Of more: the first, the one before, and the centres of equal segments
    of those between them, as EGMN's evaluation samples them; `literal`: the first, and the centres
    of equal segments of all the others. A centre that is not stored any more is the nearest that
    is. Frames that the caller has corrected take the place of centres [O].

    stored    indices of the stored frames, ascending, counted from the first annotated one
    prompted  those with a mask from the caller, beside the first
    """
    if len(stored) <= size:
        return list(stored)
    chosen = {stored[0]}
    if not literal:
        chosen.add(stored[-1])
    chosen |= set(prompted)
    end = now if literal else now - 1
    count = size - len(chosen)
    for segment in range(count):
        centre = 1 + int((segment + 0.5) * (end - 1) / count)
        left = (frame for frame in stored if frame not in chosen)
        chosen.add(min(left, key=lambda frame: (abs(frame - centre), frame)))
    return sorted(chosen)


class SupportPlan:
    """The store's rows, and the places that the next frame is read from.

    Every `every`-th frame is kept, the first and the last, and the newest that the caller has
    corrected; when the store is full, `every` doubles. The first frame never goes, and always has
    place 0.

    stored_frames  rows of the store
    support        places
    literal        sampling, as in `choose_support`
    """

    def __init__(self, stored_frames: int, support: int, *, literal: bool) -> None:
        self.stored_frames = stored_frames
        self.support = support
        self.literal = literal
        self.clear()

    def clear(self) -> None:
        """Nothing was seen yet."""
        self.frame_count = 0  # since the first annotated frame
        self.every = 1
        self.rows: dict[int, int] = {}  # stored frame -> row of the store
        self.prompted: tuple[int, ...] = ()
        self.places: list[tuple[int, int]] = []  # (frame, instances encoded) in every place

    def add(self, prompted: bool) -> int:
        """Take in the next frame: the row that it goes to. Others may go, and the places are those
        of the frame after it; in a place that another frame has come to, no instances are encoded.
        """
        now = self.frame_count
        room = min(PROMPTED, self.support - 3)  # beside the first, the last and a centre
        if prompted and now and room:
            self.prompted = (*self.prompted, now)[-room:]
        self._make_room()
        row = next(row for row in range(self.stored_frames) if row not in self.rows.values())
        self.rows[now] = row
        self.frame_count = now + 1
        self._take_places()
        return row

    def encode_anew(self) -> None:
        """The instances of every place are out of date."""
        self.places = [(frame, 0) for frame, _ in self.places]

    def forget(self, slot: int, last: int) -> np.ndarray | None:
        """Drop an object; that of the last slot takes its place. Returns what the labels (1 + slot)
        of stored frames become, uint8 [256]: the object is background. None where it was the only
        one: all frames go, and the next mask begins anew."""
        if last == 0:
            self.clear()
            return None
        self.encode_anew()
        table = np.arange(256, dtype=np.uint8)
        table[1 + last] = 1 + slot
        table[1 + slot] = 0
        return table

    def _make_room(self) -> None:
        """Drop the frame before unless its turn to be kept has come; thin out a full store."""
        pinned = {0, *self.prompted}
        while True:
            kept = {t: row for t, row in self.rows.items() if t % self.every == 0 or t in pinned}
            if len(kept) < self.stored_frames:
                self.rows = kept
                return
            self.every *= 2

    def _take_places(self) -> None:
        """Put the frames that support the next one in place; what stays is not moved."""
        chosen = choose_support(
            sorted(self.rows),
            self.frame_count,
            self.support,
            literal=self.literal,
            prompted=self.prompted,
        )
        held = [frame for frame, _ in self.places]
        fresh = iter([frame for frame in chosen if frame not in held])
        self.places = [
            (frame, encoded) if frame in chosen else (next(fresh), 0)
            for frame, encoded in self.places
        ]
        self.places += [(frame, 0) for frame in fresh]
