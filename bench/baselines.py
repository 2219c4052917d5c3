"""Baselines of the ops: implementations in torch without this library.

Every baseline has the arguments and the return value of the op. The benchmark checks it against the
same reference before timing it. A baseline that does not support a call raises RuntimeError, whose
message the benchmark records.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from compiling import Compiled
from frame_baselines import columns, dense, interpolate, unfold
from memory_baselines import (
    Contiguous,
    by_copy,
    flex,
    matmul,
    sdpa,
    sdpa_by,
    separate,
    split_value,
)
from object_baselines import (
    autograd,
    distance_matrix,
    grid_sample,
    in_numpy,
    max_pooling,
    pair_by_pair,
    running_minimum,
)
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention
from torchvision_baselines import TORCHVISION
from torchvision_baselines import missing as torchvision_missing

from vosengine.kernels import Op
from vosengine.kernels.cases import map_tensors

Baseline = Callable[..., Any]
HALVES = (torch.float16, torch.bfloat16)


def in_float32(baseline: Baseline, *, rounded: bool = True) -> Baseline:
    """Run a baseline that is accurate only in float32: half precision is cast before, and floating
    outputs are cast back after it, if `rounded`."""

    def call(**arguments: Any) -> Any:
        halves: list[torch.dtype] = []

        def widen(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dtype not in HALVES:
                return tensor
            halves.append(tensor.dtype)
            return tensor.float()

        outputs = baseline(**map_tensors(widen, arguments))
        if not halves or not rounded:
            return outputs
        return map_tensors(lambda x: x.to(halves[0]) if x.is_floating_point() else x, outputs)

    return call


BASELINES: dict[str, dict[str, Baseline]] = {
    "correlate_frames": {"unfold": unfold, "dense": dense},
    "deform_conv": {"columns": in_float32(columns)},
    "pool_regions": {"grid_sample": in_float32(grid_sample)},
    "read_memory": {
        "sdpa": by_copy(sdpa),
        "matmul": by_copy(matmul),
        "separate": separate,
        "contiguous": Contiguous(),
    },
    "finish_masks": {"interpolate": in_float32(interpolate, rounded=False)},
    "group_centres": {
        "panoptic_deeplab": in_float32(partial(max_pooling, nearest=distance_matrix)),
        "running_minimum": in_float32(partial(max_pooling, nearest=running_minimum)),
    },
    "fit_target": {"autograd": in_float32(autograd)},
    "align_object": {"pair_by_pair": in_float32(pair_by_pair)},
    "match_proposals": {"in_numpy": in_float32(in_numpy)},
}

ON_GPU: dict[str, dict[str, Baseline]] = {
    "read_memory": {
        "sdpa_flash": by_copy(sdpa_by(SDPBackend.FLASH_ATTENTION)),
        "sdpa_efficient": by_copy(sdpa_by(SDPBackend.EFFICIENT_ATTENTION)),
        "sdpa_cudnn": by_copy(sdpa_by(SDPBackend.CUDNN_ATTENTION)),
        "sdpa_math": by_copy(sdpa_by(SDPBackend.MATH)),
        "split_value": by_copy(split_value),
    },
}

COMPILED = ("read_memory", "correlate_frames", "finish_masks", "prepare_frame")


def peers_of(op: Op, device: torch.device, limit: float | None) -> dict[str, Baseline | str]:
    """Return every peer of an op on a device by name, or the reason why it is unavailable.

    limit  seconds that torch.compile may take for each compiled peer; None leaves these out
    """
    peers: dict[str, Baseline | str] = dict(BASELINES.get(op.name, {}))
    if device.type == "cuda":
        peers.update(ON_GPU.get(op.name, {}))
    if op.name in TORCHVISION:
        rival = TORCHVISION[op.name]
        peers["torchvision"] = torchvision_missing or rival
        peers["torchvision_float32"] = torchvision_missing or in_float32(rival)
    if op.name in COMPILED and limit is not None:
        peers["compiled"] = Compiled(op.reference, limit)
        if op.name == "read_memory":
            peers["flex_attention"] = Compiled(
                flex_attention, limit, wrap=lambda made: by_copy(flex(made))
            )
    return peers
