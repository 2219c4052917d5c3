"""A stream on disk: everything needed to go on with it elsewhere, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import StateError
from .files import cannot_write, whole
from .types import Geometry

FORMAT = "vosengine-stream-4"


@dataclass(frozen=True)
class SavedStream:
    """What a Segmenter holds of its stream.

    identity  model, weights, configuration...: what must agree where the stream goes on
    ids       the objects in order of slot
    ever      every id that the stream has had
    reserved  the ids that are kept for the caller
    ring      (frame index, features by name, prompt or None) of every frame still held
    source    what the source of proposals remembers; None where it is no StatefulSource
    """

    identity: dict[str, Any]
    geometry: Geometry | None
    ids: tuple[int, ...]
    ever: tuple[int, ...]
    frame_count: int
    flushed: bool
    state: dict[str, torch.Tensor]
    ring: list[tuple[int, dict[str, torch.Tensor], torch.Tensor | None]]
    source: dict[str, torch.Tensor] | None = None
    reserved: tuple[int, ...] = ()


def write_stream(path: Path, stream: SavedStream) -> None:
    """Write a stream; the file appears whole or not at all. Raises OutputError."""
    tensors = {f"state/{name}": tensor for name, tensor in stream.state.items()}
    tensors |= {f"source/{name}": tensor for name, tensor in (stream.source or {}).items()}
    for index, features, prompt in stream.ring:
        tensors |= {f"ring/{index}/{name}": tensor for name, tensor in features.items()}
        if prompt is not None:
            tensors[f"prompt/{index}"] = prompt
    geometry = stream.geometry
    described = {
        "format": FORMAT,
        "identity": stream.identity,
        "geometry": geometry and [geometry.frame, geometry.resized, geometry.padding],
        "ids": stream.ids,
        "ever": stream.ever,
        "reserved": stream.reserved,
        "frame_count": stream.frame_count,
        "flushed": stream.flushed,
        "ring": [index for index, _, _ in stream.ring],
        "source": stream.source is not None,
    }
    # Cloned: safetensors refuses tensors that share storage, as views of one bank do.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(described)
    metadata = {"stream": text, "sha256": _digest_of(text, tensors)}
    try:
        with whole(path) as scratch:
            save_file(tensors, scratch, metadata)
    except SafetensorError as error:
        raise cannot_write(path, error) from error


def read_stream(path: Path, identity: dict[str, Any], device: torch.device) -> SavedStream:
    """Read a stream that goes on under `identity`, onto a device.

    Raises  StateError: no such file, corrupt, no stream, or a stream of another identity.
    """
    if not path.is_file():
        raise StateError(f"{path}: no such file; wanted one that save_state wrote")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StateError(f"{path}: corrupt, or no saved stream ({error})") from error
    text = metadata.get("stream", "")
    if f'"format": "{FORMAT}"' not in text:
        raise StateError(f"{path}: not a stream that this version saved (wanted {FORMAT})")
    # What has the hash was written by `write_stream`: nothing in it has to be looked at twice.
    if _digest_of(text, tensors) != metadata.get("sha256"):
        raise StateError(f"{path}: fails its hash; the file is damaged: save the stream anew")
    described = json.loads(text)
    _check_identity(path, described["identity"], json.loads(json.dumps(identity)))
    geometry = described["geometry"]
    return SavedStream(
        identity=identity,
        geometry=Geometry(*(tuple(part) for part in geometry)) if geometry else None,
        ids=tuple(described["ids"]),
        ever=tuple(described["ever"]),
        frame_count=described["frame_count"],
        flushed=described["flushed"],
        state=_under("state/", tensors),
        ring=[
            (index, _under(f"ring/{index}/", tensors), tensors.get(f"prompt/{index}"))
            for index in described["ring"]
        ],
        source=_under("source/", tensors) if described["source"] else None,
        reserved=tuple(described["reserved"]),
    )


def check_source(path: str | Path, stream: SavedStream, source: object | None) -> None:
    """Raise StateError unless a source that remembers (None: there is none) goes with a stream."""
    if stream.source is not None and source is None:
        raise StateError(
            f"{path}: the stream was saved with a source of proposals that remembers what it saw; "
            "give this Segmenter such a source too (proposals=...)"
        )
    if stream.source is None and source is not None:
        raise StateError(
            f"{path}: the stream was saved without a source of proposals that remembers what it "
            f"saw, and this Segmenter has one ({type(source).__name__}); leave it out"
        )


def _digest_of(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the description, then over names, dtypes, shapes and bytes of all tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _check_identity(path: Path, saved: dict[str, Any], here: dict[str, Any]) -> None:
    different = [name for name in here if saved.get(name) != here[name]]
    if different:
        details = "; ".join(f"{n}: saved {saved.get(n)}, here {here[n]}" for n in different)
        raise StateError(f"{path}: the stream was saved under other settings: {details}")
