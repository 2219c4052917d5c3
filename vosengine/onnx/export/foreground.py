"""IMCNet as graphs: features of a frame, and foreground from the features of several frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...models.imcnet import IMCNet, IMCNetFeatures
from .verb import Plan, Traced, Verb, encode_verb

POLICY = "foreground"


def settings(method: IMCNet, plan: Plan) -> dict[str, Any]:
    """Settings of the policy: the logits' stride."""
    return {"stride": 1}


def encode(method: IMCNet, prepared: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """prepared -> features."""
    return tuple(method.encode(prepared))


def segment(method: IMCNet, *tensors: torch.Tensor) -> torch.Tensor:
    """Features of all frames in `sees`, frame by frame -> logits."""
    count = len(IMCNetFeatures._fields)
    frames = [IMCNetFeatures(*tensors[i : i + count]) for i in range(0, len(tensors), count)]
    state: Any = None
    return method.segment(frames, state).logits.float()


def verbs(method: IMCNet, plan: Plan) -> list[Verb]:
    """The graphs encode and segment; the model has no memory."""
    frame, names = plan.frame(method.predict.weight.dtype), IMCNetFeatures._fields
    encoder, features = encode_verb(plan, frame, Traced(method, encode), names)
    seen = []
    for offset in method.sees:
        end, where = (f"_{offset:+d}", f"@{offset:+d}") if offset else ("", "")
        seen += [
            replace(x, name=x.name + end, source=x.source + where, example=x.example.clone())
            for x in features
        ]
    return [encoder, Verb("segment", Traced(method, segment), tuple(seen), (("logits", ""),))]
