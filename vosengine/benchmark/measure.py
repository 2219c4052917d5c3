"""One cell of the table: a model, run one way, on one scene with some objects."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import MatchingConfig, ModelConfig, TargetAwareConfig
from ..registry import entry
from ..segmenter import Segmenter
from ..timing import summarise, synchronise
from .scenes import GivenProposals, Scene
from .stages import clocked
from .ways import REFERENCE, WAYS, Way

MIB = 2**20
NO_ROOM = "does not fit in memory"
Matching = STMConfig | MUNetConfig | GIELConfig | DMNAOAConfig  # those with a memory of frames


@dataclass(frozen=True)
class Plan:
    """How long is measured.

    memory_frames  T: what a matching memory holds when the clock starts
    warm_up, steps frames before and under the clock, beside those that fill the memory
    """

    memory_frames: int = 5
    warm_up: int = 5
    steps: int = 50


@dataclass
class Cell:
    """What was measured.

    fault         why there are no numbers; None where there are
    cold_start_s  from the call for a Segmenter to the first mask
    milliseconds  of every step under the clock
    stages        share of each stage, 0..1, from further steps with a clock around every stage
    device_mib, host_mib  the most that was held: on a GPU by torch; by the process since its start
    differs       share of pixels whose label is not that of the reference way; None for itself
    iou           of the labels with the reference's, mean over objects and frames
    """

    way: str
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


def settings_of(model: str, objects: int, plan: Plan) -> ModelConfig:
    """The paper's configuration with the memory full at T frames, and the tracker's room at the
    number of objects that are given."""
    config = entry(model).config()
    if isinstance(config, MatchingConfig):
        memory = replace(config.memory, policy="all", max_frames=max(2, plan.memory_frames))
        return replace(config, memory=memory)
    if isinstance(config, TargetAwareConfig):
        return replace(config, max_tracks=objects)
    return config


def begin(
    model: str, way: Way, objects: int, scene: Scene, device: torch.device, plan: Plan
) -> Segmenter:
    """A Segmenter of random weights at the paper's size, that works at the scene's own."""
    method = entry(model).build
    options: dict[str, Any] = {}
    if method.needs_proposals:
        options["proposals"] = GivenProposals(scene.prompt(objects))
    segmenter = Segmenter(
        model,
        config=settings_of(model, objects, plan),
        device=str(device),
        precision=way.precision,
        engine=way.engine,
        max_objects=objects,
        **options,
    )
    way.prepare(segmenter)
    return segmenter


def stream(segmenter: Segmenter, scene: Scene, objects: int) -> Iterator[Callable[[], Any]]:
    """Steps without end, to be called one by one."""
    index = 0
    while True:
        takes = index == 0 and segmenter.method.takes_mask
        prompt = scene.prompt(objects) if takes else None
        frame = torch.from_numpy(np.ascontiguousarray(scene.frame(index)))
        yield lambda frame=frame, prompt=prompt: segmenter.step(frame, prompt)
        index += 1


class Runner:
    """One way of running, warm: its memory is full, and every shape has been seen."""

    def __init__(
        self, cell: Cell, model: str, way: Way, scene: Scene, device: torch.device, plan: Plan
    ) -> None:
        self.cell, self.way, self.device = cell, way, device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        with way.running():
            self.segmenter = begin(model, way, cell.objects, scene, device, plan)
            self._steps = stream(self.segmenter, scene, cell.objects)
            answer = None
            while answer is None:
                answer = next(self._steps)()
            answer.numpy()
            cell.cold_start_s = round(time.perf_counter() - start, 3)
            fill = plan.memory_frames if isinstance(settings_of(model, 1, plan), Matching) else 0
            for _ in range(fill + plan.warm_up):
                next(self._steps)()
        cell.precision = str(self.segmenter.dtype).removeprefix("torch.")
        if device.type == "cuda":
            cell.device_mib = round(torch.cuda.max_memory_allocated(device) / MIB, 1)
        cell.host_mib = round(_peak_host_bytes() / MIB, 1)

    def step(self) -> None:
        """One step under the clock, until its labels are on the host."""
        step = next(self._steps)
        with self.way.running():
            synchronise(self.device)
            start = time.perf_counter()
            labels = step().numpy()
            self.cell.milliseconds.append(1e3 * (time.perf_counter() - start))
        self.cell.labels.append(labels)

    def find_stages(self, steps: int) -> None:
        with self.way.running(), clocked(self.segmenter) as clock:
            for _ in range(steps):
                next(self._steps)()
        self.cell.stages = {name: round(share, 4) for name, share in clock.shares().items()}


def measure_ways(
    model: str,
    objects: int,
    scene: Scene,
    device: torch.device,
    plan: Plan,
    ways: Iterable[Way] = WAYS,
    report: Callable[[str], None] = lambda way: None,
) -> list[Cell]:
    """A cell for every way, on the same frames; under the clock they take turns, step by step, so
    that noise meets all alike.

    Does not raise for want of memory: the cell says so, and the others go on.
    """
    cells, runners = [], []
    for way in ways:
        report(way.name)
        cell = Cell(way.name, objects, scene.size, fault=way.objection(model, device))
        cells.append(cell)
        if cell.fault is None:
            with _short_of_memory(cell):
                runners.append(Runner(cell, model, way, scene, device, plan))
    for _ in range(plan.steps):
        for runner in runners:
            with _short_of_memory(runner.cell):
                runner.step()
        runners = [runner for runner in runners if runner.cell.fault is None]
    for runner in runners:
        runner.find_stages(min(plan.steps, 3))
    compare(cells)
    return cells


@contextmanager
def _short_of_memory(cell: Cell) -> Iterator[None]:
    """Whatever says that there is not enough memory becomes the cell's fault."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        cell.fault = NO_ROOM
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # what torch says on a CPU
            raise
        cell.fault = NO_ROOM


def compare(cells: Sequence[Cell]) -> None:
    """Hold the labels of every way against those of the reference way, in place."""
    truth = next((c for c in cells if c.way == REFERENCE and c.fault is None), None)
    for cell in cells:
        if truth is None or cell is truth or cell.fault is not None:
            continue
        pairs = list(zip(cell.labels, truth.labels, strict=True))
        cell.differs = float(np.mean([np.mean(a != b) for a, b in pairs]))
        cell.iou = float(np.mean([_iou(a, b) for a, b in pairs]))


def _iou(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    ids = np.union1d(np.unique(found), np.unique(truth))
    shared = [
        np.count_nonzero((found == i) & (truth == i)) / np.count_nonzero((found == i) | (truth == i))
        for i in ids[ids > 0]
    ]
    return float(np.mean(shared)) if shared else 1.0


def _peak_host_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
