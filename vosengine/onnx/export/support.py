"""GIEL as graphs: frames in a store, and the places that the next one is read from.

The store is the runner's: what `remember` gives, by frame. What the frames in the places look like
to every object, `place` gives; `segment` takes each place's tensors by themselves, so that nothing
is copied between the graphs, and is told which places count.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ...models.giel.network import GIEL, MOST_OBJECTS, GIELFeatures, above_half, planes_of
from ...models.giel.support import Reading
from .verb import Given, Plan, Verb, times

POLICY = "support"
PLACE = ("key", "values", "summary")  # what `segment` takes of each


def settings(method: GIEL, plan: Plan) -> dict[str, Any]:
    """The logits' stride, and how frames are chosen."""
    config = method.config
    return {
        "stride": 4,
        "stored_frames": config.stored_frames,
        "support": config.support,
        "sampling": config.sampling,
    }


def as_features(frame: Any, tensors: tuple[torch.Tensor, ...]) -> GIELFeatures:
    """The tensors of `encode` as the model has them: key, value, skips of one decoder or two."""
    key, value, *skips = tensors
    return GIELFeatures(frame, key, value, (skips[0], skips[1]), tuple(skips[2:]))


class Encode(nn.Module):
    """prepared -> key, value, skips."""

    def __init__(self, method: GIEL) -> None:
        super().__init__()
        self.method = method

    def forward(self, prepared: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.method.encode(prepared)
        return found.key, found.value, *found.global_skips, *found.instance_skips


class Segment(nn.Module):
    """features, alive, valid, and the tensors of all places, one place after the other -> logits.

    alive says how many objects there are, which the values say with all objects together.
    """

    def __init__(self, method: GIEL) -> None:
        super().__init__()
        self.method = copy(method)  # the same weights
        self.method.config = replace(method.config, group=MOST_OBJECTS)
        self.each = len(PLACE)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = self.each * self.method.config.support
        *features, _, valid = tensors[:-count]
        places = tensors[-count:]
        keys, values, summaries = (places[i :: self.each] for i in range(self.each))
        reading: Any = Reading(
            torch.stack(keys).flatten(1, 2),
            torch.stack(values, dim=1).flatten(2, 3),
            torch.stack(summaries),
            torch.zeros(1, dtype=torch.int64),  # type: ignore[arg-type]
            valid,
        )
        state: Any = SimpleNamespace(read=lambda: reading)
        found = self.method.segment([as_features(None, tuple(features))], state)
        return found.logits.float(), found.aux.saliency


class Remember(nn.Module):
    """prepared, masks, and the features that `stored` takes -> what is stored of a frame."""

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
            told = prompted.any()
            mask = (mask & told) | (above_half(saliency) & ~told)
        kind: Any = self.method.features
        features = kind(prepared, *[None] * (len(kind._fields) - 1))._replace(**taken)
        stored = self.method.stored(features, labels, mask)
        stride = self.method.config.key_stride
        grid = prepared.shape[2] // stride, prepared.shape[3] // stride
        key, value = (x.unflatten(0, grid) for x in (stored.key, stored.value))
        return key, value, stored.labels, stored.summary


class Place(nn.Module):
    """What is stored of a frame -> its values for all objects together, and for each."""

    def __init__(self, method: GIEL) -> None:
        super().__init__()
        self.method = method

    def forward(
        self, value: torch.Tensor, labels: torch.Tensor, alive: torch.Tensor
    ) -> torch.Tensor:
        planes = planes_of(labels, torch.arange(alive.shape[0]))
        instances = self.method.embedded(value.flatten(0, 1), planes)
        return torch.cat((value[None], instances.unflatten(1, value.shape[:2])))


def verbs(method: GIEL, plan: Plan) -> list[Verb]:
    """encode, segment, remember, place."""
    return Sketch(method, plan).verbs()


class Sketch:
    """Examples of every tensor at a plan's sizes, and the axes of each."""

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
        """[h, w, C]"""
        return torch.rand(*self.side, channels).to(self.dtype)

    def frame(self) -> Given:
        prepared = torch.rand(1, 3, *self.plan.network).to(self.dtype)
        axes = {2: self.pixels[0], 3: self.pixels[1]}
        return Given("prepared", "prepare.prepared", prepared, axes)

    def verbs(self) -> list[Verb]:
        encode, frame = Encode(self.method), self.frame()
        with torch.no_grad():
            seen = encode(frame.example)
        names = ["key", "value", "skip3", "skip2", "instance_skip3", "instance_skip2"][: len(seen)]
        features = [
            Given(name, f"encode.{name}", x, self.plan.grid(x))
            for name, x in zip(names, seen, strict=True)
        ]
        valid = torch.arange(self.method.config.support) < self.method.config.support - 1
        told = Given("valid", "caller.valid", valid, {})
        places = [each for i in range(len(valid)) for each in self.place_inputs(i)]
        answer = ("logits", ""), ("saliency", "")
        stored = tuple((name, "") for name in ("key", "value", "labels", "summary"))
        return [
            Verb("encode", encode, (frame,), tuple((name, "") for name in names)),
            Verb("segment", Segment(self.method), (*features, self.alive(), told, *places), answer),
            Verb("remember", Remember(self.method), self.remember_inputs(features), stored),
            Verb("place", Place(self.method), self.stored_inputs(), (("values", ""),)),
        ]

    def place_inputs(self, place: int) -> list[Given]:
        keys, rows = self.method.config.key_channels, 1 + self.plan.objects
        values = torch.rand(rows, *self.side, self.values).to(self.dtype)
        height, width = self.cells
        examples: dict[str, tuple[torch.Tensor, dict[int, str]]] = {
            "key": (self.map(keys), {0: height, 1: width}),
            "values": (values, {0: "1+objects", 1: height, 2: width}),
            "summary": (torch.rand(keys).to(self.dtype), {}),
        }
        return [
            Given(f"{name}_{place}", f"state.{name}_{place}", x, axes)
            for name, (x, axes) in examples.items()
        ]

    def remember_inputs(self, features: list[Given]) -> tuple[Given, ...]:
        height, width = self.plan.network
        masks = torch.rand(1 + self.plan.objects, height, width)
        axes = {0: "1+objects", 1: self.pixels[0], 2: self.pixels[1]}
        observed = [  # under names that no output has
            replace(each, name=f"seen_{each.name}")
            for each in features
            if each.name in self.method.observes
        ]
        given = self.frame(), Given("masks", "finish.masks", masks, axes), *observed
        if self.method.config.support_mask != "global":
            return given
        prompted = torch.zeros(self.plan.objects, dtype=torch.bool)
        saliency = torch.ones(1, height // 4, width // 4)  # nowhere near the half
        saliency[:, :, width // 8 :] = -1
        grid = {1: self.pixels[0], 2: self.pixels[1]}
        quarter = {axis: times(self.plan.multiple // 4, name[-1]) for axis, name in grid.items()}
        return (
            *given,
            Given("prompted", "caller.prompted", prompted, {0: "objects"}),
            Given("saliency", "segment.saliency", saliency.to(self.dtype), quarter),
        )

    def stored_inputs(self) -> tuple[Given, ...]:
        most = 1 + self.plan.objects
        labels = torch.randint(most, self.plan.network, dtype=torch.uint8)
        value = dict(enumerate(self.cells))
        return (
            Given("value", "remember.value", self.map(self.values), value),
            Given("labels", "remember.labels", labels, dict(enumerate(self.pixels))),
            self.alive(),
        )

    def alive(self) -> Given:
        rows = torch.ones(self.plan.objects, dtype=torch.bool)
        return Given("alive", "caller.alive", rows, {0: "objects"})
