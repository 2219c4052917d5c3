"""The masks that prompt a stream: one file for the first frame, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, StateError
from ..naming import BY_NAME, listed, match_frames
from ..types import Size
from ..video import AS_FOUND, MaskRule, MaskSequence, SourceFrame, mask_files


def is_shown_size(size: Size, frame: Size, pixel_aspect: Fraction) -> bool:
    """Whether players show a frame of that size so, where its pixels are not square: they stretch
    the width or the height. All sizes are (height, width)."""
    wide, tall = float(frame[1] * pixel_aspect), float(frame[0] / pixel_aspect)
    stretched = frame[0] == size[0] and abs(size[1] - wide) <= 1
    return pixel_aspect != 1 and (stretched or (frame[1] == size[1] and abs(size[0] - tall) <= 1))


@dataclass(frozen=True)
class Prompt:
    """A mask on disk that shows an object: its size, its ids, and whether it has void."""

    path: Path
    size: Size
    ids: tuple[int, ...]
    void: bool


class Prompts:
    """The masks a caller gave: one file for the first frame, or a folder with one for some frames.

    In order: made, every mask is read once; `match` says whose they are; `check` holds them
    against the first frame; `of` gives them out. What is wrong with a mask is said by one of the
    first three, before a frame is segmented. Masks without an object say nothing and are skipped.

    path  a mask, a folder, or None
    rule  what 255 is, and what a soft mask shows
    first_masks  of a folder, a mask shows the objects that no earlier one has shown, and no others:
          for annotations of whole videos

    Raises  InputError: no masks there, none that shows an object, or one that cannot be read.
    """

    def __init__(
        self, path: Path | None, rule: MaskRule = AS_FOUND, *, first_masks: bool = False
    ) -> None:
        self.path = path
        self.matched_by = BY_NAME
        self._single = path is not None and not path.is_dir()
        self._first_masks = first_masks and not self._single
        self._found: list[Prompt] = []
        self._by_frame: dict[int, Prompt] = {}
        self._limit: int | None = None
        self.empty = 0
        if path is None:
            return
        files = [path] if self._single else mask_files(path)
        if not files:
            raise InputError(
                f"mask: the folder {path} holds no .png; wanted one per prompted frame"
            )
        self._masks = MaskSequence(files, rule)
        for file in files:
            self._survey(file)
        if not self._found:
            raise InputError(f"mask: {path} {self._shows_nothing(rule)}")
        if self._single:
            self._by_frame = {0: self._found[0]}

    @property
    def first_frame(self) -> int | None:
        """The index of the first frame that has a mask; None without any."""
        return min(self._by_frame, default=None)

    @property
    def ids(self) -> tuple[int, ...]:
        """Every object id that the masks of frames before the limit show, ascending."""
        return tuple(sorted({i for _, prompt in self._in_order() for i in prompt.ids}))

    def match(
        self, names: Sequence[str] | None, length: int | None, limit: int | None = None
    ) -> None:
        """Say whose the masks of a folder are, by name or else by number (see `match_frames`).

        names, length  as a FrameSource has them
        limit          frames from that index on are not segmented; None: all are

        Raises  InputError, naming the masks that are no frame's.
        """
        self._limit = limit
        if self.path is None or self._single:
            return
        stems = [prompt.path.stem for prompt in self._found]
        what = f"mask: {self.path}"
        frames, self.matched_by = match_frames(stems, names, length, what)
        self._by_frame = dict(zip(frames, self._found, strict=True))
        if self._first_masks:
            self._keep_first()

    def check(self, frame: Size, pixel_aspect: Fraction = Fraction(1)) -> None:
        """Hold the masks against the frames' size (height, width).

        pixel_aspect  of the frames: width of a pixel over its height

        Raises  InputError, naming the mask.
        """
        for _, prompt in self._in_order():
            if prompt.size != frame:
                raise InputError(
                    f"mask: {prompt.path} is {prompt.size[0]} x {prompt.size[1]}, the frames are "
                    f"{frame[0]} x {frame[1]} (height x width)"
                    + (
                        ": that is the size at which players show them, whose pixels are "
                        f"{pixel_aspect.numerator}:{pixel_aspect.denominator}"
                        if is_shown_size(prompt.size, frame, pixel_aspect)
                        else ""
                    )
                    + "; wanted the frame's size, resize the mask by nearest neighbour"
                )

    def check_resumed(self, earlier: dict[str, Any] | None) -> None:
        """Raise StateError where a stopped run, of whose summary `earlier` is the part `mask`,
        began with the mask of another frame."""
        began = None if earlier is None else earlier.get("first_frame")
        if began != self.first_frame:
            raise StateError(
                f"mask: the run to be resumed had its first mask at frame {began}, here it is "
                f"{self.first_frame}; give the same masks, or start a new run"
            )

    def check_reached(self, frames: int) -> None:
        """Raise InputError for masks of frames that never came: `frames` were all there are."""
        if self._limit is not None:
            return
        late = [str(p.path.name) for index, p in sorted(self._by_frame.items()) if index >= frames]
        if late:
            raise InputError(
                f"mask: {len(late)} belong to no frame: {listed(late)}; the source ended after "
                f"{frames} frames"
            )

    def of(self, frame: SourceFrame) -> np.ndarray | None:
        """The mask of a frame, uint8 [H, W]; None where it has none."""
        prompt = self._by_frame.get(frame.index)
        if prompt is None:
            return None
        labels = self._masks.read(prompt.path).labels
        if not self._first_masks:
            return labels
        return np.where(np.isin(labels, prompt.ids), labels, 0).astype(np.uint8)

    def facts(self) -> dict[str, Any] | None:
        """For the summary: what was read how, and the first frame that has a mask. None where no
        mask was given."""
        if self.path is None:
            return None
        rule = self._masks.rule
        return {
            "path": str(self.path),
            "files": len(self._found),
            "without_objects": self.empty,
            "with_void": sum(prompt.void for prompt in self._found),
            "threshold": rule.threshold,
            "first_frame": self.first_frame,
            "matched_by": None if self._single else self.matched_by,
        }

    def _in_order(self) -> list[tuple[int, Prompt]]:
        """The masks of frames before the limit."""
        end = self._limit
        return sorted((i, p) for i, p in self._by_frame.items() if end is None or i < end)

    def _keep_first(self) -> None:
        """Of every mask, only the objects that no earlier one has shown."""
        seen: set[int] = set()
        for index, prompt in sorted(self._by_frame.items()):
            new = tuple(each for each in prompt.ids if each not in seen)
            seen.update(new)
            if new:
                self._by_frame[index] = replace(prompt, ids=new)
            else:
                del self._by_frame[index]

    def _survey(self, path: Path) -> None:
        mask = self._masks.read(path)
        present = np.flatnonzero(np.bincount(mask.labels.ravel(), minlength=256))
        ids = tuple(int(each) for each in present if each)
        height, width = mask.labels.shape
        if ids:
            self._found.append(Prompt(path, (height, width), ids, mask.void is not None))
        else:
            self.empty += 1

    def _shows_nothing(self, rule: MaskRule) -> str:
        where = "shows" if self._single else "holds masks that show"
        if rule.threshold is not None:
            return f"{where} nothing as bright as the threshold, {rule.threshold}; lower it"
        return f"{where} no object: all is background or void; wanted ids 1..255 somewhere"
