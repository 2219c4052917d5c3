"""Graphs for the server: all graphs of a step joined into one, or one by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..types import Geometry
from .manifest import Manifest, Port
from .server_config import Served

OF_A_FRAME = "prepare", "encode"  # graphs that depend on one frame only, in order


def joined(folder: Path, manifest: Manifest) -> Served:
    """Join the graphs of a static export: frame and memory in, labels and memory out."""
    step = _Step(folder, manifest)
    step.take_frame()
    for verb in OF_A_FRAME:
        step.add(verb)
    step.look_back()
    for verb in manifest.graphs:
        if verb not in OF_A_FRAME:
            step.add(verb)
    step.give("labels", "uint8", step.size)
    return Served(manifest.model, step.model(), tuple(step.states), _parameters(manifest))


def alone(folder: Path, manifest: Manifest, verb: str) -> Served:
    """One graph with its scalars as [1]: the server does not support scalars."""
    model = onnx.load(str(folder / manifest.graphs[verb].file))
    graph = model.graph
    inputs, outputs = ([v for v in vs if _is_scalar(v)] for vs in (graph.input, graph.output))
    inner = {value.name: f"{value.name}.scalar" for value in (*inputs, *outputs)}
    outer = {new: old for old, new in inner.items()}
    rename(graph, inner)
    nodes = list(graph.node)
    del graph.node[:]
    for value in (*inputs, *outputs):
        value.name = outer[value.name]
        value.type.tensor_type.shape.dim.add().dim_value = 1
    graph.node.extend(helper.make_node("Squeeze", [v.name], [inner[v.name]]) for v in inputs)
    graph.node.extend(nodes)
    if outputs:
        graph.initializer.append(numpy_helper.from_array(np.array([0]), "scalar.axes"))
    graph.node.extend(
        helper.make_node("Unsqueeze", [inner[v.name], "scalar.axes"], [v.name]) for v in outputs
    )
    onnx.checker.check_model(model, full_check=True)
    return Served(f"{manifest.model}_{verb}", model, (), _parameters(manifest))


def _is_scalar(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and not kind.shape.dim


def _parameters(manifest: Manifest) -> dict[str, str]:
    """Parameters of the served model for clients."""
    return {"latency": str(manifest.latency), "max_objects": str(manifest.max_objects)}


def rename(graph: onnx.GraphProto, names: Mapping[str, str], prefix: str = "") -> None:
    """Rename the tensors in `names` and prefix all others, in place, also in subgraphs."""

    def new(name: str) -> str:
        return names.get(name, prefix + name) if name else ""

    for node in graph.node:
        node.name = prefix + node.name
        for tensors in (node.input, node.output):
            tensors[:] = [new(name) for name in tensors]
        for attribute in node.attribute:
            single = [attribute.g] if attribute.HasField("g") else []
            for subgraph in (*single, *attribute.graphs):
                rename(subgraph, names, prefix)
    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new(value.name)


class _Step:
    """Builder of a joined graph.

    tensors  tensor names in this graph by the manifest's source
    states   (input, output) pairs of the state
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        assert isinstance(manifest.size, tuple)
        self.folder, self.manifest = folder, manifest
        self.size, self.objects = manifest.size, manifest.objects
        self.tensors: dict[str, str] = {}
        self.states: list[tuple[str, str]] = []
        graph = onnx.GraphProto(name=manifest.model)
        self._model = onnx.ModelProto(producer_name="vosengine", graph=graph)
        self._graph = self._model.graph

    def take_frame(self) -> None:
        """Add the inputs of a frame, the constants of its geometry, and the memory."""
        tensors, manifest = self.tensors, self.manifest
        geometry = Geometry.fit(self.size, size=self.size, multiple=manifest.multiple)
        region = np.array(geometry.region(manifest.settings["stride"]), dtype=np.float64)
        tensors["caller.frame"] = self._take("frame", "uint8", (*self.size, 3))
        tensors["caller.resized"] = self._constant("resized", np.array(geometry.resized))
        tensors["caller.size"] = tensors["caller.resized"]
        tensors["caller.padding"] = self._constant("padding", np.array(geometry.padding))
        tensors["caller.region"] = self._constant("region", region)
        index = self._state("frame_index", "int64", (1,))
        self._node("Add", [index, self._constant("one", np.array([1]))], "frame_index_out")
        tensors["caller.frame_index"] = self._node("Squeeze", [index], "index")
        if manifest.takes_mask:
            self._take_prompt()
        else:
            no_prompt = np.zeros(self.size, dtype=np.uint8)
            tensors["caller.prompt"] = self._constant("prompt", no_prompt)
            all_alive = np.ones(self.objects, dtype=np.bool_)
            tensors["caller.alive"] = self._constant("alive", all_alive)
        for port in manifest.state:
            tensors[f"state.{port.name}"] = self._state(port.name, port.dtype, _numbers(port))

    def _take_prompt(self) -> None:
        """Add the prompt input. Rows in the prompt are prompted, and alive from the next frame."""
        prompt = self._take("prompt", "uint8", self.size)
        alive = self._state("alive", "bool", (self.objects,))
        numbers = np.arange(1, 1 + self.objects, dtype=np.uint8).reshape(-1, 1, 1)
        pixels = self._node("Equal", [prompt, self._constant("numbers", numbers)], "pixels")
        pixels = self._node("Cast", [pixels], "pixels_as_numbers", to=onnx.TensorProto.UINT8)
        axes = self._constant("axes", np.array([1, 2]))
        shown = self._node("ReduceMax", [pixels, axes], "shown", keepdims=0)
        prompted = self._node("Cast", [shown], "prompted", to=onnx.TensorProto.BOOL)
        self._node("Or", [alive, prompted], "alive_out")
        self.tensors |= {
            "caller.prompt": prompt,
            "caller.alive": alive,
            "caller.prompted": prompted,
        }

    def look_back(self) -> None:
        """Replace the newest frame's features by those of the answered frame and its neighbours,
        for all graphs added from here on."""
        used: dict[str, dict[int, Port]] = {}
        for verb, graph in self.manifest.graphs.items():
            for port in graph.inputs:
                source, _, offset = port.source.partition("@")
                if verb not in OF_A_FRAME and source.partition(".")[0] in OF_A_FRAME:
                    used.setdefault(source, {})[int(offset or 0)] = port
        for source, ports in used.items():
            if self.manifest.latency > min(ports):
                self._hold(source, ports)

    def _hold(self, source: str, ports: dict[int, Port]) -> None:
        """Keep the features of past frames in the state. Frames before the first one of a stream
        are replaced by it."""
        latest, port = self.manifest.latency, next(iter(ports.values()))
        longest = latest - min(ports)
        one, *shape = _numbers(port)
        assert one == 1, f"{source}: wanted one frame on axis 0"
        now, name = self.tensors[source], "past_" + source.partition(".")[2]
        past = self._state(name, port.dtype, (longest, *shape))
        zero = self._constant("zero", np.array(0))
        first = self._node("Equal", [self.tensors["caller.frame_index"], zero], f"{name}.first")
        past = self._node("Where", [first, now, past], f"{name}.filled")
        whole = self._node("Concat", [past, now], f"{name}.whole", axis=0)
        self._frames(whole, 1, longest + 1, f"{name}_out")
        for offset, port in ports.items():
            place = longest - (latest - offset)
            name_here = f"{name}.{place}"
            self.tensors[port.source] = self._frames(whole, place, place + 1, name_here)

    def _frames(self, whole: str, start: int, stop: int, name: str) -> str:
        """Slice frames on axis 0."""
        numbers = (start, stop, 0)
        parts = [self._constant(f"number_{number}", np.array([number])) for number in numbers]
        return self._node("Slice", [whole, *parts], name)

    def add(self, verb: str) -> None:
        """Add a graph of the export; its inputs are connected to the tensors of their sources."""
        described = self.manifest.graphs[verb]
        model = onnx.load(str(self.folder / described.file))
        names = {port.name: self.tensors[port.source] for port in described.inputs}
        for port in described.outputs:
            kept = port.source.removeprefix("state.")
            names[port.name] = f"{kept}_out" if kept else f"{verb}.{port.name}"
            if port.name == "labels":
                names[port.name] = "labels"
            self.tensors[port.source or f"{verb}.{port.name}"] = names[port.name]
        rename(model.graph, names, f"{verb}.")
        for node in model.graph.node:
            del node.metadata_props[:]
        self._graph.node.extend(model.graph.node)
        self._graph.initializer.extend(model.graph.initializer)
        assert not model.functions, f"{described.file}: holds functions"
        self._model.ir_version = max(self._model.ir_version, model.ir_version)
        versions = {opset.domain: opset.version for opset in self._model.opset_import}
        for opset in model.opset_import:
            assert versions.get(opset.domain, opset.version) == opset.version, described.file
            if opset.domain not in versions:
                self._model.opset_import.append(opset)

    def give(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Add an output of the joined graph."""
        self._graph.output.append(_described(name, dtype, shape))

    def model(self) -> onnx.ModelProto:
        """The joined model, checked."""
        onnx.checker.check_model(self._model, full_check=True)
        return self._model

    def _take(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        self._graph.input.append(_described(name, dtype, shape))
        return name

    def _state(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        self.states.append((name, f"{name}_out"))
        self.give(f"{name}_out", dtype, shape)
        return self._take(name, dtype, shape)

    def _constant(self, name: str, value: np.ndarray) -> str:
        if all(tensor.name != name for tensor in self._graph.initializer):
            self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = helper.make_node(kind, inputs, [output], name=output, **attributes)
        self._graph.node.append(node)
        return output


def _described(name: str, dtype: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)


def _numbers(port: Port) -> tuple[int, ...]:
    """The shape of a static tensor."""
    return tuple(int(axis) for axis in port.shape)
