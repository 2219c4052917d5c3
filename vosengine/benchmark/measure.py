"""One cell of the table: one model and variant, on one scene with some objects."""

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
    """What is timed, and how long.

    weights          "random": the paper's configuration, at the frames' own size; or a tag or a
                     file, as a Segmenter takes them, at the size that belongs to them
    memory_frames    T: what a memory of frames holds when the clock starts
    warm_up, steps   frames before and under the clock, beside those that fill the memory
    """

    weights: str = RANDOM_TAG
    memory_frames: int = 5
    warm_up: int = 5
    steps: int = 50


@dataclass
class Cell:
    """What was measured.

    fault         why there are no numbers; None where there are
    cold_start_s  from the call for a Segmenter to the first mask
    milliseconds  of every step under the clock
    stages        share of each stage, 0..1, from further steps with a clock around every stage;
                  none of a compiled variant
    device_mib    the most that torch held on a GPU from start to end; None on a CPU
    host_mib      the most that the process has held since its start
    differs       share of pixels whose label is not that of the reference variant; None for itself
    iou           of the labels with the reference's, mean over objects and frames
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
        """All but the labels and the single times, with their percentiles."""
        content = asdict(replace(self, labels=[], milliseconds=[]))
        del content["labels"], content["milliseconds"]
        return {**content, **summarise(self.milliseconds)}


@dataclass(frozen=True)
class Point:
    """All variants at one size and number of objects; `roofline` is None where nothing ran."""

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
    """A new Segmenter for that variant, with room for exactly so many objects."""
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
    """Steps without end, to be called one by one; the first frame comes with the prompt."""
    index = 0
    while True:
        prompt = scene.prompt(objects) if index == 0 and segmenter.method.takes_mask else None
        yield partial(segmenter.step, scene.frame(index), prompt)
        index += 1


class Runner:
    """One variant, warm: its memory is full, and every shape has been seen."""

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
        """One step under the clock, until its labels are on the host."""
        step = next(self._steps)
        with self.variant.running():
            synchronise(self.device)
            start = time.perf_counter()
            labels = step().numpy()
            self.cell.milliseconds.append(1e3 * (time.perf_counter() - start))
        self.cell.labels.append(labels)

    def find_stages(self, steps: int) -> None:
        """Where the time goes, and the most memory that was held up to here."""
        if self.device.type == "cuda":
            held = torch.cuda.max_memory_allocated(self.device)
            self.cell.device_mib = round(held / MIB, 1)
        self.cell.host_mib = round(peak_host_bytes() / MIB, 1)
        if self.variant.compiled:
            return  # clocks would cut it into pieces
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
    report: Callable[[str], None] = lambda variant: None,
) -> Point:
    """A cell for every variant, on the same frames. Under the clock they take turns, step by step,
    so that noise affects all alike.

    Does not raise for want of memory: the cell says so, and the others go on.
    """
    cells: list[Cell] = []
    runners: list[Runner] = []
    for variant in variants:
        report(variant.name)
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
    """The bound for `ours`, by the reference variant's work; None if either did not run."""
    named = {runner.variant.name: runner for runner in runners if runner.cell.fault is None}
    if REFERENCE not in named or OURS not in named:
        return None
    return rates.roofline(named[REFERENCE].find_work(), named[OURS].segmenter.dtype)


@contextmanager
def _faults(cell: Cell) -> Iterator[None]:
    """Whatever says that there is not enough memory, or that torch.compile or its C++ compiler
    cannot do it, becomes the cell's fault."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        cell.fault = NO_ROOM
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed  # takes seconds to load

        if isinstance(error, BackendCompilerFailed):
            cell.fault = NOT_COMPILED
        elif "can't allocate memory" in str(error):  # what torch says on a CPU
            cell.fault = NO_ROOM
        else:
            raise


def compare(cells: Sequence[Cell]) -> None:
    """Hold the labels of every variant against those of the reference variant, in place."""
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
