"""What a stream takes next, whichever engine it runs on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NoReturn, SupportsIndex

from ..errors import InputError, StateError
from ..types import A, Geometry, Prompt, Size


@dataclass(frozen=True)
class StreamRules:
    """What a model asks of its frames and masks."""

    model: str
    needs_mask: bool
    takes_mask: bool

    def check(
        self, size: Size, geometry: Geometry | None, prompt: Prompt[A] | None, *, flushed: bool
    ) -> Prompt[A] | None:
        """Raise InputError unless a frame of that size, with a mask or without, may come next.

        geometry  of the stream so far; None where this is its first frame
        returns   the prompt; None where it shows no object, and so says nothing
        """
        if flushed:
            raise InputError("step: the stream was flushed; call reset() to begin another")
        if geometry is not None and size != geometry.frame:
            raise InputError(
                f"frame: the stream is {geometry.frame[0]} x {geometry.frame[1]}, given "
                f"{size[0]} x {size[1]}; resize the frame, or call reset() to begin another stream"
            )
        if prompt is not None and not self.takes_mask:
            raise InputError(
                f"mask: {self.model} finds the foreground by itself and takes none; leave it out"
            )
        shown = prompt if prompt is not None and prompt.ids else None
        if geometry is None and self.needs_mask and shown is None:
            empty = "" if prompt is None else "; this one shows no object, only id 0"
            raise InputError(
                f"mask: {self.model} needs one with the first frame, to say what to follow{empty}"
            )
        return shown


class StaysHere:
    """A stream that lives in the process that made it, and of which there is one."""

    def __init__(self, instead: str) -> None:
        """instead: what to do where a copy is wanted."""
        self._instead = instead
        self._process = os.getpid()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """copy, deepcopy, pickle, and with them arguments of another process, come here."""
        name = type(self).__name__
        raise StateError(f"{name}: a stream is neither copied nor pickled; {self._instead}")

    def check_process(self) -> None:
        """Raise StateError in the child of a fork: threads and a GPU's context stay behind in the
        parent, and work that needs them would wait for ever."""
        if os.getpid() != self._process:
            raise StateError(
                f"{type(self).__name__}: was made in process {self._process} and cannot go on in "
                "its child after a fork; start processes with "
                'multiprocessing.get_context("spawn") and make one in each'
            )
