"""Ops as single nodes of onnxruntime's contrib domain or of the domain "vosengine".

These functions are for tracing only: they create the node and compute nothing. Nodes take float32;
half precision is converted around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.onnx.ops import symbolic, symbolic_multi_out

from ...kernels.deform_conv.reference import Pair, as_pair
from ...kernels.read_memory.reference import positions_of
from ..library import DOMAIN, VERSION
from . import ops

Sizes = Sequence[Any]  # numbers, or torch.SymInt
StandIns = dict[str, Callable[..., Any]]


def _node(name: str, inputs: Sequence[torch.Tensor | None], shape: Sizes, **attrs: Any) -> Any:
    """One node of our domain, float32."""
    return symbolic(
        f"{DOMAIN}::{name}", inputs, attrs, dtype=torch.float32, shape=shape, version=VERSION
    )


def _float(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.float()


def _int32(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.to(torch.int32)


def read_memory(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    top_k: int | None = None,
    pages: torch.Tensor | None = None,
    query_of: torch.Tensor | None = None,
) -> torch.Tensor:
    groups = memory_key.shape[0] if pages is None else pages.shape[0]
    sets = [memory_value.shape[1]] if memory_value.ndim == 4 else []
    floats = (query_key.float(), memory_key.float(), memory_value.float(), _float(bias))
    output: torch.Tensor = _node(
        "read_memory",
        (*floats, _int32(length), _int32(pages), _int32(query_of)),
        [groups, *sets, query_key.shape[-2], memory_value.shape[-1]],
        scale=float(scale),
        top_k=top_k or 0,
    )
    return output.to(query_key.dtype)


def correlate_frames(
    query: torch.Tensor,
    previous: torch.Tensor,
    *,
    radius: int = 12,
    temperature: float | torch.Tensor = 20.0,
    outside: str = "zero",
) -> torch.Tensor:
    sharpness = torch.as_tensor(temperature, dtype=torch.float32).reshape(())
    batch, _, height, width = query.shape
    output: torch.Tensor = _node(
        "correlate_frames",
        (query.float(), previous.float(), sharpness),
        [batch, 3, height, width],
        radius=radius,
        exclude_outside=int(outside == "exclude"),
    )
    return output.to(query.dtype)


def deform_conv(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> torch.Tensor:
    output: torch.Tensor = _node(
        "deform_conv",
        (x.float(), offset.float(), weight.float(), _float(bias), _float(mask)),
        [x.shape[0], weight.shape[0], *offset.shape[2:]],
        stride=as_pair(stride),
        padding=as_pair(padding),
        dilation=as_pair(dilation),
        groups=groups,
    )
    return output.to(x.dtype)


def pool_regions(
    levels: tuple[torch.Tensor, ...],
    boxes: torch.Tensor,
    *,
    strides: tuple[int, ...],
    frame: torch.Tensor | None = None,
    planes: torch.Tensor | None = None,
    plane_stride: int = 1,
    size: int = 14,
    sampling: int = 2,
    aligned: bool = True,
) -> torch.Tensor:
    channels = sum(each.shape[1] for each in levels) + (planes is not None)
    output: torch.Tensor = _node(
        "pool_regions",
        (boxes.double(), _int32(frame), _float(planes), *(each.float() for each in levels)),
        [boxes.shape[0], channels, size, size],
        strides=strides,
        plane_stride=plane_stride,
        size=size,
        sampling=sampling,
        aligned=int(aligned),
    )
    return output.to(levels[0].dtype)


def group_centres(
    heatmap: torch.Tensor,
    offset: torch.Tensor,
    foreground: torch.Tensor,
    *,
    threshold: float = 0.1,
    window: int = 7,
    limit: int = 20,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = heatmap.shape[0]
    exact = torch.tensor(threshold, dtype=torch.float64)
    labels, centres, scores = symbolic_multi_out(
        f"{DOMAIN}::group_centres",
        (heatmap.float(), offset.float(), foreground, exact),
        {"window": window, "limit": limit},
        dtypes=(torch.uint8, torch.int32, torch.float32),
        shapes=(heatmap.shape, [batch, limit, 2], [batch, limit]),
        version=VERSION,
    )
    return labels, centres, scores.to(heatmap.dtype)


class Contrib:
    """`read_memory` by com.microsoft's MultiHeadAttention, if equivalent.

    kept  receives the reason, one line, for every read left in standard operators
    """

    def __init__(self, kept: list[str]) -> None:
        self.kept = kept

    def read_memory(
        self,
        query_key: torch.Tensor,
        memory_key: torch.Tensor,
        memory_value: torch.Tensor,
        *,
        scale: float,
        bias: torch.Tensor | None = None,
        length: torch.Tensor | None = None,
        top_k: int | None = None,
        pages: torch.Tensor | None = None,
        query_of: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode bias and length as one more channel of the keys, since with an attention mask
        onnxruntime stores all scores."""
        if pages is not None:
            pages = pages.long()  # onnxruntime gathers by int64 alone
            memory_key = positions_of(memory_key, pages)
            memory_value = positions_of(memory_value, pages)
            bias = None if bias is None else positions_of(bias, pages)
        if query_of is not None:
            query_key = query_key[query_of.long()]
        if top_k is not None:
            self.kept.append(
                f"read_memory reads the {top_k} closest positions of a query, which "
                "MultiHeadAttention does not"
            )
            memory = query_key, memory_key, memory_value
            return ops.read_memory(*memory, scale=scale, bias=bias, length=length, top_k=top_k)
        groups, positions, _ = memory_key.shape
        query = scale * query_key.float()
        query = query.expand(groups, -1, -1)
        key, value = memory_key.float(), memory_value.float()
        if length is not None:
            is_there = torch.arange(positions, device=length.device) < length[:, None]
            bias = torch.where(is_there, 0.0 if bias is None else bias.float(), ops.NEVER)
        if bias is not None:
            ones = query.new_ones(1, 1, 1).expand(*query.shape[:2], 1)
            query = torch.cat((query, ones), dim=2)
            key = torch.cat((key, bias.float()[..., None]), dim=2)
        sets = value.shape[1] if value.ndim == 4 else 1
        if value.ndim == 4:  # side by side in the channels: one softmax serves all
            value = value.transpose(1, 2).flatten(2)
        output: torch.Tensor = symbolic(
            "com.microsoft::MultiHeadAttention",
            (query.contiguous(), key, value),
            {"num_heads": 1, "scale": 1.0},
            dtype=torch.float32,
            shape=[groups, query.shape[1], value.shape[2]],
            version=1,
        )
        if memory_value.ndim == 4:
            output = output.unflatten(2, (sets, memory_value.shape[-1])).transpose(1, 2)
        return output.to(query_key.dtype)


def stand_ins(kind: str, kept: list[str]) -> StandIns:
    """Replacements of ops by name, for tracing with the operators `kind`; `kept` as in Contrib."""
    if kind == "vosengine":
        return {
            "read_memory": read_memory,
            "correlate_frames": correlate_frames,
            "deform_conv": deform_conv,
            "group_centres": group_centres,
            "pool_regions": pool_regions,
        }
    if kind == "contrib":
        return {"read_memory": Contrib(kept).read_memory}
    return {}
