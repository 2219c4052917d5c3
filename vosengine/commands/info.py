"""`vosengine info`: estimate FLOPs and bytes of a model at a size and an object count."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..config import ModelConfig
from ..kernels import use_backend
from ..models.method import tensors_in
from ..proposals import Proposals
from ..types import Geometry, Masks
from ..zoo.registry import build, entry


@dataclass(frozen=True)
class Cost:
    """Costs of one step of a model.

    Only convolutions and matrix products are counted; a multiply-add is two operations. Not counted
    is what depends on the content of a frame: proposals, new objects and updates of target_aware.
    dmn_aoa is given its maximum number of proposals, without the cost of their detector.

    gflop           by verb: encode (once per frame), segment and remember (for all objects)
    weights_bytes   of the weights
    features_bytes  of the features of one frame
    memory_bytes    of the memory for `max_objects`
    memory_frames   frames in the memory; 0 for a method without a memory of frames
    network_size    working size (H, W) with padding
    """

    parameters: int
    gflop: dict[str, float]
    weights_bytes: int
    features_bytes: int
    memory_bytes: int
    memory_frames: int
    network_size: tuple[int, int]


def cost(
    model: str,
    size: tuple[int, int],
    objects: int,
    *,
    memory_frames: int = 5,
    max_objects: int | None = None,
    config: ModelConfig | None = None,
    bytes_per_number: int = 4,
) -> Cost:
    """The cost of one step on frames of `size` (H, W) with that many objects and memory frames.

    memory_frames  for methods with a memory of frames
    max_objects    None: the model's default

    Counted by running the real network on torch's meta device, on tensors without data.
    """
    config = config or entry(model).config()
    with torch.device("meta"):
        method = build(model, config)
        geometry = Geometry.fit(size, size=method.size, multiple=method.stride)
        memory_bytes = method.start(geometry, max_objects or method.max_objects).nbytes
        memory = getattr(config, "memory", None)
        if memory is not None:
            memory = dataclasses.replace(memory, max_frames=max(2, memory_frames))
        height, width = geometry.network
        proposals = None
        if method.needs_proposals:
            count = config.max_proposals  # type: ignore[union-attr]
            planes = torch.empty(count, height, width, dtype=torch.bool)
            proposals = [Proposals(torch.empty(count, 4), planes, torch.empty(count))]
        gflop = {}
        with torch.no_grad(), use_backend("reference"):
            with FlopCounterMode(display=False) as counter:
                features = method.encode(torch.empty(1, 3, height, width), proposals)
            gflop["encode"] = counter.get_total_flops() / 1e9
            state = method.start(geometry, objects, memory)
            seen = [features] * len(method.sees)
            masks = Masks(torch.empty(1 + objects, height, width))
            prompted = dataclasses.replace(masks, prompted=tuple(range(objects)))
            for _ in range(memory_frames if method.keeps_frames else 1):
                method.remember(seen, prompted, state)
            with FlopCounterMode(display=False) as counter:
                scores = method.segment(seen, state)
            gflop["segment"] = counter.get_total_flops() / 1e9
            masks = dataclasses.replace(masks, aux=scores.aux)
            with FlopCounterMode(display=False) as counter:
                method.remember(seen, masks, state)
            gflop["remember"] = counter.get_total_flops() / 1e9
    parameters = sum(parameter.numel() for parameter in method.parameters())
    return Cost(
        parameters=parameters,
        gflop=gflop,
        weights_bytes=parameters * bytes_per_number,
        features_bytes=sum(tensor.numel() for tensor in tensors_in(features)) * bytes_per_number,
        memory_bytes=memory_bytes * bytes_per_number // 4,
        memory_frames=memory_frames if method.keeps_frames else 0,
        network_size=geometry.network,
    )
