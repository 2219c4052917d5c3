"""Export of a model to ONNX graphs and a manifest that describes how to run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

import onnx
import torch

from ...config import MemoryConfig, check_size
from ...errors import ConfigError, OutputError
from ...models.method import Method
from ...runtime.folding import fold_batch_norms
from ...types import Geometry, Size
from ...zoo.registry import MODELS, entry
from ...zoo.weights import WeightCard, load
from ..library import DOMAIN, KINDS, VERSION, find_library
from ..manifest import Graph, Manifest, Port
from .custom import stand_ins
from .folder import replaced_export
from .frames import finish_graph, prepare_graph
from .ops import exported_ops
from .verb import Plan, Verb, VerbInput, describe, deviation, write_verb

OPSETS = range(20, 22)  # onnxruntime's CPU provider has no RoiAlign of opset 22 and later
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2}  # relative to the largest value of a graph's outputs


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    out            output folder; graphs of an earlier export there are replaced
    weights        as in Segmenter
    size           (height, width) in the network, for static graphs. None: sizes, objects and
                   memory are dynamic axes
    max_objects    most objects of a stream; in static graphs, the number of rows
    memory_frames  frames in the memory of every object; None: the model's number
    precision      "fp32" or "fp16"
    opset          20 or 21
    ops            "standard": ONNX's own operators; "contrib": memory reads by onnxruntime's
                   MultiHeadAttention; "vosengine": ops as custom operators of the library that is
                   installed with this package
    """

    out: Path
    weights: str | None = None
    size: Size | None = None
    max_objects: int | None = None
    memory_frames: int | None = None
    precision: str = "fp32"
    opset: int = 20
    ops: str = "standard"

    def check(self) -> None:
        """Raise ConfigError if an option is invalid."""
        if self.opset not in OPSETS:
            raise ConfigError(
                f"opset: wanted {OPSETS.start}..{OPSETS.stop - 1}, which onnxruntime supports "
                f"fully, given {self.opset}"
            )
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision: wanted {' or '.join(PRECISIONS)}, given {self.precision!r}"
            )
        if self.ops not in KINDS:
            raise ConfigError(f"ops: wanted {', '.join(KINDS)}, given {self.ops!r}")
        check_size(self.size)
        if self.max_objects is not None and not 1 <= self.max_objects <= 255:
            raise ConfigError(f"max_objects: wanted 1..255, given {self.max_objects}")


class Family(Protocol):
    """Interface of the modules in this folder that export a family of models.

    POLICY                 name of the memory policy
    verbs(method, plan)    the graphs except `prepare` and `finish`
    settings(method, plan) settings of the policy, including the `stride` of the logits
    """

    POLICY: str

    def verbs(self, method: Any, plan: Plan) -> list[Verb]: ...

    def settings(self, method: Any, plan: Plan) -> dict[str, Any]: ...


def family_of(model: str) -> Family:
    """The module that exports a model. Raises ConfigError if the model has none."""
    module = entry(model).export
    if module is None:
        known = ", ".join(name for name, other in MODELS.items() if other.export)
        raise ConfigError(f"export: {model} has no ONNX export; wanted one of {known}")
    family: Family = resolve_name(module)
    return family


@dataclass(frozen=True)
class Compared:
    """Comparison of a graph with torch: largest absolute difference and largest absolute value."""

    graph: str
    worst: float
    scale: float


def export_model(
    model: str,
    options: ExportOptions,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Manifest, list[Compared]]:
    """Export a model: write its graphs and model.json, and compare each graph with torch.

    An earlier export in the folder is replaced when the new one is complete; other files stay.

    Raises  ConfigError: invalid options; DependencyError: the requested library of operators is
            not available; both before anything is written. OutputError: a graph differs from
            torch, or a file that is not of an earlier export would be overwritten.
    """
    options.check()
    family = family_of(model)
    if options.ops == "vosengine":
        find_library([f"{DOMAIN}::{op}" for op in ("prepare_frame", "finish_masks")])
    method, card = load(model, options.weights)
    if (options.max_objects or 1) > method.most_objects:
        raise ConfigError(
            f"max_objects: {model} has at most {method.most_objects}, given {options.max_objects}"
        )
    fold_batch_norms(method)
    method.to(PRECISIONS[options.precision])
    plan = _plan(method, options)
    verbs = _drawn_verbs(family, method, plan)
    names = [f"{name}.onnx" for name in ("prepare", "finish", *(verb.name for verb in verbs))]
    with replaced_export(options.out, names, options.weights) as folder:
        manifest, compared = _write(method, card, options, folder, verbs, plan, report)
    return manifest, compared


def _drawn_verbs(family: Family, method: Any, plan: Plan) -> list[Verb]:
    """The family's graphs with reproducible random examples; torch's generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return family.verbs(method, plan)


def _write(
    method: Method[Any, Any],
    card: WeightCard,
    options: ExportOptions,
    folder: Path,
    verbs: list[Verb],
    plan: Plan,
    report: Callable[[str], None],
) -> tuple[Manifest, list[Compared]]:
    """Write the graphs and the manifest to an empty folder."""
    model, dynamic, family = card.model, options.size is None, family_of(card.model)
    graphs, kept = _verb_graphs(verbs, folder, options, report)
    graphs |= _frame_graphs(method, folder, options)
    operators = [name for graph in graphs.values() for name in graph.operators]
    custom = any(name.startswith(f"{DOMAIN}::") for name in operators)
    manifest = Manifest(
        model=model,
        policy=family.POLICY,
        opset=options.opset,
        precision=options.precision,
        dynamic=dynamic,
        objects=plan.objects,
        max_objects=options.max_objects or method.max_objects,
        size=options.size or method.size,
        multiple=method.stride,
        mean=method.config.mean,
        std=method.config.std,
        sees=method.sees,
        needs_mask=method.needs_mask,
        takes_mask=method.takes_mask,
        weights={
            "name": card.name,
            "caption": card.caption,
            "trained": card.trained,
            "identity": card.identity,
        },
        graphs=_in_order(graphs),
        state=_state(graphs),
        settings=family.settings(method, plan),
        ops=options.ops,
        ops_version=VERSION if custom else 0,
        ops_kept=tuple(kept),
    )
    library = find_library(operators) if custom else None
    compared = list(
        _compared(family, method, plan, verbs, folder, dynamic, options.precision, library)
    )
    manifest.write(folder)
    return manifest, compared


def _verb_graphs(
    verbs: list[Verb], folder: Path, options: ExportOptions, report: Callable[[str], None]
) -> tuple[dict[str, Graph], list[str]]:
    """Write the verbs' graphs. Also returns the ops left in standard operators, with reasons."""
    graphs, kept = {}, []
    for verb in verbs:
        report(f"{verb.name}.onnx")
        reasons: list[str] = []
        graphs[verb.name] = write_verb(
            verb,
            folder,
            dynamic=options.size is None,
            opset=options.opset,
            others=stand_ins(options.ops, reasons),
        )
        kept += [f"{verb.name}: {reason}" for reason in dict.fromkeys(reasons)]
    return graphs, kept


def _plan(method: Method[Any, Any], options: ExportOptions) -> Plan:
    memory: MemoryConfig | None = getattr(method.config, "memory", None)
    if options.memory_frames is not None:
        if memory is None:
            raise ConfigError("memory_frames: this model has no memory of frames; leave it out")
        memory = replace(memory, max_frames=options.memory_frames)
    if options.size is None:  # example sizes, all different
        return Plan(method.stride, (3, 5), 2, 4, memory=memory)
    geometry = Geometry.fit(options.size, size=options.size, multiple=method.stride)
    frames = 1 if memory is None else memory.max_frames
    return Plan(
        method.stride,
        geometry.cells(method.stride),
        options.max_objects or method.max_objects,
        frames,
        static=True,
        memory=memory,
    )


def _frame_graphs(
    method: Method[Any, Any], folder: Path, options: ExportOptions
) -> Iterator[tuple[str, Graph]]:
    config, half = method.config, options.precision == "fp16"
    models = {
        "prepare": prepare_graph(config.mean, config.std, half, options.opset, options.ops),
        "finish": finish_graph(options.opset, options.ops),
    }
    for name, model in models.items():
        path = folder / f"{name}.onnx"
        onnx.save(model, str(path))
        source = {"logits": "segment.logits"}
        verb = Verb(
            name,
            torch.nn.Identity(),
            tuple(
                VerbInput(v.name, source.get(v.name, f"caller.{v.name}"), torch.empty(0), {})
                for v in model.graph.input
            ),
            tuple((v.name, "") for v in model.graph.output),
        )
        yield name, describe(path, verb, dynamic=None)


def _state(graphs: dict[str, Graph]) -> tuple[Port, ...]:
    """Every tensor of the memory, as described by the graphs' inputs."""
    state: dict[str, Port] = {}
    for graph in graphs.values():
        for port in graph.inputs:
            if port.source.startswith("state."):
                name = port.source.removeprefix("state.")
                state.setdefault(name, replace(port, name=name, source=""))
    return tuple(state.values())


def _in_order(graphs: dict[str, Graph]) -> dict[str, Graph]:
    """The graphs in the order of execution."""
    order = ["prepare", "encode", "segment", "finish", "remember"]
    return {name: graphs[name] for name in (*order, *graphs) if name in graphs}


def _compared(
    family: Family,
    method: Method[Any, Any],
    plan: Plan,
    verbs: list[Verb],
    folder: Path,
    dynamic: bool,
    precision: str,
    library: Path | None,
) -> Iterator[Compared]:
    """Compare every graph with torch; dynamic graphs at sizes, objects and memory other than those
    they were traced with."""
    if dynamic:
        verbs = _drawn_verbs(family, method, replace(plan, cells=(7, 6), objects=3, frames=2))
    for verb in verbs:
        with exported_ops():
            examples = [port.example for port in verb.inputs]
            worst, scale = deviation(folder / f"{verb.name}.onnx", verb, examples, library)
        if worst > TOLERANCE[precision] * max(1.0, scale):
            raise OutputError(
                f"{folder}/{verb.name}.onnx: differs from torch by {worst:.2g}; the largest value "
                f"is {scale:.2g}"
            )
        yield Compared(verb.name, worst, scale)
