"""Time of a step by stage, measured through spans."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn

from ..engine.segmenter import Segmenter
from ..kernels.spans import listen
from ..timing import synchronise
from ..zoo.registry import entry

# Span -> stage: ops, steps of the engine, and parts of a method that its paper names.
SPANS = {
    "step": "other",
    "encode": "encode",
    "segment": "segment",
    "remember": "remember",
    "read_memory": "read",
    "decode": "decode",
    "align": "align",
    "align_object": "align",
    "correlate_frames": "align",
    "deform_conv": "align",
    "proposals": "OPG",
    "templates": "OTG",
    "match": "AM",
}


class StageClock:
    """Milliseconds of every stage, exclusive of nested stages.

    The clock synchronises with the device before and after every stage, which slows down a step:
    use the shares, not the sum.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.milliseconds: dict[str, float] = {}
        self._open: list[tuple[str, float, float]] = []  # stage, start, time of nested stages

    def begin(self, name: str, *_: object) -> None:
        """Begin a stage within the one that is open; also a hook of a module."""
        synchronise(self.device)
        self._open.append((name, time.perf_counter(), 0.0))

    def end(self, *_: object) -> None:
        """End the stage that began last; also a hook of a module."""
        synchronise(self.device)
        name, start, parts = self._open.pop()
        taken = 1e3 * (time.perf_counter() - start)
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + taken - parts
        if self._open:
            outer, start, parts = self._open[-1]
            self._open[-1] = outer, start, parts + taken

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def around(self, span: str) -> AbstractContextManager[None]:
        """Return a context manager that times a span as its stage."""
        return self.stage(SPANS[span]) if span in SPANS else nullcontext()

    def shares(self) -> dict[str, float]:
        """Return the share of every stage in the total, 0..1, in descending order."""
        whole = sum(self.milliseconds.values())
        ordered = sorted(self.milliseconds.items(), key=lambda item: -item[1])
        return {name: value / whole for name, value in ordered}


@contextmanager
def clocked(segmenter: Segmenter) -> Iterator[StageClock]:
    """Time every stage of a Segmenter in a `with` block; the rest of `step` counts as "other"."""
    clock = StageClock(segmenter.device)
    with ExitStack() as stack:
        for stage, names in entry(segmenter.model).stages.items():
            for name in names:
                module = getattr(segmenter.method, name, None)
                if isinstance(module, nn.Module):
                    begin = module.register_forward_pre_hook(partial(clock.begin, stage))
                    end = module.register_forward_hook(clock.end, always_call=True)
                    stack.callback(begin.remove)
                    stack.callback(end.remove)
        stack.enter_context(listen(clock.around))
        yield clock
