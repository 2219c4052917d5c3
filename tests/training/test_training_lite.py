"""Training on a pretrained backbone: clips in a batch, and initial weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vosengine.commands.train import TrainOptions, train
from vosengine.config import LITE
from vosengine.memory import Stored
from vosengine.models.efficientnet import EfficientNetLite
from vosengine.models.munet import MUNet
from vosengine.training.clip_memory import ClipMemory
from vosengine.training.initialise import initialise_from, start_gently
from vosengine.training.objectives import FollowingLosses, for_clips
from vosengine.training.objectives.following import FollowingObjective
from vosengine.training.recipe import recipe_for
from vosengine.training.samples import Batch, collate
from vosengine.training.synthetic_source import SyntheticSource
from vosengine.training.trainer import Trainer
from vosengine.types import Masks
from vosengine.zoo.registry import build
from vosengine.zoo.weights import backbone_file, load, state_of

SIZE = (64, 96)
BATCHED = ("stm", "munet")


def clips(count: int, frames: int = 3) -> Batch:
    source = SyntheticSource(frames, SIZE, 5)
    return collate([source.sample(number, 0.5) for number in range(count)])


def lite(model: str, **changes: Any) -> Any:
    """A narrow network over a random backbone, as clips are trained with."""
    narrow = {"key_channels": 16, "value_channels": 16, "decoder_channels": 16}
    config = replace(LITE[model], **{**narrow, "fine_channels": 8, **changes})  # type: ignore[arg-type]
    method = build(model, for_clips(config), 0)
    start_gently(method)
    return method


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as weights/convert.py writes it, with random tensors."""
    path = tmp_path_factory.mktemp("backbone") / "lite0.safetensors"
    torch.manual_seed(3)
    save_file(state_of(EfficientNetLite("efficientnet_lite0", layer4="strided")), path)
    return path


@pytest.mark.parametrize("model", BATCHED)
@pytest.mark.slow
def test_clips_together_are_clips_one_by_one(model: str) -> None:
    """Losses of a batch are the means over its clips, and so are gradients."""
    losses = FollowingLosses(share=0.5, mean=1.0, iou=1.0, readout=0.3)
    method = lite(model)
    objective = FollowingObjective(method.requires_grad_(True), losses)
    batch = clips(3)
    frames = batch.frames

    def gradients(parts: list[Batch]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        method.zero_grad()
        total: dict[str, float] = {}
        for part in parts:
            terms = objective.losses(part, torch.Generator().manual_seed(0))
            torch.autograd.backward(torch.stack(list(terms.values())).sum() / len(parts))
            for name, loss in terms.items():
                total[name] = total.get(name, 0.0) + float(loss.detach()) / len(parts)
        grads = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        return total, grads

    together, wanted = gradients([batch])
    single = [
        Batch(frames[i : i + 1], batch.masks[i : i + 1], batch.counts[i : i + 1], ("",))
        for i in range(3)
    ]
    apart, actual = gradients(single)
    assert together == pytest.approx(apart, rel=1e-4)
    assert actual.keys() == wanted.keys()
    for name, gradient in actual.items():
        near = 1e-2 * float(wanted[name].abs().max()) + 1e-6  # convolutions round by batch size
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=near, msg=name)


def test_a_clips_others_are_those_of_its_own_clip() -> None:
    rows = torch.rand(4, 2, 2) * 0.4
    masks = Masks(rows, streams=torch.tensor([0, 0, 1]))
    torch.testing.assert_close(masks.others(), torch.stack((rows[2], rows[1], 0 * rows[3])))
    together = Masks(rows).others()
    torch.testing.assert_close(together[0], (rows[2] + rows[3]).clamp(0, 1))


def test_a_clip_memory_keeps_every_frame_in_order() -> None:
    memory = ClipMemory()
    frames = [(torch.randn(2, 3, 4), torch.randn(2, 3, 5)) for _ in range(3)]
    for key, value in frames:
        memory.write(key, value, [False, False])
    keys, values, length, pages = memory.read(2)
    assert length is None
    assert pages is None
    torch.testing.assert_close(keys, torch.cat([key for key, _ in frames], dim=1))
    torch.testing.assert_close(values, torch.cat([value for _, value in frames], dim=1))
    assert isinstance(memory.read(2), Stored)


@pytest.mark.parametrize("model", ["stm", "munet", "giel"])
def test_a_frozen_backbone_stays_as_it_was(model: str, tmp_path: Path) -> None:
    method = lite(model)
    before = {n: x.clone() for n, x in method.query_encoder.state_dict().items()}
    others = {n: p.detach().clone() for n, p in method.named_parameters()}
    recipe = replace(recipe_for(model, "lite"), size=SIZE, frames=3, batch=1, steps=2)
    trainer = Trainer(
        FollowingObjective(method, recipe.losses), recipe, tmp_path, {}, torch.device("cpu")
    )
    trainer.run([clips(1), clips(1)])
    for name, tensor in method.query_encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    moved = [n for n, p in method.named_parameters() if not torch.equal(p, others[n])]
    assert any(name.startswith("mask_encoder.") for name in moved)


def test_a_backbone_is_trained_at_its_share_of_the_rate(tmp_path: Path) -> None:
    recipe = replace(recipe_for("stm", "lite"), backbone_rate=0.1, warm_up=1, size=SIZE, frames=3)
    method = lite("stm")
    trainer = Trainer(
        FollowingObjective(method, recipe.losses), recipe, tmp_path, {}, torch.device("cpu")
    )
    before = method.query_encoder.conv1.weight.detach().clone()
    trainer.advance(clips(1))
    rates = {group["share"]: group["lr"] for group in trainer.optimiser.param_groups}
    assert rates[0.1] == pytest.approx(0.1 * rates[1.0])
    change = (method.query_encoder.conv1.weight - before).abs().max()
    assert 0 < change < 2 * rates[0.1]


def test_untrained_motion_hardly_changes_what_is_seen() -> None:
    method = lite("munet")
    assert isinstance(method, MUNet)
    semantic = torch.randn(1, 152, 4, 6)
    seen = method.motion(torch.randn(1, 3, 4, 6), semantic)
    torch.testing.assert_close(seen, semantic * (1 + torch.sigmoid(torch.tensor(-3.0))))


def test_weights_of_stm_begin_its_kin(tmp_path: Path) -> None:
    """MUNet shows one mask plane less, GIEL's decoder is given the query's value first and makes
    one logit: what STM learnt is theirs all the same."""
    path = tmp_path / "stm.safetensors"
    stm = lite("stm")
    with torch.no_grad():
        for parameter in stm.parameters():
            parameter.normal_()
    save_file({n: x.contiguous() for n, x in state_of(stm).items()}, path)
    munet, giel = lite("munet"), lite("giel")
    initialise_from(munet, path)
    initialise_from(giel, path)
    join = stm.mask_encoder.join.weight
    assert torch.equal(munet.mask_encoder.join.weight, join[:, :-1])
    assert torch.equal(
        munet.mask_encoder.mask_conv.weight, stm.mask_encoder.mask_conv.weight[:, :1]
    )
    joined = torch.randn(1, 33, 4, 6).double()  # STM: readout 16, mask 1, value 16
    skips = torch.randn(1, 16, 4, 6).double(), torch.randn(1, 8, 8, 12).double()
    wanted = stm.decoder.double()(joined, *skips)
    turned = torch.cat((joined[:, 17:], joined[:, :17]), dim=1)
    for decoder in (giel.global_decoder, giel.instance_decoder):
        torch.testing.assert_close(decoder.double()(turned, *skips), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("custom", [True, False])
@pytest.mark.slow
def test_lite_starts_from_the_backbone_that_ships_or_is_given(
    custom: bool, tmp_path: Path, backbone: Path
) -> None:
    changes = {"steps": 1, "batch": 1, "frames": 2, "size": SIZE}
    init = backbone if custom else None
    options = TrainOptions(
        "stm", tmp_path, config="lite", init=init, changes=changes, score_every=0
    )
    assert train(options).steps == 1
    card = load("stm", tmp_path / "weights.safetensors")[1]
    assert card.licence == "MIT AND Apache-2.0 (efficientnet_lite0)"
    source = init or backbone_file("efficientnet_lite0")
    assert json.loads((tmp_path / "run.json").read_text())["init"] == source.name
    wanted, trained = load_file(source), load_file(tmp_path / "weights.safetensors")
    inside = {n.removeprefix("query_encoder."): x for n, x in trained.items() if "query_enc" in n}
    assert inside  # frozen, so they are what they were, but for their dtype
    for name, tensor in inside.items():
        assert torch.equal(tensor, wanted[name].to(tensor.dtype)), name
