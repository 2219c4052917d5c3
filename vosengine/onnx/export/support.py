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

from ...models.giel.network import GIEL, MOST_OBJECTS, GIELFeatures, above_half, label_planes
from ...models.giel.support import Reading
from .verb import Plan, Traced, Verb, VerbInput, encode_verb, times

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


def encode(method: GIEL, prepared: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """prepared -> key, value, skips."""
    features = method.encode(prepared)
    return features.key, features.value, *features.global_skips, *features.instance_skips


def segment(method: GIEL, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """features, alive, valid, and the tensors of all places, place by place -> logits, saliency.

    `alive` is not used: the number of objects is that of the values, which have one more row.
    """
    count, each = len(PLACE) * method.config.support, len(PLACE)
    *features, _, valid = tensors[:-count]
    places = tensors[-count:]
    keys, values, summaries = (places[i::each] for i in range(each))
    reading: Any = Reading(
        torch.stack(keys).flatten(1, 2),
        torch.stack(values, dim=1).flatten(2, 3),
        torch.stack(summaries),
        valid,
    )
    state: Any = SimpleNamespace(read=lambda: reading)
    output = method.segment([as_features(None, tuple(features))], state)
    return output.logits.float(), output.aux.saliency


def remember(
    method: GIEL, prepared: torch.Tensor, masks: torch.Tensor, *others: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """prepared, masks, and the features that `stored` takes -> tensors to store for the frame."""
    labels = masks.argmax(dim=0)
    mask = labels > 0
    names = method.observes
    taken = dict(zip(names, others, strict=False))
    if method.config.support_mask == "global":
        prompted, saliency = others[len(names) :]
        has_prompt = prompted.any()
        mask = (mask & has_prompt) | (above_half(saliency) & ~has_prompt)
    kind: Any = method.features
    features = kind(prepared, *[None] * (len(kind._fields) - 1))._replace(**taken)
    stored = method.stored(features, labels, mask)
    stride = method.config.key_stride
    grid = prepared.shape[2] // stride, prepared.shape[3] // stride
    key, value = (x.unflatten(0, grid) for x in (stored.key, stored.value))
    return key, value, stored.labels, stored.summary


def place(
    method: GIEL, value: torch.Tensor, labels: torch.Tensor, alive: torch.Tensor
) -> torch.Tensor:
    """Stored tensors of a frame -> its values for all objects together, then for each."""
    planes = label_planes(labels, torch.arange(alive.shape[0]))
    instances = method.embedded(value.flatten(0, 1), planes)
    return torch.cat((value[None], instances.unflatten(1, value.shape[:2])))


def verbs(method: GIEL, plan: Plan) -> list[Verb]:
    """The graphs encode, segment, remember and place."""
    config, dtype = method.config, method.query_head.key.weight.dtype
    frame, alive = plan.frame(dtype), plan.flags("alive")
    names = "key", "value", "skip3", "skip2", "instance_skip3", "instance_skip2"
    encoder, features = encode_verb(plan, frame, Traced(method, encode), names)
    reader = copy(method)  # the same weights
    reader.config = replace(config, group=MOST_OBJECTS)
    valid = torch.arange(config.support) < config.support - 1
    read = (
        *(*features, alive, VerbInput("valid", "caller.valid", valid, {})),
        *(tensor for i in range(config.support) for tensor in _place_inputs(method, plan, i)),
    )
    seen = _remember_inputs(method, plan, features)
    stored = _map(method, plan, config.value_channels + config.read_masks)
    labels = torch.randint(1 + plan.objects, plan.network, dtype=torch.uint8)
    shown = (
        VerbInput("value", "remember.value", stored, _axes(method, plan, 0)),
        VerbInput("labels", "remember.labels", labels, plan.pixels(0)),
        alive,
    )
    outputs = tuple((name, "") for name in ("key", "value", "labels", "summary"))
    return [
        encoder,
        Verb("segment", Traced(reader, segment), read, (("logits", ""), ("saliency", ""))),
        Verb("remember", Traced(method, remember), (frame, plan.masks(), *seen), outputs),
        Verb("place", Traced(method, place), shown, (("values", ""),)),
    ]


def _map(method: GIEL, plan: Plan, channels: int, *rows: int) -> torch.Tensor:
    """A random map [*rows, h, w, channels] at the keys' stride."""
    finer = plan.multiple // method.config.key_stride
    side = finer * plan.cells[0], finer * plan.cells[1]
    return torch.rand(*rows, *side, channels).to(method.query_head.key.weight.dtype)


def _axes(method: GIEL, plan: Plan, axis: int) -> dict[int, str]:
    """The dynamic axes of such a map, from `axis` on."""
    finer = plan.multiple // method.config.key_stride
    return {axis: times(finer, "h"), axis + 1: times(finer, "w")}


def _place_inputs(method: GIEL, plan: Plan, place: int) -> list[VerbInput]:
    config = method.config
    key = _map(method, plan, config.key_channels)
    values = _map(method, plan, config.value_channels + config.read_masks, 1 + plan.objects)
    examples: dict[str, tuple[torch.Tensor, dict[int, str]]] = {
        "key": (key, _axes(method, plan, 0)),
        "values": (values, {0: "1+objects", **_axes(method, plan, 1)}),
        "summary": (torch.rand(config.key_channels).to(key.dtype), {}),
    }
    return [
        VerbInput(f"{name}_{place}", f"state.{name}_{place}", x, axes)
        for name, (x, axes) in examples.items()
    ]


def _remember_inputs(method: GIEL, plan: Plan, features: list[VerbInput]) -> list[VerbInput]:
    """The features that `stored` takes; and for the mask "global" which objects the prompt shows,
    and the saliency."""
    observed = [  # inputs must not have the names of outputs
        replace(feature, name=f"seen_{feature.name}")
        for feature in features
        if feature.name in method.observes
    ]
    if method.config.support_mask != "global":
        return observed
    height, width = plan.network
    prompted = replace(plan.flags("prompted"), example=torch.zeros(plan.objects, dtype=torch.bool))
    saliency = torch.ones(1, height // 4, width // 4)  # not near the threshold
    saliency[:, :, width // 8 :] = -1
    quarter = {1: times(plan.multiple // 4, "h"), 2: times(plan.multiple // 4, "w")}
    example = saliency.to(method.query_head.key.weight.dtype)
    return [*observed, prompted, VerbInput("saliency", "segment.saliency", example, quarter)]
