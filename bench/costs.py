"""Minimum work of every op: floating-point operations, and bytes from and to memory.

Bytes count the parts of inputs that are read, and outputs, once each. Operations are those of the
contractions that matrix units can compute; an op without any is rated by its bytes only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from vosengine.kernels.cases import map_tensors


class Cost(NamedTuple):
    flop: float | None
    bytes: float


def cost_of(name: str, arguments: dict[str, Any], outputs: Any) -> Cost:
    """Return the cost of one call of the named op, with these arguments and outputs."""
    flop = FLOP[name](arguments) if name in FLOP else None
    least = BYTES_READ.get(name, tensor_bytes)(arguments) + tensor_bytes(outputs)
    return Cost(flop, least)


def tensor_bytes(value: Any) -> float:
    """Return the bytes of all tensors in a dict or tuple of arguments, each counted once."""
    total = 0.0

    def add(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    map_tensors(add, value)
    return total


def _positions(arguments: dict[str, Any]) -> float:
    """Return the number of valid memory positions of all groups."""
    groups, positions = arguments["memory_key"].shape[:2]
    pages = arguments.get("pages")
    if pages is not None:
        groups, positions = len(pages), pages.shape[1] * positions
    length = arguments.get("length")
    return float(groups * positions if length is None else length.clamp(0, positions).sum())


def _sets(arguments: dict[str, Any]) -> int:
    value = arguments["memory_value"]
    return int(value.shape[1]) if value.ndim == 4 else 1


def _read_memory(arguments: dict[str, Any]) -> float:
    queries, key_channels = arguments["query_key"].shape[-2:]
    width = key_channels + _sets(arguments) * arguments["memory_value"].shape[-1]
    return 2 * queries * _positions(arguments) * float(width)


def _read_memory_bytes(arguments: dict[str, Any]) -> float:
    query, key, value = (arguments[n] for n in ("query_key", "memory_key", "memory_value"))
    width = key.shape[-1] + _sets(arguments) * value.shape[-1]
    small = {name: arguments.get(name) for name in ("bias", "length", "pages", "query_of")}
    rows = _positions(arguments) * float(width) * key.element_size()
    return rows + tensor_bytes(query) + tensor_bytes(small)


def _correlate_frames(arguments: dict[str, Any]) -> float:
    """Operations for the candidates inside the frame, counted per axis."""
    batch, channels, height, width = arguments["query"].shape
    radius = arguments.get("radius", 12)

    def pairs(size: int) -> int:
        return sum(min(size - 1, i + radius) - max(0, i - radius) + 1 for i in range(size))

    return 2.0 * batch * channels * pairs(height) * pairs(width)


def _deform_conv(arguments: dict[str, Any]) -> float:
    """Operations of the contraction, without the eleven of a sample, which use no matrix unit."""
    offset, weight = arguments["offset"], arguments["weight"]
    return 2.0 * offset.shape[0] * weight.numel() * offset.shape[2] * offset.shape[3]


def _align_object(arguments: dict[str, Any]) -> float:
    """Operations for all cosines of every pair, and for the weighted sums."""
    (objects, positions, channels) = arguments["template"].shape
    proposals, others = arguments["proposal"].shape[:2]
    return 4.0 * objects * proposals * positions * others * channels


def _fit_target(arguments: dict[str, Any]) -> float:
    """Operations of products with J and J' in every iteration and at the start of every step; N
    counts as diagonal."""
    tracks, samples, channels, height, width = arguments["features"].shape
    both = arguments.get("projection") is not None
    maps = arguments["kernel"].shape[1]
    cells = float(tracks * samples * height * width)
    convolution = 2 * 9 * maps * cells
    projected = 2 * maps * channels * cells if both else 0.0
    half = (2 if both else 1) * convolution + projected
    iterations = arguments.get("iterations", (10,))
    start = projected + convolution + half
    return float(sum(start + 2 * count * half for count in iterations))


def _pool_regions_bytes(arguments: dict[str, Any]) -> float:
    """Bytes of every map that the boxes cover, at most the whole map; of a plane its own box."""
    boxes = arguments["boxes"].double()
    sides = (boxes[:, 2:] - boxes[:, :2]).abs()
    area = float(sides.prod(dim=1).sum())
    total = tensor_bytes(arguments["boxes"])
    for level, stride in zip(arguments["levels"], arguments["strides"], strict=True):
        covered = min(1.0, area / stride**2 / max(1, level.shape[2] * level.shape[3]))
        total += covered * tensor_bytes(level)
    planes = arguments.get("planes")
    if planes is not None:
        covered = area / arguments.get("plane_stride", 1) ** 2 * planes.element_size()
        total += min(tensor_bytes(planes), covered)
    return total


FLOP: dict[str, Callable[[dict[str, Any]], float]] = {
    "read_memory": _read_memory,
    "correlate_frames": _correlate_frames,
    "deform_conv": _deform_conv,
    "align_object": _align_object,
    "fit_target": _fit_target,
}
BYTES_READ: dict[str, Callable[[dict[str, Any]], float]] = {
    "read_memory": _read_memory_bytes,
    "pool_regions": _pool_regions_bytes,
}
