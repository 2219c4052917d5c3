"""What `start_gently` makes of the networks on a pretrained backbone that have starts of their own.
Those of `stm` and its kin are in test_small_options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vosengine.config import LITE
from vosengine.models.blocks import ResBlock
from vosengine.training.initialise import start_gently
from vosengine.zoo.registry import build


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def started(model: str, gently: bool) -> Any:
    method = build(model, LITE[model], 0)
    if gently:
        start_gently(method)
    return method


def gates_of(method: Any) -> torch.Tensor:
    """The gates that the decoder of `imcnet` predicts for three frames of noise."""
    with torch.no_grad():
        features = method.encode(torch.randn(3, 3, 64, 96, generator=seeded(0)))
        attention = method.affinity(features.key[None], features.r5[None]).flatten(0, 1)
        _, gates = method.propagation(features[:4], attention)
    return torch.cat([gate.flatten() for gate in gates[1:]])


@torch.no_grad()
def test_imcnet_starts_with_residual_blocks_that_add_nothing() -> None:
    method = started("imcnet", True)
    blocks = [module for module in method.modules() if isinstance(module, ResBlock)]
    same = [block for block in blocks if block.conv1.in_channels == block.conv2.out_channels]
    x = torch.randn(1, 48, 8, 8, generator=seeded(1))
    assert len(same) > 5
    assert all(torch.equal(block(x), x) for block in same)


def test_imcnet_starts_with_open_gates() -> None:
    assert (gates_of(started("imcnet", True)) - 0.5).abs().max() < 0.1
    assert (gates_of(started("imcnet", False)) - 0.5).abs().max() > 0.4


@pytest.mark.parametrize("gently", [True, False])
def test_dmn_aoa_starts_with_rotations_of_its_backbones_features(gently: bool) -> None:
    method = started("dmn_aoa", gently)
    reductions = [reduce[0] for reduce in method.base.reductions]
    for conv in (*reductions, method.refine.align):
        weight = conv.weight.detach().flatten(1)
        products = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
        distance = float((products - torch.eye(len(products))).abs().max())
        assert distance < 1e-5 if gently else distance > 0.5
