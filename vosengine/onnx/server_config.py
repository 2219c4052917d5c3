"""config.pbtxt: the server's configuration of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import onnx

CANDIDATES = 4  # sequences that one instance serves in turn
IDLE_SECONDS = 60  # until an idle sequence is dropped

Message: TypeAlias = "list[tuple[str, Any]]"


class Word(str):
    """An enumerator, written without quotes."""


@dataclass(frozen=True)
class Served:
    """A served model.

    states      (input, output) pairs of the graph that are the server's implicit state
    parameters  values that clients can read
    """

    name: str
    graph: onnx.ModelProto
    states: tuple[tuple[str, str], ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)


def config_text(served: Served) -> str:
    """A ModelConfig in protobuf's text format; shapes are the graph's, -1 for dynamic axes."""
    graph = served.graph.graph
    kept = {name for pair in served.states for name in pair}
    fields: Message = [
        ("name", served.name),
        ("platform", "onnxruntime_onnx"),
        ("max_batch_size", 0),
    ]
    fields += [("input", _tensor(value)) for value in graph.input if value.name not in kept]
    fields += [("output", _tensor(value)) for value in graph.output if value.name not in kept]
    if served.states:
        fields.append(("sequence_batching", _sequences(served)))
    fields.append(("instance_group", [("count", 1), ("kind", Word("KIND_AUTO"))]))
    # CUDA graphs are off: every run of a joined graph writes its memory to other tensors.
    fields.append(("optimization", [("cuda", [("graphs", False)])]))
    for name, value in served.parameters.items():
        fields.append(("parameters", [("key", name), ("value", [("string_value", value)])]))
    return _text(fields)


def _sequences(served: Served) -> Message:
    values = {value.name: value for value in served.graph.graph.input}
    fields: Message = [
        ("max_sequence_idle_microseconds", IDLE_SECONDS * 1_000_000),
        ("oldest", [("max_candidate_sequences", CANDIDATES)]),
    ]
    for source, target in served.states:
        kind, shape = _kind(values[source]), _shape(values[source])
        first = [("data_type", kind), ("dims", shape), ("zero_data", True), ("name", source)]
        state = [
            *(("input_name", source), ("output_name", target)),
            *(("data_type", kind), ("dims", shape), ("initial_state", first)),
        ]
        fields.append(("state", state))
    return fields


def _tensor(value: onnx.ValueInfoProto) -> Message:
    return [("name", value.name), ("data_type", _kind(value)), ("dims", _shape(value))]


KINDS: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
}


def _kind(value: onnx.ValueInfoProto) -> Word:
    return Word(KINDS[value.type.tensor_type.elem_type])


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    axes = value.type.tensor_type.shape.dim
    return [axis.dim_value if axis.HasField("dim_value") else -1 for axis in axes]


def _text(fields: Message, indent: str = "") -> str:
    """Format a message, one field per line; a list of pairs is a nested message."""
    return "".join(indent + _line(name, value, indent) + "\n" for name, value in fields)


def _line(name: str, value: Any, indent: str) -> str:
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return f"{name} {{\n{_text(value, indent + '  ')}{indent}}}"
    return f"{name}: {_scalar(value)}"


def _scalar(value: bool | int | str | Sequence[int]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word):
        return value
    return json.dumps(value)
