"""Tracing of a module to a graph file, its check, and its comparison with torch."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.export import Dim

from ...config import MatchingConfig, MemoryConfig
from ...errors import ConfigError, OutputError
from ...types import Size
from ..manifest import Axis, Graph, Port, hash_of
from ..sessions import session_options
from .layout import align_channels
from .ops import TRANSLATIONS, exported_ops

LARGEST = {"objects": 255, "frames": 4096}  # largest size of an axis; of others 2^14


@dataclass(frozen=True)
class Plan:
    """The sizes that a method is traced at; examples if the export is dynamic.

    multiple  coarsest stride of the network
    cells     size of its input at that stride
    objects   object rows
    frames    frames in the memory
    static    whether the sizes are fixed
    memory    memory settings that override the method's configuration, or None
    """

    multiple: int
    cells: Size
    objects: int
    frames: int
    static: bool = False
    memory: MemoryConfig | None = None

    @property
    def network(self) -> Size:
        """(height, width) of the network's input."""
        return self.multiple * self.cells[0], self.multiple * self.cells[1]

    def grid(self, x: torch.Tensor) -> dict[int, str]:
        """The dynamic axes of a map [B, C, ., .], as multiples of the coarsest cells."""
        factor = x.shape[2] // self.cells[0]
        return {2: times(factor, "h"), 3: times(factor, "w")}

    def pixels(self, axis: int) -> dict[int, str]:
        """The dynamic axes of an image of the network's size, from `axis` on."""
        return {axis: times(self.multiple, "h"), axis + 1: times(self.multiple, "w")}

    def frame(self, dtype: torch.dtype) -> VerbInput:
        """A random prepared frame."""
        image = torch.rand(1, 3, *self.network).to(dtype)
        return VerbInput("prepared", "prepare.prepared", image, self.pixels(2))

    def flags(self, name: str) -> VerbInput:
        """A mark of every object, set."""
        rows = torch.ones(self.objects, dtype=torch.bool)
        return VerbInput(name, f"caller.{name}", rows, {0: "objects"})

    def masks(self, name: str = "masks") -> VerbInput:
        """Random masks of the background and every object."""
        planes = torch.rand(1 + self.objects, *self.network)
        return VerbInput(name, "finish.masks", planes, {0: "1+objects", **self.pixels(1)})

    def frame_index(self) -> VerbInput:
        return VerbInput("frame_index", "caller.frame_index", torch.tensor(5), {})


def times(factor: int, name: str) -> str:
    """The expression of an axis: "16*h", or "h" for factor 1."""
    return name if factor == 1 else f"{factor}*{name}"


@dataclass(frozen=True)
class Verb:
    """A module to be exported, with its inputs and outputs.

    inputs    in order of `forward`, with examples; all sizes of the examples are at least 2, and
              axes with different names have different sizes
    outputs   (name, "state.NAME" if it updates the memory, else "")
    """

    name: str
    module: nn.Module
    inputs: tuple[VerbInput, ...]
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class VerbInput:
    """An input of a verb.

    axes  name or expression of every dynamic axis: "16*h", "objects", "1+objects"
    """

    name: str
    source: str
    example: torch.Tensor
    axes: dict[int, str]


class Traced(nn.Module):
    """A function of a network and tensors, as a module."""

    def __init__(self, network: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(self.network, *tensors)


def encode_verb(
    plan: Plan, frame: VerbInput, module: nn.Module, names: Sequence[str]
) -> tuple[Verb, list[VerbInput]]:
    """The graph `encode`, and its outputs as inputs of other graphs.

    names  of the outputs; if there are fewer of these, the last names are not used
    """
    with torch.no_grad():
        outputs = module(frame.example)
    assert len(outputs) <= len(names)
    features = [
        VerbInput(name, f"encode.{name}", x, plan.grid(x))
        for name, x in zip(names, outputs, strict=False)
    ]
    return Verb("encode", module, (frame,), tuple((x.name, "") for x in features)), features


def write_verb(
    verb: Verb,
    folder: Path,
    *,
    dynamic: bool,
    opset: int,
    others: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
) -> Graph:
    """Export a verb to FOLDER/<name>.onnx, check it, and return its description.

    others  replacements of ops by name, which take precedence over standard operators
    """
    path = folder / f"{verb.name}.onnx"
    shapes = _dynamic_shapes(verb.inputs) if dynamic else None
    names = [port.name for port in verb.inputs]
    outputs = [name for name, _ in verb.outputs]
    # At every export it logs that torchvision is missing.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), exported_ops(others), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Flat(verb.module).eval(),
            tuple(port.example for port in verb.inputs),
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=None if shapes is None else (shapes,),
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    return describe(path, verb, dynamic)


def memory_of(config: MatchingConfig, plan: Plan) -> MemoryConfig:
    """The memory settings of an export. Raises ConfigError for policy afb, whose shapes vary."""
    memory = plan.memory or config.memory
    if memory.policy == "afb":
        raise ConfigError(
            "memory: afb merges features by content, which a graph of fixed shapes cannot do; "
            "export a model with every-N or all"
        )
    return memory


def write_slot(
    memory: MemoryConfig,
    new: tuple[torch.Tensor, torch.Tensor],
    held: tuple[torch.Tensor, ...],
    keep: torch.Tensor,
    shown: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """`MemoryBank.write` as a graph: keys and values [O, T, ...], length and cursor [O] in frames.

    new    key and value of a frame, [O, 1, ...]
    held   keys, values, length, cursor
    keep   bool [O], advance the cursor; otherwise the next write overwrites this slot
    shown  bool [O], objects to write; the memory of others is unchanged
    """
    keys, values, length, cursor = held
    frames = torch.arange(keys.shape[1], device=keys.device)
    wider = (..., *[None] * (keys.ndim - 2))
    here = ((frames == cursor[:, None]) & shown[:, None])[wider]
    following = torch.where(keep & shown, cursor + 1, cursor)
    return (
        torch.where(here, new[0], keys),
        torch.where(here, new[1], values),
        torch.where(shown, torch.maximum(length, cursor + 1), length),
        # After the last slot the ring continues at 1: slot 0 is pinned.
        torch.where(following < memory.max_frames, following, 1),
    )


class _Flat(nn.Module):
    """A module with all inputs in one tuple: torch needs shapes in the nesting of the inputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.module(*tensors)


def describe(path: Path, verb: Verb, dynamic: bool | None) -> Graph:
    """Describe a written graph for the manifest; checks it, names its axes and aligns its channels
    in the file.

    dynamic  whether the verb was exported with dynamic axes; None: shapes are the graph's own

    Raises  OutputError: a static graph has a dynamic axis.
    """
    model = onnx.load(str(path))
    _name_axes(model)
    align_channels(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    kept = dict(verb.outputs)
    sources = {port.name: port for port in verb.inputs}
    inputs = []
    for value in model.graph.input:
        port, shape = sources[value.name], _shape(value)
        if dynamic is not None:
            sizes = enumerate(port.example.shape)
            shape = tuple(port.axes.get(i, n) if dynamic else n for i, n in sizes)
        axes = tuple(port.axes.get(i, "") for i in range(len(shape)))
        inputs.append(Port(value.name, _dtype(value), shape, port.source, axes))
    outputs = []
    for value, example in zip(model.graph.output, _examples(verb, dynamic), strict=True):
        # If torch has lost the size of a static axis, the example has it.
        shape = tuple(a or n for a, n in zip(_shape(value), example, strict=False))
        outputs.append(Port(value.name, _dtype(value), shape, kept[value.name]))
    if dynamic is False and any(isinstance(axis, str) for port in outputs for axis in port.shape):
        raise OutputError(f"{path}: a static graph has a dynamic axis")
    operators = {f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain}
    return Graph(path.name, hash_of(path), tuple(inputs), tuple(outputs), tuple(sorted(operators)))


def _name_axes(model: onnx.ModelProto) -> None:
    """Replace torch's own symbols ("4*s39") by h and w, in order of appearance."""
    names: dict[str, str] = {}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            for symbol in re.findall(r"\bs\d+\b", axis.dim_param):
                names.setdefault(symbol, "hw"[len(names)] if len(names) < 2 else symbol)
            for symbol, name in names.items():
                axis.dim_param = re.sub(rf"\b{symbol}\b", name, axis.dim_param)


def _examples(verb: Verb, dynamic: bool | None) -> list[Sequence[int]]:
    """Output shapes of a verb for its examples; zeros for a graph that was not traced."""
    if dynamic is None:
        return [[0] * 4] * len(verb.outputs)
    with exported_ops(), torch.no_grad():
        outputs = verb.module(*(port.example for port in verb.inputs))
    return [x.shape for x in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _dtype(value: onnx.ValueInfoProto) -> str:
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return str(np.dtype(kind))


def _shape(value: onnx.ValueInfoProto) -> tuple[Axis, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


def _dynamic_shapes(inputs: Sequence[VerbInput]) -> tuple[dict[int, Any], ...]:
    """The axes as torch's dynamic shapes: one Dim per name, and expressions derived from it."""
    dims: dict[str, Any] = {}

    def dim(expression: str) -> Any:
        match = re.fullmatch(r"(?:(\d+)\*)?([a-z_]+)|(\d+)\+([a-z_]+)", expression)
        assert match is not None, expression
        factor, name, more, other = match.groups()
        name = name or other
        if name not in dims:
            dims[name] = Dim(name, min=1, max=LARGEST.get(name, 1 << 14))
        if factor:
            return int(factor) * dims[name]
        return dims[name] + int(more) if more else dims[name]

    return tuple({axis: dim(text) for axis, text in port.axes.items()} for port in inputs)


def beside_torch(
    path: Path, verb: Verb, inputs: Sequence[torch.Tensor], library: Path | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Run a graph in onnxruntime, with a library of operators, and in torch.

    Returns (onnxruntime's, torch's) values of every output, float64.
    """
    options = session_options(threads=0, library=library)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    feeds = {g.name: x.numpy() for g, x in zip(verb.inputs, inputs, strict=True)}
    outputs = session.run(None, {name: x for name, x in feeds.items() if name in wanted})
    with torch.no_grad():
        truth = verb.module(*inputs)
    truth = truth if isinstance(truth, tuple) else (truth,)
    pairs = zip(outputs, truth, strict=True)
    return [(np.asarray(ours, np.float64), theirs.double().numpy()) for ours, theirs in pairs]


def deviation(
    path: Path, verb: Verb, inputs: Sequence[torch.Tensor], library: Path | None = None
) -> tuple[float, float]:
    """The largest absolute difference of onnxruntime from torch, and the largest absolute value."""
    worst = scale = 0.0
    for a, b in beside_torch(path, verb, inputs, library):
        if a.size:
            worst = max(worst, float(np.abs(a - b).max()))
            scale = max(scale, float(np.abs(b).max()))
    return worst, scale
