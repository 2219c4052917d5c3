"""`vosengine bench`: time the models end to end, in several variants interleaved."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..benchmark import (
    VARIANTS,
    Plan,
    Scene,
    describe,
    draw,
    drawn_scene,
    markdown_of,
    measure_point,
    measure_rates,
    measure_stream,
    measure_streams,
    published_of,
    real_scene,
)
from ..device import choose_device
from ..engine.engine import Engine
from ..errors import ConfigError
from ..files import Given, keep_apart, write_whole
from ..runtime import Precision
from ..timing import synchronise
from ..types import Size
from ..video import prepare_output_folder
from ..zoo.registry import entry
from ..zoo.weights import RANDOM_TAG, load

USUAL = 3  # number of objects when sizes are compared, and in the long stream


@dataclass(frozen=True)
class BenchOptions:
    """Options of `bench`.

    sizes     frame sizes; the first is measured with every number of objects, the others with three
    data      video or image folder whose first frames are resized to `sizes`; None: drawn frames
    frames    length of the long stream; 0: none
    compiled  whether torch.compile is measured, which takes minutes per model
    json, markdown, chart  files to write; rewritten after every point, so an interrupted run leaves
              what it measured
    """

    models: tuple[str, ...]
    device: str = "auto"
    plan: Plan = field(default_factory=Plan)
    sizes: tuple[Size, ...] = ((480, 854), (720, 1280), (1080, 1920))
    objects: tuple[int, ...] = (1, 2, 3, 5, 10)
    frames: int = 1000
    compiled: bool = True
    data: Path | None = None
    json: Path | None = None
    markdown: Path | None = None
    chart: Path | None = None
    command: str = "vosengine bench"

    def quick(self) -> BenchOptions:
        """The same with one size, three objects and few steps; on a CPU also small frames and no
        torch.compile."""
        on_gpu = choose_device(self.device).type == "cuda"
        plan = replace(self.plan, warm_up=1, steps=30 if on_gpu else 3)
        size = (480, 854) if on_gpu else (240, 432)
        frames = 100 if on_gpu else 10
        quick = replace(self, plan=plan, sizes=(size,), objects=(USUAL,), frames=frames)
        return quick if on_gpu else replace(quick, compiled=False)


def bench(
    options: BenchOptions, report: Callable[[str], None] = lambda where: None
) -> dict[str, Any]:
    """Measure, write the requested files, and return the result.

    Raises  ConfigError for an unknown model, DeviceError if the device is missing, WeightsError;
            OutputError before the first measurement if a file cannot be written.
    """
    device = choose_device(options.device)
    names = {model: _weights_of(model, options.plan.weights) for model in options.models}
    variants = [variant for variant in VARIANTS if options.compiled or not variant.compiled]
    _prepare_files(options)
    scenes = [_scene(options, size) for size in options.sizes]
    dtypes = {torch.float32, Precision.choose("auto", device).dtype}
    rates = measure_rates(device, tuple(dtypes))
    result: dict[str, Any] = {
        "environment": describe(device, options.command),
        "plan": asdict(options.plan),
        "frames": scenes[0].origin,
        "gflops": {str(d).removeprefix("torch."): rates.flops[d] / 1e9 for d in dtypes},
        "gb_per_s": rates.bandwidth / 1e9,
        "models": [],
    }
    for model in options.models:
        rows: dict[str, Any] = {
            "model": model,
            "weights": names[model],
            "published": [asdict(row) for row in published_of(model)],
            "points": [],
        }
        result["models"].append(rows)
        for scene, count in _points(model, scenes, options.objects):
            where = f"{model}, {scene.size[0]}x{scene.size[1]}, {count} objects"
            report(where)
            point = measure_point(model, count, scene, device, options.plan, rates, variants)
            rows["points"].append(point.as_json())
            _write(result, options)
            _release(device)
        if options.frames:
            report(f"{model}, {options.frames} frames")
            count = min(USUAL, _max_objects(model))
            rows["stream"] = measure_stream(
                model, count, scenes[0], device, options.plan, options.frames
            )
            _write(result, options)
            _release(device)
    return result


def bench_streams(
    options: BenchOptions,
    counts: Sequence[int],
    max_batch: int | None = None,
    report: Callable[[str], None] = lambda where: None,
) -> dict[str, Any]:
    """Measure many streams on one engine, with the first size and the first number of objects;
    write the requested JSON and return the result.

    counts     numbers of streams, one row each
    max_batch  see Engine

    Raises  the errors of `bench`, and ConfigError if a table or a chart is requested.
    """
    for name in ("markdown", "chart"):
        if getattr(options, name) is not None:
            raise ConfigError(f"{name}: --streams writes JSON only; omit it")
    device, plan = choose_device(options.device), options.plan
    _prepare_files(options)
    scene, objects = _scene(options, options.sizes[0]), options.objects[0]
    result: dict[str, Any] = {
        "environment": describe(device, options.command),
        "plan": asdict(plan),
        "frames": scene.origin,
        "size": list(scene.size),
        "objects": objects,
        "models": [],
    }
    for model in options.models:
        engine = Engine(model, weights=plan.weights, device=options.device, max_batch=max_batch)
        rows: dict[str, Any] = {"model": model, "weights": engine.card.name, "streams": []}
        result["models"].append(rows)
        for count in counts:
            report(f"{model}, {count} streams")
            row = measure_streams(
                engine, scene, objects, count, warm_up=plan.warm_up, rounds=plan.steps
            )
            rows["streams"].append(row)
            _write(result, options)
    return result


def _prepare_files(options: BenchOptions) -> None:
    """Check that no file to write is an input; create their folders. Raises OutputError."""
    files = [f for f in (options.json, options.markdown, options.chart) if f is not None]
    inputs = [*Given.named("the data", options.data)]
    inputs += Given.named("the weights", options.plan.weights)
    keep_apart(inputs, files)
    for file in files:
        prepare_output_folder(file.absolute().parent)


def _scene(options: BenchOptions, size: Size) -> Scene:
    return drawn_scene(size) if options.data is None else real_scene(options.data, size)


def _weights_of(model: str, weights: str) -> str:
    """The name of the weights. Raises ConfigError or WeightsError if there are none."""
    entry(model)
    if weights == RANDOM_TAG:
        return "random weights of the paper's configuration"
    return load(model, weights)[1].name


def _max_objects(model: str) -> int:
    """Maximum number of objects: 1 for a model that takes no mask."""
    return 255 if entry(model).build.takes_mask else 1


def _points(model: str, scenes: list[Scene], objects: tuple[int, ...]) -> list[tuple[Scene, int]]:
    counts = sorted({min(count, _max_objects(model)) for count in objects})
    usual = min(counts, key=lambda count: abs(count - USUAL))
    return [(scenes[0], count) for count in counts] + [(scene, usual) for scene in scenes[1:]]


def _write(result: dict[str, Any], options: BenchOptions) -> None:
    if options.json is not None:
        write_whole(options.json, json.dumps(result, indent=1) + "\n")
    if options.markdown is not None:
        write_whole(options.markdown, markdown_of(result))
    if options.chart is not None:
        draw(result, options.chart)


def _release(device: torch.device) -> None:
    """Free the memory of a point before the next one is measured."""
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
