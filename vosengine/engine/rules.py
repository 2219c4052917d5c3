"""ProcessBound: objects that cannot be copied, pickled or used after a fork."""

from __future__ import annotations

import os
from typing import NoReturn, SupportsIndex

from ..errors import StateError


class ProcessBound:
    """Base of objects bound to the process that created them; copy and pickle raise StateError."""

    def __init__(self, instead: str) -> None:
        """instead: what to do instead of copying, for the message."""
        self._instead = instead
        self._process = os.getpid()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse copy, deepcopy and pickle, and so passing to another process."""
        name = type(self).__name__
        raise StateError(f"{name}: a stream is neither copied nor pickled; {self._instead}")

    def check_process(self) -> None:
        """Raise StateError in a forked child: threads and the GPU context do not survive a fork,
        and work that needs them would deadlock."""
        if os.getpid() != self._process:
            raise StateError(
                f"{type(self).__name__}: was made in process {self._process} and cannot go on in "
                "its child after a fork; start processes with "
                'multiprocessing.get_context("spawn") and make one in each'
            )
