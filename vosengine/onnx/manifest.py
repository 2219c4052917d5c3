"""model.json: what stands beside the graphs, so that any program can drive them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import WeightsError
from ..files import write_whole

FORMAT = "vosengine-onnx-4"
MANIFEST = "model.json"

Axis: TypeAlias = "int | str"


@dataclass(frozen=True)
class Port:
    """A tensor that goes into a graph or comes out of it.

    name    in the graph
    dtype   "float32", "float16", "int64", "uint8", "bool"...
    shape   numbers, and of axes that vary a name ("objects") or an expression ("16*h")
    source  of an input: where it comes from. "caller.X": the program that drives the graphs;
            "VERB.OUTPUT": what a graph said of this frame; "VERB.OUTPUT@-1": of the frame so many
            before (or after); "state.NAME": the memory
            of an output that is kept: "state.NAME"; else empty
    axes    of an input: what every axis is, whether it varies or not: "objects", "frames", ""...
    """

    name: str
    dtype: str
    shape: tuple[Axis, ...]
    source: str = ""
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """One verb: a file, its hash, its tensors in order, and the operators that it has beside
    ONNX's own ("vosengine::read_memory")."""

    file: str
    sha256: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """An exported model.

    policy        how the memory is driven: "memory", "foreground", "support", "proposals", "tracks"
    dynamic       whether sizes, objects and memory are free; else they are those of the shapes
    objects       rows of every graph where it is not dynamic
    size, multiple  the frame's size in the network and what it is padded to: Geometry.fit
    sees          the frames that an answer needs, relative to it
    state         tensors that are kept from frame to frame, zeros at first
    settings      of the policy
    weights       the card's name, caption, whether it was trained, and its identity
    ops           which operators were asked for: "standard", "contrib", "vosengine"
    ops_version   of the operators of the domain "vosengine", where graphs have such; else 0
    ops_kept      what was left in standard operators all the same, and why
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
        """Raises WeightsError: no export there, of another format, damaged, or its graphs are not
        those that it was written with."""
        path = folder / MANIFEST
        if not path.is_file():
            raise WeightsError(
                f"{folder}: holds no {MANIFEST}; wanted a folder that `vosengine export` wrote"
            )
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(f"{path}: is not JSON ({error}); export the model anew") from None
        found = fields.get("format") if isinstance(fields, dict) else None
        if found != FORMAT:
            raise WeightsError(f"{path}: wanted format {FORMAT}, given {found!r}; export anew")
        # What has the hash was written by `write`: nothing in it has to be looked at twice.
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
    """sha256 of all fields as compact JSON, their names in order."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_of(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_hash(path: Path, wanted: str) -> None:
    if not path.is_file():
        raise WeightsError(f"{path}: is missing; export the model anew")
    given = hash_of(path)
    if given != wanted:
        raise WeightsError(
            f"{path}: is not the graph that {MANIFEST} was written with (sha256 {given[:12]}, "
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
