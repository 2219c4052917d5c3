"""`read_memory` in C++: online softmax over blocks of memory, register-blocked products.

Supports float32 on the CPU, and a bias of any floating dtype. bfloat16 is computed natively on
processors with AMX; otherwise half precision is converted to float32. The full score matrix is
never stored: scratch is 1024 packed memory positions (with their values in all sets), per thread
their scores for at most 96 queries, and in half precision the output in float32. Conversion and
page lookup happen when positions are packed, before the products. Weights are computed once for
all sets.

With top_k each thread holds all scores of 12 queries (AVX2, AVX-512) at a time; the top_k-th
greatest is selected in one pass over them, and only the values of those positions are summed.
"""

from __future__ import annotations

from typing import Any

import torch

from ..extension import COMPUTED_IN_FLOAT32, cpu_unsupported, load
from ..gpu import ELEMENTS


def unsupported(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    pages: torch.Tensor | None = None,
    query_of: torch.Tensor | None = None,
    **_: Any,
) -> str | None:
    if query_key.dtype not in COMPUTED_IN_FLOAT32:
        return f"wants float32, bfloat16 or float16, given {query_key.dtype}"
    rows = {"query_key": query_key, "memory_key": memory_key, "memory_value": memory_value}
    for name, tensor in rows.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return f"wants the last axis of {name} contiguous, given stride {tensor.stride(-1)}"
    return cpu_unsupported(query_key, memory_key, memory_value, bias, length, pages, query_of)


def run(
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
    dtype = query_key.dtype
    count, page_positions, key_channels = memory_key.shape
    groups, columns = (count, 1) if pages is None else pages.shape
    positions = columns * page_positions
    if top_k is not None and top_k >= positions:
        top_k = None
    module = load()
    tiles = dtype == torch.bfloat16 and top_k is None and module.isa() == "amx"
    if not tiles:
        query_key = query_key.to(torch.float32)
    if query_of is None:
        query_key = query_key.expand(groups, -1, -1)
    sets = memory_value if memory_value.ndim == 4 else memory_value[:, None]
    queries, value_channels = query_key.shape[1], memory_value.shape[-1]
    if bias is not None:
        bias = bias.to(torch.float32).contiguous()
    length, pages, query_of = (
        None if numbers is None else numbers.contiguous() for numbers in (length, pages, query_of)
    )
    out = query_key.new_empty(groups, *memory_value.shape[1:-2], queries, value_channels)
    read = module.read_memory_cpu if top_k is None else module.read_memory_top_k_cpu
    if tiles:
        read = module.read_memory_amx
    read(
        query_key.data_ptr(),
        query_key.stride()[:2],
        _address(query_of),
        memory_key.data_ptr(),
        memory_key.stride()[:2],
        memory_value.data_ptr(),
        sets.stride()[:3],
        ELEMENTS[dtype],
        _address(pages),
        (columns, page_positions, count),
        _address(bias),
        _address(length),
        out.data_ptr(),
        (
            *(groups, sets.shape[1], queries, positions),
            *(key_channels, value_channels, len(query_key)),
        ),
        top_k or 0,
        scale,
        torch.get_num_threads(),
    )
    return out.to(dtype)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
