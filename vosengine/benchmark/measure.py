"""Measurement of one cell of the table: a model and variant on a scene with a number of objects."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import NATIVE, MemoryConfig
from ..engine.segmenter import Segmenter
from ..timing import summarise, synchronise
from ..zoo.registry import entry
from ..zoo.weights import RANDOM_TAG
from .roofline import Rates, Roofline, Work, work_of
from .scenes import GivenProposals, Scene
from .stages import clocked
from .variants import OURS, REFERENCE, VARIANTS, Variant

MIB = 2**20
NO_ROOM = "does not fit in memory"
NOT_COMPILED = "torch.compile fails"


@dataclass(frozen=True)
class Plan:
    """Weights, memory size and number of steps of a measurement.

    weights          "random": the paper's configuration, at the frames' own size; or a tag or a
                     file, as in Segmenter, at the input size of the weights
    memory_frames    T: frames in the memory when timing starts
    warm_up, steps   untimed and timed frames, after those that fill the memory
    """

    weights: str = RANDOM_TAG
    memory_frames: int = 5
    warm_up: int = 5
    steps: int = 50


@dataclass
class Cell:
    """Results of one variant.

    fault         None, or the reason why there are no results
    cold_start_s  from the construction of the Segmenter to the first mask
    milliseconds  of every timed step
    stages        share of each stage, 0..1, from further steps with every stage timed; empty for a
                  compiled variant
    device_mib    peak memory allocated by torch on a GPU; None on a CPU
    host_mib      peak resident memory of the process since its start
    differs       share of pixels whose label differs from the reference variant; None for itself
    iou           of the labels with those of the reference, mean over objects and frames
    """

    variant: str
    objects: int
    size: tuple[int, int]
    precision: str = ""
    fault: str | None = None
    cold_start_s: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    device_mib: float | None = None
    host_mib: float = 0.0
    differs: float | None = None
    iou: float | None = None
    labels: list[NDArray[np.uint8]] = field(default_factory=list, repr=False)

    def as_json(self) -> dict[str, Any]:
        """Return all but the labels and the single times, with percentiles of the times."""
        content = asdict(replace(self, labels=[], milliseconds=[]))
        del content["labels"], content["milliseconds"]
        return {**content, **summarise(self.milliseconds)}


@dataclass(frozen=True)
class Point:
    """All variants at one size and number of objects; `roofline` may be None."""

    cells: list[Cell]
    roofline: Roofline | None

    def as_json(self) -> dict[str, Any]:
        first = self.cells[0]
        return {
            "objects": first.objects,
            "size": list(first.size),
            "cells": [cell.as_json() for cell in self.cells],
            "roofline": None if self.roofline is None else asdict(self.roofline),
        }


def begin(
    model: str, variant: Variant, objects: int, scene: Scene, device: torch.device, plan: Plan
) -> Segmenter:
    """Return a new Segmenter for that variant, with a capacity of exactly `objects` objects."""
    options: dict[str, Any] = {}
    random = plan.weights == RANDOM_TAG
    config = entry(model).config()
    if hasattr(config, "memory"):  # full at T frames
        options["memory"] = MemoryConfig("all", max_frames=max(2, plan.memory_frames))
    if random:
        options["config"] = config
        if not isinstance(config.size, tuple):
            options["size"] = NATIVE
    else:
        options["weights"] = plan.weights
    if entry(model).build.needs_proposals:
        options["proposals"] = GivenProposals(scene.prompt(objects), device)
    segmenter = Segmenter(
        model,
        device=str(device),
        precision=variant.precision,
        engine=variant.engine,
        max_objects=objects,
        **options,
    )
    variant.prepare(segmenter)
    return segmenter


def stream(segmenter: Segmenter, scene: Scene, objects: int) -> Iterator[Callable[[], Any]]:
    """Yield an endless sequence of steps to call; the first one passes the prompt."""
    index = 0
    while True:
        prompt = scene.prompt(objects) if index == 0 and segmenter.method.takes_mask else None
        yield partial(segmenter.step, scene.frame(index), prompt)
        index += 1


class Runner:
    """One warmed-up variant: its memory is full, and every shape has occurred."""

    def __init__(
        self,
        cell: Cell,
        model: str,
        variant: Variant,
        scene: Scene,
        device: torch.device,
        plan: Plan,
    ) -> None:
        self.cell, self.variant, self.device = cell, variant, device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        with variant.running():
            self.segmenter = begin(model, variant, cell.objects, scene, device, plan)
            self._steps = stream(self.segmenter, scene, cell.objects)
            answer = None
            while answer is None:
                answer = next(self._steps)()
            answer.numpy()
            cell.cold_start_s = round(time.perf_counter() - start, 3)
            for _ in range(plan.memory_frames - 1 + plan.warm_up):
                next(self._steps)()
        cell.precision = self.segmenter.precision.name

    def step(self) -> None:
        """Time one step, until its labels are on the host."""
        step = next(self._steps)
        with self.variant.running():
            synchronise(self.device)
            start = time.perf_counter()
            labels = step().numpy()
            self.cell.milliseconds.append(1e3 * (time.perf_counter() - start))
        self.cell.labels.append(labels)

    def find_stages(self, steps: int) -> None:
        """Measure the shares of the stages and the peak memory so far."""
        if self.device.type == "cuda":
            held = torch.cuda.max_memory_allocated(self.device)
            self.cell.device_mib = round(held / MIB, 1)
        self.cell.host_mib = round(peak_host_bytes() / MIB, 1)
        if self.variant.compiled:
            return  # spans would break the compiled graph
        with self.variant.running(), clocked(self.segmenter) as clock:
            for _ in range(steps):
                next(self._steps)()
        self.cell.stages = {name: round(share, 4) for name, share in clock.shares().items()}

    def find_work(self) -> Work:
        with self.variant.running():
            return work_of(self.segmenter, next(self._steps))


def measure_point(
    model: str,
    objects: int,
    scene: Scene,
    device: torch.device,
    plan: Plan,
    rates: Rates,
    variants: Iterable[Variant] = VARIANTS,
) -> Point:
    """Measure every variant on the same frames; timed steps are interleaved, so that noise affects
    all alike.

    Out of memory does not raise: it is the `fault` of that cell, and the others continue.
    """
    cells: list[Cell] = []
    runners: list[Runner] = []
    for variant in variants:
        cell = Cell(variant.name, objects, scene.size, fault=variant.unsupported(model, device))
        cells.append(cell)
        if cell.fault is None:
            with _faults(cell):
                runners.append(Runner(cell, model, variant, scene, device, plan))
    for _ in range(plan.steps):
        runners = [runner for runner in runners if runner.cell.fault is None]
        for runner in runners:
            with _faults(runner.cell):
                runner.step()
    for runner in runners:
        with _faults(runner.cell):
            runner.find_stages(min(plan.steps, 3))
    compare(cells)
    return Point(cells, _roofline_of(runners, rates))


def _roofline_of(runners: Sequence[Runner], rates: Rates) -> Roofline | None:
    """Return the bound for `ours`, from the work of the reference variant; None if either did not
    run."""
    named = {runner.variant.name: runner for runner in runners if runner.cell.fault is None}
    if REFERENCE not in named or OURS not in named:
        return None
    return rates.roofline(named[REFERENCE].find_work(), named[OURS].segmenter.dtype)


@contextmanager
def _faults(cell: Cell) -> Iterator[None]:
    """Record out of memory and failures of torch.compile or its compiler as the cell's fault."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        cell.fault = NO_ROOM
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed  # takes seconds to load

        if isinstance(error, BackendCompilerFailed):
            cell.fault = NOT_COMPILED
        elif "can't allocate memory" in str(error):  # torch's message on a CPU
            cell.fault = NO_ROOM
        else:
            raise


def compare(cells: Sequence[Cell]) -> None:
    """Compare the labels of every variant with those of the reference variant, in place."""
    truth = next((c for c in cells if c.variant == REFERENCE and c.fault is None), None)
    for cell in cells:
        if truth is None or cell is truth or cell.fault is not None or not cell.labels:
            continue
        pairs = list(zip(cell.labels, truth.labels, strict=True))
        cell.differs = float(np.mean([np.mean(a != b) for a, b in pairs]))
        cell.iou = float(np.mean([_iou(a, b) for a, b in pairs]))


def _iou(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    ids = np.union1d(np.unique(found), np.unique(truth))
    shared = [
        np.count_nonzero((found == i) & (truth == i))
        / np.count_nonzero((found == i) | (truth == i))
        for i in ids[ids > 0]
    ]
    return float(np.mean(shared)) if shared else 1.0


def peak_host_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
