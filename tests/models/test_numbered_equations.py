"""GIEL's equations 3 to 12 and DMN-AOA's 1 to 3 in float64 numpy, each from the step before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

import vosengine.models.dmn_aoa.network as dmn_module
from vosengine.kernels import align_object
from vosengine.models.dmn_aoa.network import DMNAOA
from vosengine.models.giel.network import GIEL
from vosengine.proposals import Proposals, boxes_of
from vosengine.types import Geometry, Masks
from vosengine.zoo.registry import build

SIZE = 48, 64
GEOMETRY = Geometry.fit(SIZE, size=None, multiple=16)
Array = np.ndarray


def conv(weights: dict[str, Array], name: str, x: Array, stride: int = 1) -> Array:
    """A convolution [C, h, w] that pads by half of its size."""
    kernel = weights[f"{name}.weight"]
    half = kernel.shape[2] // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half)))
    windows = sliding_window_view(padded, kernel.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    out = np.einsum("chwij,ocij->ohw", windows, kernel)
    bias = weights.get(f"{name}.bias")
    return out if bias is None else out + bias[:, None, None]


def norm(weights: dict[str, Array], name: str, x: Array) -> Array:
    kinds = ("weight", "bias", "running_mean", "running_var")
    gain, shift, mean, variance = (weights[f"{name}.{kind}"][:, None, None] for kind in kinds)
    return gain * (x - mean) / np.sqrt(variance + 1e-5) + shift


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array, axis: int) -> Array:
    odds = np.exp(x - x.max(axis=axis, keepdims=True))
    return odds / odds.sum(axis=axis, keepdims=True)


def enlarged(x: Array, factor: int) -> Array:
    """Bilinear, half-pixel centres: [C, h, w] -> [C, factor h, factor w]."""
    for axis in (1, 2):
        length = x.shape[axis]
        at = np.clip((np.arange(factor * length) + 0.5) / factor - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, length - 1), at - low
        share = share[:, None] if axis == 1 else share
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def residual(weights: dict[str, Array], name: str, x: Array) -> Array:
    return x + conv(weights, f"{name}.conv2", relu(conv(weights, f"{name}.conv1", relu(x))))


def decoder(weights: dict[str, Array], name: str, x: Array, r3: Array, r2: Array) -> Array:
    x = residual(weights, f"{name}.block4", conv(weights, f"{name}.conv", x))
    for level, skip in ((3, r3), (2, r2)):
        side = conv(weights, f"{name}.skip{level}.conv", skip)
        side = residual(weights, f"{name}.skip{level}.block", side)
        x = residual(weights, f"{name}.block{level}", side + enlarged(x, 2))
    return conv(weights, f"{name}.predict", relu(x))[0]


def rows(maps: Array) -> Array:
    """[C, h, w] -> [h w, C]"""
    return maps.reshape(len(maps), -1).T


def weights_of(method: torch.nn.Module) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in method.state_dict().items()}


def masks_of(objects: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1 + objects, 1, 6, 8, generator=generator)
    planes = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")[:, 0]
    return (4 * planes).softmax(dim=0).double()


def near(actual: Tensor | Array, wanted: Array) -> None:
    assert np.std(wanted) > 0
    np.testing.assert_allclose(np.asarray(actual), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variant", ["full", "fast"])
@torch.no_grad()
def test_giel(variant: str) -> None:
    method = build("giel", tiny_config("giel", variant=variant, temporal="none")).double()
    assert isinstance(method, GIEL)
    w, objects = weights_of(method), 2
    frames = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0)).double()
    state = method.start(GEOMETRY, objects)
    keys, values, labelled = [], [], []
    for index in range(2):
        soft = masks_of(objects, index)
        method.remember([method.encode(frames[index : index + 1])], Masks(soft, (0, 1)), state)
        labels = soft.argmax(dim=0).numpy()
        union = torch.from_numpy(labels > 0)[None, None].double()
        support = method.support_encoder(frames[index : index + 1], union).r4[0].numpy()
        keys.append(rows(conv(w, "query_head.key", support)))  # equation 3
        values.append(rows(conv(w, "query_head.value", support)))
        labelled.append(labels)
    near(state.keys[:2], np.stack(keys))
    near(state.values[0, :2], np.stack(values))
    now = method.encode(frames[2:])
    r2, r3, r4, _ = (x if x is None else x[0].numpy() for x in method.query_encoder(frames[2:]))
    query, value = (rows(conv(w, f"query_head.{part}", r4)) for part in ("key", "value"))
    near(now.key[0].flatten(1).T, query)
    affinity = softmax(np.concatenate(keys) @ query.T / np.sqrt(8), axis=0)  # equation 4
    everything = np.concatenate((value, affinity.T @ np.concatenate(values)), axis=1)  # equation 5

    def maps(x: Array) -> Array:
        return x.T.reshape(-1, *GEOMETRY.cells(16))

    saliency = decoder(w, "global_decoder", maps(everything), r3, r2)  # equation 6
    result = method.segment([now], state)
    near(result.aux.saliency[0], saliency)
    for slot in range(objects):
        instance = []
        for labels, own in zip(labelled, values, strict=True):
            image = np.stack((labels == 1 + slot, (labels != 1 + slot) & (labels > 0), labels == 0))
            hidden = relu(norm(w, "label_encoder.bn1", conv(w, "label_encoder.conv1", image, 4)))
            embedded = norm(w, "label_encoder.bn2", conv(w, "label_encoder.conv2", hidden, 4))
            instance.append(own * rows(embedded))  # equations 7 and 8
        near(state.values[1 + slot, :2], np.stack(instance))
        own = maps(np.concatenate((value, affinity.T @ np.concatenate(instance)), axis=1))  # 9
        if variant == "fast":
            coarse = conv(w, "coarse.2", relu(conv(w, "coarse.0", own)))  # equation 10
            instance_map = enlarged(coarse, 4)[0]
        else:
            instance_map = decoder(w, "instance_decoder", own, r3, r2)  # equation 12
        final = sigmoid(instance_map) * sigmoid(saliency)  # equation 11
        near(result.logits[slot].sigmoid(), final)


@torch.no_grad()
def test_dmn_aoa(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("dmn_aoa", tiny_config("dmn_aoa", proposal_overlap=1.0)).double()
    assert isinstance(method, DMNAOA)
    frames = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0)).double()
    state = method.start(GEOMETRY, 2)
    for index in range(2):
        features = method.encode(frames[index : index + 1])
        method.remember([features], Masks(masks_of(2, index)), state)
    masks = torch.zeros(4, *SIZE, dtype=torch.bool)
    for number, mask in enumerate(masks):
        mask[4 + 8 * number : 18 + 8 * number, 3 + 10 * number : 25 + 10 * number] = True
    proposals = Proposals(boxes_of(masks), masks, torch.linspace(1, 0.5, 4))
    now = method.encode(frames[2:], [proposals])
    calls: list[tuple[Any, ...]] = []
    real = dmn_module.read_memory

    def spy(query: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
        calls.append((query, keys, values, options, real(query, keys, values, **options)))
        return calls[-1][-1]

    monkeypatch.setattr(dmn_module, "read_memory", spy)
    templates = method.templates(now, state)
    query, keys, values, options, outputs = calls[0]
    for slot in range(2):  # equation 1; Ck = C / 4
        end = int(options["length"][slot])
        pages = options["pages"][slot].long()
        k, v = (x[pages].flatten(0, 1)[:end].numpy() for x in (keys, values))
        scores = query[slot].numpy() @ k.T / np.sqrt(k.shape[1])
        near(outputs[slot], softmax(scores, axis=1) @ v)
    projected = now.candidates[0].projected
    for slot in range(2):
        for number in range(4):
            t, p = templates[slot].numpy(), projected[number].numpy()
            unit_t, unit_p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (t, p))
            share = softmax(100 * unit_t @ unit_p.T, axis=1)  # equation 2
            moved = share @ p  # equation 3
            cosine = (unit_t * moved).sum(axis=1) / np.linalg.norm(moved, axis=1)
            score, translated = align_object(
                templates[slot : slot + 1], projected[number : number + 1], translate=True
            )
            near(translated[0, 0], moved)
            assert float(score) == pytest.approx(cosine.mean(), abs=1e-9)
    found_scores = method.match(templates, now.candidates[0], state).similarity
    assert found_scores.shape == (2, 4)
    assert float(found_scores[1, 3]) == pytest.approx(cosine.mean(), abs=1e-9)
