"""STM and MUNet as graphs, with a memory bank per object."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...config import MemoryConfig
from ...memory import Stored
from ...models.blocks import JoinedState
from ...models.munet import MUNet
from ...models.stm import STM
from ...types import Masks
from .verb import Plan, Verb, VerbInput, memory_of, times, write_slot


class Encode(nn.Module):
    """prepared -> features."""

    def __init__(self, method: STM | MUNet) -> None:
        super().__init__()
        self.method = method

    def forward(self, prepared: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.method.encode(prepared))[1:]


class Segment(nn.Module):
    """features, memory -> logits."""

    def __init__(self, method: STM | MUNet) -> None:
        super().__init__()
        self.method = method

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *features, keys, values, length = tensors
        cells = keys.shape[2] * keys.shape[3]
        stored = Stored(keys.flatten(1, 3), values.flatten(1, 3), length * cells)
        state: Any = JoinedState(stored, keys.shape[0])
        logits = self.method.segment(self._seen(features), state).logits
        return logits.float()

    def _seen(self, features: list[torch.Tensor]) -> list[Any]:
        kind: Any = self.method.features
        if isinstance(self.method, STM):
            return [kind(None, *features)]
        before, *now = features
        empty = [None] * len(kind._fields)
        return [kind(*empty)._replace(reduced=before), kind(None, *now)]


class Remember(nn.Module):
    """prepared, masks, memory, and the features that `observe` takes -> updated memory."""

    def __init__(self, method: STM | MUNet, memory: MemoryConfig) -> None:
        super().__init__()
        self.method = method
        self.memory = memory

    def forward(
        self,
        prepared: torch.Tensor,
        masks: torch.Tensor,
        alive: torch.Tensor,
        prompted: torch.Tensor,
        frame_index: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        length: torch.Tensor,
        cursor: torch.Tensor,
        *observed_from: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        kind: Any = self.method.features
        taken = dict(zip(self.method.observes, observed_from, strict=True))
        features = kind(prepared, *[None] * (len(kind._fields) - 1))._replace(**taken)
        state: Any = None
        observed = self.method.observe([features], Masks(masks), state)
        assert observed is not None
        key, value = (x.movedim(1, 3)[:, None] for x in observed)  # [O, 1, h, w, C]
        keep = prompted | (frame_index % self.memory.every == 0)
        held = keys, values, length, cursor
        return write_slot(self.memory, (key, value), held, keep, alive | prompted)


POLICY = "memory"


def settings(method: STM | MUNet, plan: Plan) -> dict[str, Any]:
    """Settings of the policy: the logits' stride, and the memory's frames."""
    memory = memory_of(method.config, plan)
    return {"stride": 4, "every": memory.every, "frames": memory.max_frames}


def verbs(method: STM | MUNet, plan: Plan) -> list[Verb]:
    """The graphs encode, segment and remember."""
    config, cells, objects, frames = method.config, plan.cells, plan.objects, plan.frames
    dtype = method.query_head.key.weight.dtype
    (height, width), finer = cells, plan.multiple // config.key_stride
    pixels = {2: f"{plan.multiple}*h", 3: f"{plan.multiple}*w"}
    prepared = torch.rand(1, 3, *plan.network).to(dtype)
    frame = VerbInput("prepared", "prepare.prepared", prepared, pixels)
    encode = Encode(method)
    with torch.no_grad():
        example = encode(prepared)
    names = list(method.features._fields[1:])
    features = [
        VerbInput(name, f"encode.{name}", x, plan.grid(x))
        for name, x in zip(names, example, strict=True)
    ]
    seen = list(features)
    if isinstance(method, MUNet):
        reduced = features[names.index("reduced")]
        before = VerbInput("before", "encode.reduced@-1", reduced.example.clone(), reduced.axes)
        seen = [before, *features]
    values = config.value_channels + config.read_masks
    side = finer * height, finer * width
    axes = {0: "objects", 1: "frames", 2: times(finer, "h"), 3: times(finer, "w")}
    bank = (objects, frames, *side)
    memory = [
        VerbInput("keys", "state.keys", torch.rand(*bank, config.key_channels).to(dtype), axes),
        VerbInput("values", "state.values", torch.rand(*bank, values).to(dtype), axes),
        VerbInput("length", "state.length", torch.full((objects,), frames), {0: "objects"}),
    ]
    masks = torch.rand(1 + objects, *prepared.shape[2:])
    flags = torch.ones(objects, dtype=torch.bool)
    rows = {0: "objects"}
    remember = [
        frame,
        VerbInput("masks", "finish.masks", masks, {0: "1+objects", 1: pixels[2], 2: pixels[3]}),
        VerbInput("alive", "caller.alive", flags, rows),
        VerbInput("prompted", "caller.prompted", flags.clone(), rows),
        VerbInput("frame_index", "caller.frame_index", torch.tensor(5), {}),
        *memory,
        VerbInput("cursor", "state.cursor", torch.full((objects,), frames - 1), rows),
        *(features[names.index(name)] for name in method.observes),
    ]
    kept = [(f"{name}_out", f"state.{name}") for name in ("keys", "values", "length", "cursor")]
    return [
        Verb("encode", encode, (frame,), tuple((name, "") for name in names)),
        Verb("segment", Segment(method), (*seen, *memory), (("logits", ""),)),
        Verb("remember", Remember(method, memory_of(config, plan)), tuple(remember), tuple(kept)),
    ]
