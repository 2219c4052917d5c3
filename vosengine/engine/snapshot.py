"""Serialised streams: format, packing, unpacking and checks; safetensors with a sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..errors import StateError

FORMAT = "vosengine-stream-4"


@dataclass(frozen=True)
class SavedStream:
    """The contents of a saved stream.

    identity  model, weights, configuration...: must be equal where the stream is restored
    book      what Stream.saved returned
    state     tensors of the method's state, by name
    ring      (frame index, features by name, prompt or None) of every frame in the ring
    source    state of the proposal source; None if it is not a StatefulSource
    """

    identity: dict[str, Any]
    book: dict[str, Any]
    state: dict[str, torch.Tensor]
    ring: list[tuple[int, dict[str, torch.Tensor], torch.Tensor | None]]
    source: dict[str, torch.Tensor] | None = None


def pack(stream: SavedStream) -> bytes:
    """Serialise a stream to bytes for `unpack`."""
    tensors = {f"state/{name}": tensor for name, tensor in stream.state.items()}
    tensors |= {f"source/{name}": tensor for name, tensor in (stream.source or {}).items()}
    for index, features, prompt in stream.ring:
        tensors |= {f"ring/{index}/{name}": tensor for name, tensor in features.items()}
        if prompt is not None:
            tensors[f"prompt/{index}"] = prompt
    described = {
        "format": FORMAT,
        "identity": stream.identity,
        **stream.book,
        "ring": [index for index, _, _ in stream.ring],
        "source": stream.source is not None,
    }
    # Cloned: safetensors refuses tensors that share storage, as views of one bank do.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(described)
    metadata = {"stream": text, "sha256": _digest_of(text, tensors)}
    return save(tensors, metadata)


def read_file(path: Path) -> bytes:
    """Read a saved stream's file. Raises StateError if it is missing or unreadable."""
    if not path.is_file():
        raise StateError(f"{path}: no such file; wanted one that save_state wrote")
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror})") from error


def unpack(data: bytes, where: str, identity: dict[str, Any], device: torch.device) -> SavedStream:
    """Deserialise `pack`'s bytes; the tensors are new, on `device`.

    where     the name of the data in messages: a path, or "snapshot"
    identity  the settings that the stream must have been saved with

    Raises  StateError if the data is corrupt, truncated, not a stream, or of another identity.
    """
    try:
        tensors = load(data)
        metadata = _metadata_of(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise StateError(f"{where}: corrupt, or no saved stream ({error})") from error
    text = metadata.get("stream", "")
    if f'"format": "{FORMAT}"' not in text:
        raise StateError(f"{where}: not a stream that this version saved (wanted {FORMAT})")
    # Data with a valid hash was written by `pack`, so its contents need no further checks.
    if _digest_of(text, tensors) != metadata.get("sha256"):
        raise StateError(f"{where}: fails its hash; it is corrupt: save the stream again")
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    described = json.loads(text)
    _check_identity(where, described["identity"], json.loads(json.dumps(identity)))
    return SavedStream(
        identity=identity,
        book=described,
        state=_under("state/", tensors),
        ring=[
            (index, _under(f"ring/{index}/", tensors), tensors.get(f"prompt/{index}"))
            for index in described["ring"]
        ],
        source=_under("source/", tensors) if described["source"] else None,
    )


def check_source(where: str, stream: SavedStream, source: object | None) -> None:
    """Raise StateError unless stream and `source` (a StatefulSource or None) both have source
    state, or neither has."""
    if stream.source is not None and source is None:
        raise StateError(
            f"{where}: the stream was saved with a source of proposals that remembers what it saw; "
            "give this Segmenter such a source too (proposals=...)"
        )
    if stream.source is None and source is not None:
        raise StateError(
            f"{where}: the stream was saved without a source of proposals that remembers what it "
            f"saw, and this Segmenter has one ({type(source).__name__}); leave it out"
        )


def _metadata_of(data: bytes) -> dict[str, str]:
    """The metadata in the header of valid safetensors bytes: its length as 8 bytes, little-endian,
    then JSON."""
    end = 8 + int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8:end]).get("__metadata__", {})
    return metadata


def _digest_of(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the JSON text, then over names, dtypes, shapes and bytes of all tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _check_identity(where: str, saved: dict[str, Any], here: dict[str, Any]) -> None:
    different = [name for name in here if saved.get(name) != here[name]]
    if different:
        details = "; ".join(f"{n}: saved {saved.get(n)}, here {here[n]}" for n in different)
        raise StateError(f"{where}: the stream was saved under other settings: {details}")
