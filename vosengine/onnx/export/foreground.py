"""IMCNet as graphs: features of a frame, and foreground from the features of several frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...models.imcnet import IMCNet, IMCNetFeatures
from .verb import Plan, Verb, VerbInput

POLICY = "foreground"


def settings(method: IMCNet, plan: Plan) -> dict[str, Any]:
    """Settings of the policy: the logits' stride."""
    return {"stride": 1}


class Encode(nn.Module):
    """prepared -> features."""

    def __init__(self, method: IMCNet) -> None:
        super().__init__()
        self.method = method

    def forward(self, prepared: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.method.encode(prepared))


class Segment(nn.Module):
    """Features of all frames in `sees`, frame by frame -> logits."""

    def __init__(self, method: IMCNet) -> None:
        super().__init__()
        self.method = method

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        count = len(IMCNetFeatures._fields)
        frames = [IMCNetFeatures(*tensors[i : i + count]) for i in range(0, len(tensors), count)]
        state: Any = None
        return self.method.segment(frames, state).logits.float()


def verbs(method: IMCNet, plan: Plan) -> list[Verb]:
    """The graphs encode and segment; the model has no memory."""
    stride = plan.multiple
    pixels = {2: f"{stride}*h", 3: f"{stride}*w"}
    prepared = torch.rand(1, 3, *plan.network).to(method.predict.weight.dtype)
    encode = Encode(method)
    with torch.no_grad():
        features = encode(prepared)
    names, seen = IMCNetFeatures._fields, []
    for offset in method.sees:
        end, where = (f"_{offset:+d}", f"@{offset:+d}") if offset else ("", "")
        for name, x in zip(names, features, strict=True):
            axes = plan.grid(x)
            seen.append(VerbInput(name + end, f"encode.{name}{where}", x.clone(), axes))
    frame = VerbInput("prepared", "prepare.prepared", prepared, pixels)
    return [
        Verb("encode", encode, (frame,), tuple((name, "") for name in names)),
        Verb("segment", Segment(method), tuple(seen), (("logits", ""),)),
    ]
