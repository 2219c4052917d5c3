"""Serialised streams: format, packing, unpacking and checks; safetensors with a sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..errors import StateError

FORMAT = "vosengine-stream-4"


def pack(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    """Serialise a stream, JSON-serialisable values and tensors, to bytes for `unpack`."""
    # Cloned: safetensors refuses tensors that share storage, as views of one bank do.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps({"format": FORMAT, **described})
    return save(tensors, {"stream": text, "sha256": _digest_of(text, tensors)})


def read_file(path: Path) -> bytes:
    """Read a saved stream's file. Raises StateError if it is missing or unreadable."""
    if not path.is_file():
        raise StateError(f"{path}: no such file; wanted one that save_state wrote")
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror})") from error


def unpack(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What `pack` was given, and the format; the tensors are new, on the CPU.

    where  the name of the data in messages: a path, or "snapshot"

    Raises  StateError if the data is corrupt, truncated or not a stream.
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
    return json.loads(text), tensors


def check_identity(where: str, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise StateError unless the settings that a stream was saved under are the wanted ones."""
    here = json.loads(json.dumps(wanted))
    different = [name for name in here if saved.get(name) != here[name]]
    if different:
        details = "; ".join(f"{n}: saved {saved.get(n)}, here {here[n]}" for n in different)
        raise StateError(f"{where}: the stream was saved under other settings: {details}")


def check_source(where: str, saved: bool, source: object | None) -> None:
    """Raise StateError unless `source`, a StatefulSource or None, is one if the stream was saved
    with one (`saved`), and None if it was not."""
    if saved and source is None:
        raise StateError(
            f"{where}: the stream was saved with a source of proposals that remembers what it saw; "
            "give this Segmenter such a source too (proposals=...)"
        )
    if not saved and source is not None:
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
    """sha256 over the JSON text, then over names, dtypes, shapes and bytes of all tensors, which
    are contiguous and on the CPU."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
