"""`read_memory` in C++: a softmax that runs over blocks of memory, with products in registers.

Takes float32 on the CPU, bfloat16 as it is where the processor has AMX, and half precision
otherwise by way of float32 (a bias of any float dtype). The matrix of all scores is never stored:
besides its output the call needs 1024 packed memory positions (with their values in all sets), per
thread their scores for at most 96 queries, with AMX the output in float32, and in half precision
without it the arguments. All sets are read by weights computed once.

With top_k all scores of 12 queries (AVX2, AVX-512) are there at a time, in each thread; the
top_k-th greatest is found in one pass over them, and only the values of those positions are summed.
"""

from __future__ import annotations

import torch

from ..extension import COMPUTED_IN_FLOAT32, cpu_objection, load


def objection(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    top_k: int | None = None,
) -> str | None:
    if query_key.dtype not in COMPUTED_IN_FLOAT32:
        return f"wants float32, bfloat16 or float16, given {query_key.dtype}"
    rows = {"query_key": query_key, "memory_key": memory_key, "memory_value": memory_value}
    for name, tensor in rows.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return f"wants the last axis of {name} contiguous, given stride {tensor.stride(-1)}"
    return cpu_objection(query_key, memory_key, memory_value, bias, length)


def run(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
    top_k: int | None = None,
) -> torch.Tensor:
    dtype = query_key.dtype
    if top_k is not None and top_k >= memory_key.shape[1]:
        top_k = None
    tiles = dtype == torch.bfloat16 and top_k is None and load().isa() == "amx"
    if not tiles and dtype != torch.float32:
        if length is not None:  # what is not read is not converted either
            longest = max(length.tolist(), default=0)
            memory_key, memory_value = memory_key[:, :longest], memory_value[..., :longest, :]
            bias = None if bias is None else bias[:, :longest]
        query_key, memory_key, memory_value = (
            each.to(torch.float32) for each in (query_key, memory_key, memory_value)
        )
    groups, positions, key_channels = memory_key.shape
    query_key = query_key.expand(groups, -1, -1)
    sets = memory_value if memory_value.ndim == 4 else memory_value[:, None]
    queries, value_channels = query_key.shape[1], memory_value.shape[-1]
    if bias is not None:
        bias = bias.to(torch.float32).contiguous()
    if length is not None:
        length = length.contiguous()
    out = memory_value.new_empty(*memory_value.shape[:-2], queries, value_channels)
    module = load()
    read = module.read_memory_cpu if top_k is None else module.read_memory_top_k_cpu
    if tiles:
        read = module.read_memory_amx
    read(
        query_key.data_ptr(),
        query_key.stride()[:2],
        memory_key.data_ptr(),
        memory_key.stride()[:2],
        memory_value.data_ptr(),
        sets.stride()[:3],
        0 if bias is None else bias.data_ptr(),
        0 if length is None else length.data_ptr(),
        out.data_ptr(),
        (groups, sets.shape[1], queries, positions, key_channels, value_channels),
        top_k or 0,
        scale,
        torch.get_num_threads(),
    )
    return out.to(dtype)
