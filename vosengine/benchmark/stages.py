"""Where the time of a step goes: clocks around the parts of an engine, and none inside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..kernels.dispatch import Op
from ..segmenter import Segmenter
from ..timing import synchronise

# Stage -> modules of a model, by name. Everything else of a verb is called by the verb.
DECODERS = {"decode": ("decoder",)}
MODULES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "stm": DECODERS,
    "munet": DECODERS,
    "giel": {"decode": ("global_decoder", "instance_decoder", "coarse")},
    "dmn_aoa": {"BFE": ("base",), "MRN": ("refine",)},
    "target_aware": {"D-Net": ("dnet",), "ReID": ("reid",), "T-Net": ("backbone", "refiner")},
    "imcnet": {},
}
# Methods of a model that are a stage of its paper.
METHODS: Mapping[str, Mapping[str, str]] = {
    "dmn_aoa": {"templates": "OTG", "match": "AM"},
    "imcnet": {"align": "align", "decode": "decode"},
}
OPS = {
    "read_memory": "read",
    "align_object": "align",
    "correlate_frames": "align",
    "deform_conv": "align",
}


class StageClock:
    """Milliseconds of every stage, each without what is timed within it.

    With the clock waiting for the device before and after every stage, a step is slower than
    without it: its shares count, not its sum.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.milliseconds: dict[str, float] = {}
        self._within: list[float] = []  # of every stage that is open: what its parts have taken

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        synchronise(self.device)
        self._within.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            synchronise(self.device)
            taken = 1e3 * (time.perf_counter() - start)
            own = taken - self._within.pop()
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + own
            if self._within:
                self._within[-1] += taken

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, timed as that stage."""

        def timed_call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return call(*args, **kwargs)

        return timed_call

    def shares(self) -> dict[str, float]:
        """Of the time that was seen, the greatest first."""
        whole = sum(self.milliseconds.values())
        ordered = sorted(self.milliseconds.items(), key=lambda item: -item[1])
        return {name: value / whole for name, value in ordered}


@contextmanager
def clocked(segmenter: Segmenter) -> Iterator[StageClock]:
    """A clock on every stage of a Segmenter, within the block; `step` itself counts as "other"."""
    clock = StageClock(segmenter.device)
    method: Any = segmenter.method
    with ExitStack() as stack:

        def replace(owner: Any, name: str, stage: str) -> None:
            """Put the timed call before the class's own, as an attribute of the instance."""
            before = vars(owner).get(name)
            object.__setattr__(owner, name, clock.around(stage, getattr(owner, name)))
            if before is None:
                stack.callback(object.__delattr__, owner, name)
            else:
                stack.callback(object.__setattr__, owner, name, before)

        stack.callback(setattr, segmenter, "_pieces", segmenter._pieces)
        segmenter._pieces = None  # a graph has no parts to be timed
        replace(segmenter, "step", "other")
        for verb in ("encode", "segment", "remember"):
            replace(method, verb, verb)
        for name, stage in METHODS.get(segmenter.model, {}).items():
            replace(method, name, stage)
        for stage, names in MODULES.get(segmenter.model, {}).items():
            for name in names:
                module = getattr(method, name, None)
                if isinstance(module, nn.Module):
                    replace(module, "forward", stage)
        if segmenter.proposals is not None:
            source = segmenter.proposals
            segmenter.proposals = _TimedSource(source, clock)
            stack.callback(setattr, segmenter, "proposals", source)
        call = Op.__call__
        Op.__call__ = _op_call(call, clock)  # type: ignore[method-assign]
        stack.callback(setattr, Op, "__call__", call)
        yield clock


def _op_call(call: Callable[..., Any], clock: StageClock) -> Callable[..., Any]:
    def timed_call(self: Op, *args: Any, **kwargs: Any) -> Any:
        if self.name not in OPS:
            return call(self, *args, **kwargs)
        with clock.stage(OPS[self.name]):
            return call(self, *args, **kwargs)

    return timed_call


class _TimedSource:
    """A source of proposals, timed as DMN-AOA's OPG."""

    def __init__(self, source: Any, clock: StageClock) -> None:
        self._source, self._clock = source, clock

    def __call__(self, frame: Any, frame_index: int) -> Any:
        with self._clock.stage("OPG"):
            return self._source(frame, frame_index)
