"""`read_memory` in plain torch: the definition that every backend is held against."""

from __future__ import annotations

import torch

from ..shapes import ShapeError, check, check_dtype


def contract(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
) -> None:
    arguments = {
        "query_key": (query_key, "P Ck"),
        "memory_key": (memory_key, "G N Ck"),
        "memory_value": (memory_value, "G N Cv"),
    }
    if bias is not None:
        arguments["bias"] = (bias, "G N")
    if length is not None:
        arguments["length"] = (length, "G")
        check_dtype("length", length, torch.int32)
    sizes = check(arguments)
    check_dtype("query_key", query_key, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    check_dtype("memory_key", memory_key, query_key.dtype)
    check_dtype("memory_value", memory_value, query_key.dtype)
    if sizes["N"] == 0:
        raise ShapeError("memory_key: wanted at least one memory position, given N = 0")


def read_memory(
    query_key: torch.Tensor,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor | None = None,
    length: torch.Tensor | None = None,
) -> torch.Tensor:
    """For every query position, the softmax-weighted mean of the memory values, group by group.

        s[g, n, p] = scale * <memory_key[g, n], query_key[p]> + bias[g, n]
        out[g, p]  = sum over n of softmax_n(s)[g, n, p] * memory_value[g, n]

    query_key     [P, Ck]
    memory_key    [G, N, Ck]   last axis contiguous; a prefix view of a larger bank is welcome and
                               is not copied
    memory_value  [G, N, Cv]   as memory_key
    bias          [G, N]       any float dtype, added to the scores; None means 0
    length        [G] int32 on the device: positions at or past it are never read; None means N
    returns       [G, P, Cv]   new, contiguous, dtype of query_key

    Dtype   float16, bfloat16 or float32 (float64 in the reference alone), one for all but bias;
            scores, maximum and sums in float32.
    Device  one for all; no synchronisation with the host; inputs unchanged.
    Empty   N = 0 is an error; G = 0 returns [0, P, Cv]; a group of length 0 returns zeros.
    Error   at most twice that of this function in the same dtype, against itself in float32.
    Raises  ShapeError, naming argument, wanted shape and given shape.
    Source  STM, section 3.3.
    """
    wide = torch.promote_types(query_key.dtype, torch.float32)
    scores = scale * torch.einsum("gnc,pc->gpn", memory_key.to(wide), query_key.to(wide))
    if bias is not None:
        scores = scores + bias.to(wide)[:, None, :]
    if length is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        valid = torch.arange(memory_key.shape[1], device=length.device) < length[:, None]
        scores = scores.masked_fill(~valid[:, None, :], -torch.inf)
        weights = torch.softmax(scores, dim=-1).masked_fill(~valid[:, None, :], 0)
        memory_value = memory_value.masked_fill(~valid[:, :, None], 0)
    return torch.einsum("gpn,gnv->gpv", weights.to(query_key.dtype), memory_value).contiguous()
