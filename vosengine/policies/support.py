"""GIEL's frame selection: which frames are stored, and which support the next one."""

from __future__ import annotations

import numpy as np

PROMPTED = 2  # maximum number of later prompted frames kept, the newest (ours)


def choose_support(
    stored: list[int], now: int, size: int, *, literal: bool = False, prompted: tuple[int, ...] = ()
) -> list[int]:
    """The stored frames that support frame `now`, ascending (section 3.4).

    With up to `size` stored frames: all. Otherwise the first, the previous, and the centres of
    equal segments of the range between them, as in EGMN's evaluation. A centre that is not stored
    is replaced by the nearest stored frame. Prompted frames replace centres (ours).

    stored    indices of the stored frames, ascending, counted from the first annotated one
    now       index of the frame to be segmented
    size      maximum number of supporting frames
    literal   the paper's wording: the first, and the centres of equal segments of all others
    prompted  later frames with a mask from the caller
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
        remaining = (frame for frame in stored if frame not in chosen)
        chosen.add(min(remaining, key=lambda frame: (abs(frame - centre), frame)))
    return sorted(chosen)


class SupportPlan:
    """Assignment of frames to the rows of the store, and to the places that are read.

    Kept are the first frame, the last, every `every`-th, and the newest prompted ones; `every`
    doubles when the store is full. The first frame is always kept and always has place 0.

    stored_frames  number of rows of the store
    support        number of places
    literal        as in `choose_support`
    """

    def __init__(self, stored_frames: int, support: int, *, literal: bool) -> None:
        self.stored_frames = stored_frames
        self.support = support
        self.literal = literal
        self.clear()

    def clear(self) -> None:
        """Reset to the state before the first frame."""
        self.frame_count = 0  # since the first annotated frame
        self.every = 1
        self.rows: dict[int, int] = {}  # stored frame -> row of the store
        self.prompted: tuple[int, ...] = ()
        self.places: list[tuple[int, int]] = []  # (frame, number of encoded instances) by place

    def add(self, prompted: bool) -> int:
        """Assign a row to the next frame and return it; prompted: it has a mask from the caller.

        May drop other frames, and updates the places for the frame after it; a place with a new
        frame has 0 encoded instances.
        """
        now = self.frame_count
        room = min(PROMPTED, self.support - 3)  # besides the first, the last and one centre
        if prompted and now and room:
            self.prompted = (*self.prompted, now)[-room:]
        self._make_room()
        row = next(row for row in range(self.stored_frames) if row not in self.rows.values())
        self.rows[now] = row
        self.frame_count = now + 1
        self._take_places()
        return row

    def encode_anew(self) -> None:
        """Mark the encoded instances of every place as outdated."""
        self.places = [(frame, 0) for frame, _ in self.places]

    def forget(self, slot: int, last: int) -> np.ndarray | None:
        """Remove an object; the object of slot `last` takes its slot.

        Returns  lookup table uint8 [256] for the labels (1 + slot) of stored frames, which maps the
                 object to background; None if it was the only object: the plan is cleared
        """
        if last == 0:
            self.clear()
            return None
        self.encode_anew()
        table = np.arange(256, dtype=np.uint8)
        table[1 + last] = 1 + slot
        table[1 + slot] = 0
        return table

    def _make_room(self) -> None:
        """Drop the previous frame unless it is kept by `every`; double `every` for a full store."""
        pinned = {0, *self.prompted}
        while True:
            kept = {t: row for t, row in self.rows.items() if t % self.every == 0 or t in pinned}
            if len(kept) < self.stored_frames:
                self.rows = kept
                return
            self.every *= 2

    def _take_places(self) -> None:
        """Assign the frames that support the next one to places; frames that stay keep theirs."""
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
