"""GIEL as graphs: stored frames, and the support places that the next frame is read from.

The runner stores the outputs of `remember` by frame. `place` computes the values of a support frame
for every object. `segment` takes the tensors of each place as separate inputs, so that nothing is
copied between the graphs, and a mask of valid places.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ...models.giel.network import GIEL, MOST_OBJECTS, GIELFeatures, above_half, label_planes
from ...models.giel.support import Reading
from .verb import Plan, Verb, VerbInput, times

POLICY = "support"
PLACE = ("key", "values", "summary")  # inputs of `segment` per place


def settings(method: GIEL, plan: Plan) -> dict[str, Any]:
    """Settings of the policy: the logits' stride, and the selection of frames."""
    config = method.config
    return {
        "stride": 4,
        "stored_frames": config.stored_frames,
        "support": config.support,
        "sampling": config.sampling,
    }


def as_features(frame: Any, tensors: tuple[torch.Tensor, ...]) -> GIELFeatures:
    """Convert outputs of `encode` to features: key, value, and skips of one or two decoders."""
    key, value, *skips = tensors
    return GIELFeatures(frame, key, value, (skips[0], skips[1]), tuple(skips[2:]))


class Encode(nn.Module):
    """prepared -> key, value, skips."""

    def __init__(self, method: GIEL) -> None:
        super().__init__()
        self.method = method

    def forward(self, prepared: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.method.encode(prepared)
        return features.key, features.value, *features.global_skips, *features.instance_skips


class Segment(nn.Module):
    """features, alive, valid, and the tensors of all places, place by place -> logits, saliency.

    `alive` is not used: the number of objects is that of the values, which have one more row.
    """

    def __init__(self, method: GIEL) -> None:
        super().__init__()
        self.method = copy(method)  # the same weights
        self.method.config = replace(method.config, group=MOST_OBJECTS)
        self.per_place = len(PLACE)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = self.per_place * self.method.config.support
        *features, _, valid = tensors[:-count]
        places = tensors[-count:]
        keys, values, summaries = (places[i :: self.per_place] for i in range(self.per_place))
        reading: Any = Reading(
            torch.stack(keys).flatten(1, 2),
            torch.stack(values, dim=1).flatten(2, 3),
            torch.stack(summaries),
            valid,
        )
        state: Any = SimpleNamespace(read=lambda: reading)
        output = self.method.segment([as_features(None, tuple(features))], state)
        return output.logits.float(), output.aux.saliency


class Remember(nn.Module):
    """prepared, masks, and the features that `stored` takes -> tensors to store for the frame."""

    def __init__(self, method: GIEL) -> None:
        super().__init__()
        self.method = method

    def forward(
        self,
        prepared: torch.Tensor,
        masks: torch.Tensor,
        *others: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        labels = masks.argmax(dim=0)
        mask = labels > 0
        names = self.method.observes
        taken = dict(zip(names, others, strict=False))
        if self.method.config.support_mask == "global":
            prompted, saliency = others[len(names) :]
            has_prompt = prompted.any()
            mask = (mask & has_prompt) | (above_half(saliency) & ~has_prompt)
        kind: Any = self.method.features
        features = kind(prepared, *[None] * (len(kind._fields) - 1))._replace(**taken)
        stored = self.method.stored(features, labels, mask)
        stride = self.method.config.key_stride
        grid = prepared.shape[2] // stride, prepared.shape[3] // stride
        key, value = (x.unflatten(0, grid) for x in (stored.key, stored.value))
        return key, value, stored.labels, stored.summary


class Place(nn.Module):
    """Stored tensors of a frame -> its values for all objects together, then for each."""

    def __init__(self, method: GIEL) -> None:
        super().__init__()
        self.method = method

    def forward(
        self, value: torch.Tensor, labels: torch.Tensor, alive: torch.Tensor
    ) -> torch.Tensor:
        planes = label_planes(labels, torch.arange(alive.shape[0]))
        instances = self.method.embedded(value.flatten(0, 1), planes)
        return torch.cat((value[None], instances.unflatten(1, value.shape[:2])))


def verbs(method: GIEL, plan: Plan) -> list[Verb]:
    """The graphs encode, segment, remember and place."""
    return Sketch(method, plan).verbs()


class Sketch:
    """Example tensors at a plan's sizes, with their axes."""

    def __init__(self, method: GIEL, plan: Plan) -> None:
        self.method = method
        self.plan = plan
        self.dtype = method.query_head.key.weight.dtype
        finer = plan.multiple // method.config.key_stride
        self.side = finer * plan.cells[0], finer * plan.cells[1]
        self.cells = times(finer, "h"), times(finer, "w")
        self.pixels = f"{plan.multiple}*h", f"{plan.multiple}*w"
        self.values = method.config.value_channels + method.config.read_masks

    def map(self, channels: int) -> torch.Tensor:
        """A random map [h, w, C]."""
        return torch.rand(*self.side, channels).to(self.dtype)

    def frame(self) -> VerbInput:
        prepared = torch.rand(1, 3, *self.plan.network).to(self.dtype)
        axes = {2: self.pixels[0], 3: self.pixels[1]}
        return VerbInput("prepared", "prepare.prepared", prepared, axes)

    def verbs(self) -> list[Verb]:
        encode, frame = Encode(self.method), self.frame()
        with torch.no_grad():
            example = encode(frame.example)
        names = ["key", "value", "skip3", "skip2", "instance_skip3", "instance_skip2"]
        names = names[: len(example)]
        features = [
            VerbInput(name, f"encode.{name}", x, self.plan.grid(x))
            for name, x in zip(names, example, strict=True)
        ]
        valid = torch.arange(self.method.config.support) < self.method.config.support - 1
        places = [
            VerbInput("valid", "caller.valid", valid, {}),
            *(tensor for i in range(len(valid)) for tensor in self.place_inputs(i)),
        ]
        outputs = ("logits", ""), ("saliency", "")
        stored = tuple((name, "") for name in ("key", "value", "labels", "summary"))
        return [
            Verb("encode", encode, (frame,), tuple((name, "") for name in names)),
            Verb("segment", Segment(self.method), (*features, self.alive(), *places), outputs),
            Verb("remember", Remember(self.method), self.remember_inputs(features), stored),
            Verb("place", Place(self.method), self.stored_inputs(), (("values", ""),)),
        ]

    def place_inputs(self, place: int) -> list[VerbInput]:
        keys, rows = self.method.config.key_channels, 1 + self.plan.objects
        values = torch.rand(rows, *self.side, self.values).to(self.dtype)
        height, width = self.cells
        examples: dict[str, tuple[torch.Tensor, dict[int, str]]] = {
            "key": (self.map(keys), {0: height, 1: width}),
            "values": (values, {0: "1+objects", 1: height, 2: width}),
            "summary": (torch.rand(keys).to(self.dtype), {}),
        }
        return [
            VerbInput(f"{name}_{place}", f"state.{name}_{place}", x, axes)
            for name, (x, axes) in examples.items()
        ]

    def remember_inputs(self, features: list[VerbInput]) -> tuple[VerbInput, ...]:
        height, width = self.plan.network
        masks = torch.rand(1 + self.plan.objects, height, width)
        axes = {0: "1+objects", 1: self.pixels[0], 2: self.pixels[1]}
        observed = [  # inputs must not have the names of outputs
            replace(feature, name=f"seen_{feature.name}")
            for feature in features
            if feature.name in self.method.observes
        ]
        inputs = self.frame(), VerbInput("masks", "finish.masks", masks, axes), *observed
        if self.method.config.support_mask != "global":
            return inputs
        prompted = torch.zeros(self.plan.objects, dtype=torch.bool)
        saliency = torch.ones(1, height // 4, width // 4)  # not near the threshold
        saliency[:, :, width // 8 :] = -1
        grid = {1: self.pixels[0], 2: self.pixels[1]}
        quarter = {axis: times(self.plan.multiple // 4, name[-1]) for axis, name in grid.items()}
        return (
            *inputs,
            VerbInput("prompted", "caller.prompted", prompted, {0: "objects"}),
            VerbInput("saliency", "segment.saliency", saliency.to(self.dtype), quarter),
        )

    def stored_inputs(self) -> tuple[VerbInput, ...]:
        most = 1 + self.plan.objects
        labels = torch.randint(most, self.plan.network, dtype=torch.uint8)
        value = dict(enumerate(self.cells))
        return (
            VerbInput("value", "remember.value", self.map(self.values), value),
            VerbInput("labels", "remember.labels", labels, dict(enumerate(self.pixels))),
            self.alive(),
        )

    def alive(self) -> VerbInput:
        rows = torch.ones(self.plan.objects, dtype=torch.bool)
        return VerbInput("alive", "caller.alive", rows, {0: "objects"})
