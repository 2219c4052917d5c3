"""model.json: the description of an export that any program needs to run its graphs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import WeightsError
from ..files import Fingerprint, write_whole

FORMAT = "vosengine-onnx-4"
MANIFEST = "model.json"

Axis: TypeAlias = "int | str"


@dataclass(frozen=True)
class Port:
    """An input or output tensor of a graph.

    name    name in the graph
    dtype   "float32", "float16", "int64", "uint8", "bool"...
    shape   sizes; a dynamic axis has a name ("objects") or an expression ("16*h")
    source  of an input: "caller.X" from the calling program; "VERB.OUTPUT" a graph's output for
            this frame; "VERB.OUTPUT@-1" for the frame at that offset; "state.NAME" the memory.
            Of an output: "state.NAME" if it updates the memory, else empty
    axes    of an input: the name of every axis, dynamic or not: "objects", "frames", ""...
    """

    name: str
    dtype: str
    shape: tuple[Axis, ...]
    source: str = ""
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """One graph: file, hash, inputs and outputs in order, and the operators outside ONNX's own
    domain ("vosengine::read_memory")."""

    file: str
    sha256: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The content of model.json.

    policy        the memory policy: "memory", "foreground", "support", "proposals", "tracks"
    dynamic       whether the axes of sizes, objects and memory are dynamic
    objects       object rows of every graph, if not dynamic
    size, multiple  working size, and the multiple to pad to: arguments of Geometry.fit
    sees          offsets of the frames that an answer needs
    state         tensors kept from frame to frame, initially zero
    settings      settings of the policy
    weights       name, caption, trained flag and identity of the weight card
    ops           the requested operators: "standard", "contrib", "vosengine"
    ops_version   version of the operators of the domain "vosengine"; 0 if there are none
    ops_kept      ops left in standard operators although others were requested, with reasons
    """

    model: str
    policy: str
    opset: int
    precision: str
    dynamic: bool
    objects: int
    max_objects: int
    size: int | tuple[int, int] | None
    multiple: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sees: tuple[int, ...]
    needs_mask: bool
    takes_mask: bool
    weights: dict[str, Any]
    graphs: dict[str, Graph]
    state: tuple[Port, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    ops: str = "standard"
    ops_version: int = 0
    ops_kept: tuple[str, ...] = ()
    format: str = FORMAT

    @property
    def latency(self) -> int:
        return max(0, *self.sees)

    def write(self, folder: Path) -> None:
        fields = asdict(self)
        text = json.dumps({**fields, "sha256": _digest_of(fields)}, indent=1)
        write_whole(folder / MANIFEST, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read model.json and check the hashes of all graphs.

        Raises  WeightsError: no export there, another format, damaged, or a graph has changed.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise WeightsError(
                f"{folder}: holds no {MANIFEST}; wanted a folder that `vosengine export` wrote"
            )
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(f"{path}: is not JSON ({error}); export the model anew") from None
        version = fields.get("format") if isinstance(fields, dict) else None
        if version != FORMAT:
            raise WeightsError(f"{path}: wanted format {FORMAT}, given {version!r}; export anew")
        # The hash proves that `write` wrote it: the fields need no further validation.
        if fields.pop("sha256", None) != _digest_of(fields):
            raise WeightsError(f"{path}: fails its hash: damaged or edited; export the model anew")
        fields["graphs"] = {name: _graph(each) for name, each in fields["graphs"].items()}
        fields["state"] = _ports(fields["state"])
        for name in ("mean", "std", "sees", "ops_kept"):
            fields[name] = tuple(fields[name])
        if isinstance(fields["size"], list):
            fields["size"] = tuple(fields["size"])
        manifest = cls(**fields)
        for graph in manifest.graphs.values():
            _check_hash(folder / graph.file, graph.sha256)
        return manifest


def _digest_of(fields: dict[str, Any]) -> str:
    """sha256 of all fields as compact JSON with sorted keys."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return Fingerprint.of(text.encode()).sha256


def hash_of(path: Path) -> str:
    """sha256 of a file."""
    return Fingerprint.read(path).sha256


def _check_hash(path: Path, wanted: str) -> None:
    if not path.is_file():
        raise WeightsError(f"{path}: is missing; export the model anew")
    actual = hash_of(path)
    if actual != wanted:
        raise WeightsError(
            f"{path}: is not the graph that {MANIFEST} was written with (sha256 {actual[:12]}, "
            f"wanted {wanted[:12]}); export the model anew"
        )


def _graph(fields: dict[str, Any]) -> Graph:
    inputs, outputs = _ports(fields["inputs"]), _ports(fields["outputs"])
    operators = tuple(fields["operators"])
    return Graph(fields["file"], fields["sha256"], inputs, outputs, operators)


def _ports(fields: list[dict[str, Any]]) -> tuple[Port, ...]:
    return tuple(
        Port(**{**each, "shape": tuple(each["shape"]), "axes": tuple(each["axes"])})
        for each in fields
    )
