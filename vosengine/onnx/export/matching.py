"""STM and MUNet as graphs, with a memory bank per object."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ...config import MemoryConfig
from ...memory import Stored
from ...models.blocks import JoinedState
from ...models.munet import MUNet
from ...models.stm import STM
from ...types import Masks
from .verb import Plan, Traced, Verb, VerbInput, encode_verb, memory_of, times, write_slot


def encode(method: STM | MUNet, prepared: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """prepared -> features."""
    return tuple(method.encode(prepared))[1:]


def segment(method: STM | MUNet, *tensors: torch.Tensor) -> torch.Tensor:
    """features, memory -> logits."""
    *features, keys, values, length = tensors
    cells = keys.shape[2] * keys.shape[3]
    stored = Stored(keys.flatten(1, 3), values.flatten(1, 3), length * cells)
    state: Any = JoinedState(stored, keys.shape[0])
    return method.segment(_seen(method, features), state).logits.float()


def _seen(method: STM | MUNet, features: list[torch.Tensor]) -> list[Any]:
    kind: Any = method.features
    if isinstance(method, STM):
        return [kind(None, *features)]
    before, *now = features
    empty = [None] * len(kind._fields)
    return [kind(*empty)._replace(reduced=before), kind(None, *now)]


def remember(
    memory: MemoryConfig,
    method: STM | MUNet,
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
    """prepared, masks, memory, and the features that `observe` takes -> updated memory."""
    kind: Any = method.features
    taken = dict(zip(method.observes, observed_from, strict=True))
    features = kind(prepared, *[None] * (len(kind._fields) - 1))._replace(**taken)
    state: Any = None
    observed = method.observe([features], Masks(masks), state)
    assert observed is not None
    key, value = (x.movedim(1, 3)[:, None] for x in observed)  # [O, 1, h, w, C]
    keep = prompted | (frame_index % memory.every == 0)
    held = keys, values, length, cursor
    return write_slot(memory, (key, value), held, keep, alive | prompted)


POLICY = "memory"


def settings(method: STM | MUNet, plan: Plan) -> dict[str, Any]:
    """Settings of the policy: the logits' stride, and the memory's frames."""
    memory = memory_of(method.config, plan)
    return {"stride": 4, "every": memory.every, "frames": memory.max_frames}


def verbs(method: STM | MUNet, plan: Plan) -> list[Verb]:
    """The graphs encode, segment and remember."""
    config, objects, frames = method.config, plan.objects, plan.frames
    dtype = method.query_head.key.weight.dtype
    (height, width), finer = plan.cells, plan.multiple // config.key_stride
    names = method.features._fields[1:]
    frame = plan.frame(dtype)
    encoder, features = encode_verb(plan, frame, Traced(method, encode), names)
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
    remembered = [
        *(frame, plan.masks(), plan.flags("alive"), plan.flags("prompted"), plan.frame_index()),
        *memory,
        VerbInput("cursor", "state.cursor", torch.full((objects,), frames - 1), {0: "objects"}),
        *(features[names.index(name)] for name in method.observes),
    ]
    kept = [(f"{name}_out", f"state.{name}") for name in ("keys", "values", "length", "cursor")]
    update = Traced(method, partial(remember, memory_of(config, plan)))
    return [
        encoder,
        Verb("segment", Traced(method, segment), (*seen, *memory), (("logits", ""),)),
        Verb("remember", update, tuple(remembered), tuple(kept)),
    ]
