"""Masks that prompt a stream: one file for the first frame, or a folder."""

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
    """Whether `size` is the size at which players show a frame with non-square pixels.

    Players stretch the width or the height. All sizes are (height, width).
    """
    wide, tall = float(frame[1] * pixel_aspect), float(frame[0] / pixel_aspect)
    stretched = frame[0] == size[0] and abs(size[1] - wide) <= 1
    return pixel_aspect != 1 and (stretched or (frame[1] == size[1] and abs(size[0] - tall) <= 1))


@dataclass(frozen=True)
class Prompt:
    """A mask file with at least one object: its size, object ids, and whether it has void."""

    path: Path
    size: Size
    ids: tuple[int, ...]
    void: bool


class Prompts:
    """The user's masks: one file for the first frame, or a folder with masks of some frames.

    The constructor reads every mask once; `match` assigns them to frames; `check` compares their
    size with the first frame's; `of` returns the mask of a frame. Errors in masks are raised before
    the first frame is segmented. Masks without an object are skipped.

    path         a mask, a folder, or None
    rule         how 255 and soft masks are read
    first_masks  for a folder of annotations of every frame: each mask shows only the objects that
                 no earlier one has

    Raises  InputError if there are no masks, none has an object, or one cannot be read.
    """

    def __init__(
        self, path: Path | None, rule: MaskRule = AS_FOUND, *, first_masks: bool = False
    ) -> None:
        self.path = path
        self.matched_by = BY_NAME
        self._single = path is not None and not path.is_dir()
        self._first_masks = first_masks and not self._single
        self._prompts: list[Prompt] = []
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
            self._add(file)
        if not self._prompts:
            raise InputError(f"mask: {path} {self._no_object_text(rule)}")
        if self._single:
            self._by_frame = {0: self._prompts[0]}

    @property
    def first_frame(self) -> int | None:
        """Index of the first frame that has a mask; None if there is none."""
        return min(self._by_frame, default=None)

    @property
    def ids(self) -> tuple[int, ...]:
        """All object ids in the masks of frames before the limit, ascending."""
        return tuple(sorted({i for _, prompt in self._in_order() for i in prompt.ids}))

    def match(
        self, names: Sequence[str] | None, length: int | None, limit: int | None = None
    ) -> None:
        """Assign the masks of a folder to frames, by name or else by number; see `match_frames`.

        names, length  those of the FrameSource
        limit          frames from this index on are not segmented; None: all are

        Raises  InputError, naming the masks that match no frame.
        """
        self._limit = limit
        if self.path is None or self._single:
            return
        stems = [prompt.path.stem for prompt in self._prompts]
        what = f"mask: {self.path}"
        frames, self.matched_by = match_frames(stems, names, length, what)
        self._by_frame = dict(zip(frames, self._prompts, strict=True))
        if self._first_masks:
            self._keep_first()

    def check(self, frame: Size, pixel_aspect: Fraction = Fraction(1)) -> None:
        """Check that masks have the size of the frames, (height, width).

        pixel_aspect  width of a pixel over its height

        Raises  InputError, naming the mask.
        """
        for _, prompt in self._in_order():
            if prompt.size != frame:
                raise InputError(
                    f"mask: {prompt.path} is {prompt.size[0]} x {prompt.size[1]}, the frames are "
                    f"{frame[0]} x {frame[1]} (height x width)"
                    + (
                        ": that is the size at which players show these frames, with pixels of "
                        f"{pixel_aspect.numerator}:{pixel_aspect.denominator}"
                        if is_shown_size(prompt.size, frame, pixel_aspect)
                        else ""
                    )
                    + "; wanted the frame's size: resize the mask with nearest neighbour"
                )

    def check_resumed(self, earlier: dict[str, Any] | None) -> None:
        """Check that a run to resume had its first mask at the same frame; else raise StateError.

        earlier  "mask" of its summary
        """
        first_frame = None if earlier is None else earlier.get("first_frame")
        if first_frame != self.first_frame:
            raise StateError(
                f"mask: the run to be resumed had its first mask at frame {first_frame}, here it "
                f"is {self.first_frame}; give the same masks, or start a new run"
            )

    def check_reached(self, frames: int) -> None:
        """Raise InputError for masks of frames after the end of the source, of `frames` frames."""
        if self._limit is not None:
            return
        late = [str(p.path.name) for index, p in sorted(self._by_frame.items()) if index >= frames]
        if late:
            raise InputError(
                f"mask: {len(late)} belong to no frame: {listed(late)}; the source ended after "
                f"{frames} frames"
            )

    def of(self, frame: SourceFrame) -> np.ndarray | None:
        """The mask of a frame, uint8 [H, W]; None if it has none."""
        prompt = self._by_frame.get(frame.index)
        if prompt is None:
            return None
        labels = self._masks.read(prompt.path).labels
        if not self._first_masks:
            return labels
        return np.where(np.isin(labels, prompt.ids), labels, 0).astype(np.uint8)

    def facts(self) -> dict[str, Any] | None:
        """The summary's entry of the masks; None if no mask was given."""
        if self.path is None:
            return None
        rule = self._masks.rule
        return {
            "path": str(self.path),
            "files": len(self._prompts),
            "without_objects": self.empty,
            "with_void": sum(prompt.void for prompt in self._prompts),
            "threshold": rule.threshold,
            "first_frame": self.first_frame,
            "matched_by": None if self._single else self.matched_by,
        }

    def _in_order(self) -> list[tuple[int, Prompt]]:
        """The masks of frames before the limit."""
        end = self._limit
        return sorted((i, p) for i, p in self._by_frame.items() if end is None or i < end)

    def _keep_first(self) -> None:
        """Keep in every mask only the objects that no earlier mask has."""
        seen: set[int] = set()
        for index, prompt in sorted(self._by_frame.items()):
            new = tuple(i for i in prompt.ids if i not in seen)
            seen.update(new)
            if new:
                self._by_frame[index] = replace(prompt, ids=new)
            else:
                del self._by_frame[index]

    def _add(self, path: Path) -> None:
        mask = self._masks.read(path)
        present = np.flatnonzero(np.bincount(mask.labels.ravel(), minlength=256))
        ids = tuple(int(i) for i in present if i)
        height, width = mask.labels.shape
        if ids:
            self._prompts.append(Prompt(path, (height, width), ids, mask.void is not None))
        else:
            self.empty += 1

    def _no_object_text(self, rule: MaskRule) -> str:
        where = "shows" if self._single else "holds masks that show"
        if rule.threshold is not None:
            return f"{where} nothing as bright as the threshold, {rule.threshold}; lower it"
        return f"{where} no object: all is background or void; wanted ids 1..255 somewhere"
