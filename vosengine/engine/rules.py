"""What lives in one process, whichever engine it belongs to."""

from __future__ import annotations

import os
from typing import NoReturn, SupportsIndex

from ..errors import StateError


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
