"""Options of small configurations: finer keys, distances, masks read from memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import follow, make, tiny_config
from torch.nn import functional

from vosengine.config import SMALL, MemoryConfig
from vosengine.memory import make_memory
from vosengine.models.backbone import ResNet
from vosengine.models.blocks import carried, read_objects, with_masks
from vosengine.models.giel.network import GIEL
from vosengine.training.initialise import start_gently
from vosengine.training.synthetic import Clip
from vosengine.types import Geometry, Masks
from vosengine.zoo.registry import build

FULL = {"norm": "group", "read_masks": True, "key_stride": 8, "similarity": "l2"}


def test_distances_decide_what_is_read() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = make_memory(
        MemoryConfig(max_frames=3),
        groups=2,
        positions=6,
        key_channels=4,
        value_channels=5,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    keys = 2 * torch.randn(2, 2, 6, 4, generator=generator)
    values = torch.randn(2, 2, 6, 5, generator=generator)
    for frame in range(2):
        memory.write(keys[frame], values[frame], [True, True])
    key, value = torch.randn(1, 4, 2, 3, generator=generator), torch.zeros(1, 3, 2, 3)
    result = read_objects(key, value, memory.read(2), 2, "l2")
    query = key[0].flatten(1).T.double().numpy()
    for slot in range(2):
        stored = keys[:, slot].reshape(12, 4).double().numpy()
        distance = ((query[:, None] - stored[None]) ** 2).sum(axis=2)
        weights = np.exp(-distance / 4**0.5)
        weights /= weights.sum(axis=1, keepdims=True)
        wanted = weights @ values[:, slot].reshape(12, 5).double().numpy()
        np.testing.assert_allclose(result[slot, :5].flatten(1).T, wanted, rtol=1e-4, atol=1e-5)
    assert result.shape == (2, 8, 2, 3)


def test_the_memory_holds_the_share_of_every_cell() -> None:
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., :4, :8] = 1
    value = with_masks(torch.ones(1, 3, 2, 2), masks)
    assert value[0, :3].eq(1).all()
    assert value[0, 3].tolist() == [[0.5, 0.0], [0.0, 0.0]]


def test_what_was_read_is_where_logits_start() -> None:
    read = torch.tensor([[[0.0, 1.0], [0.25, 0.5]]])
    start = carried(torch.zeros(1, 2, 2), read)
    limits = np.log(0.02 / 0.98)
    torch.testing.assert_close(
        start, torch.tensor([[[limits, -limits], [np.log(0.25 / 0.75), 0.0]]]).float()
    )
    torch.testing.assert_close(carried(torch.ones(1, 2, 2), read), start + 1)


def test_finer_keys_join_two_strides() -> None:
    torch.manual_seed(0)
    network = ResNet("resnet18", 8, norm="group", key_stride=8)
    plain = ResNet("resnet18", 8, norm="group")
    plain.load_state_dict(network.state_dict(), strict=False)
    frame = torch.randn(1, 3, 64, 96)
    fine, coarse = network(frame), plain(frame)
    torch.testing.assert_close(fine.r3, coarse.r3)
    assert network.fuse is not None
    above = functional.interpolate(
        network.fuse.conv4(coarse.r4), scale_factor=2, mode="bilinear", align_corners=False
    )
    wanted = functional.relu(network.fuse.norm(network.fuse.conv3(coarse.r3) + above))
    torch.testing.assert_close(fine.r4, wanted)
    assert fine.r4.shape == (1, 32, 8, 12)


def test_group_norms_know_no_batch() -> None:
    torch.manual_seed(0)
    network = ResNet("resnet18", 12, norm="group").train()
    frames = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(
        network(frames).r4[1:2], network(frames[1:2]).r4, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("model", ["stm", "munet", "giel"])
def test_a_mask_is_read_as_any_value(model: str) -> None:
    """A repeated frame gets its own mask back if keys distinguish cells."""
    method = build(model, tiny_config(model, **FULL))
    start_gently(method)  # query and memory look for the same things
    frame = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    geometry = Geometry.fit((64, 64), size=None, multiple=16)
    state = method.start(geometry, 1)
    mask = torch.zeros(64, 64)
    mask[8:40, 16:64] = 1
    probabilities = torch.stack((1 - mask, mask))
    window = [method.encode(frame)] * len(method.sees)
    method.remember(window, Masks(probabilities, (0,)), state)
    aux = method.segment(window, state).aux
    read = aux.read[1:] if isinstance(method, GIEL) else aux
    share = functional.adaptive_avg_pool2d(mask[None, None], 8)[0]
    assert read.shape == share.shape
    assert (
        torch.corrcoef(torch.stack((read.flatten(), share.flatten())))[0, 1] > 0.4
    )  # unsure, but right


@pytest.mark.parametrize("model", ["stm", "munet", "giel"])
def test_streams_of_small_options_can_be_saved(model: str, small: Clip, tmp_path: Any) -> None:
    whole = make(model, changes=FULL)
    results = follow(whole, small.frames[:6], small.masks[0])
    first, second = make(model, changes=FULL), make(model, changes=FULL)
    follow(first, small.frames[:3], small.masks[0])
    first.save_state(tmp_path / "stream.safetensors")
    second.load_state(tmp_path / "stream.safetensors")
    for frame, wanted in zip(small.frames[3:6], results[3:], strict=True):
        answer = second.step(frame)
        assert answer is not None
        np.testing.assert_array_equal(answer.numpy(), wanted.numpy())


@pytest.mark.parametrize("model", sorted(SMALL))
def test_the_paper_has_none_of_it(model: str) -> None:
    config = type(SMALL[model])()
    assert config.norm == "batch"
    for name, value in (("key_stride", 16), ("similarity", "dot"), ("read_masks", False)):
        assert getattr(config, name, value) == value
