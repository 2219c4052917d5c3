"""Masks for photos without masks: the classifier's maps, and which masks are accepted."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vosengine.models.efficientnet import EfficientNetLite
from vosengine.shipped import mask_photos as script
from vosengine.shipped.convert import LITE_NAMES

Witness = dict[str, torch.Tensor]


def released() -> Witness:
    """The state dict of a classifier under the names of its release, with random numbers."""
    torch.manual_seed(0)
    network = script.Classifier()
    backbone: EfficientNetLite = network.backbone
    state = {
        "_conv_stem.weight": backbone.conv1.weight,
        "_conv_head.weight": network.head.weight,
        "_fc.weight": network.classify.weight[:, :, 0, 0],
        "_fc.bias": network.classify.bias,
    }
    norms = {"_bn0": backbone.bn1, "_bn1": network.norm}
    blocks = [block for stage in backbone.stages for block in stage]  # type: ignore[attr-defined]
    for number, block in enumerate(blocks):
        for attribute, release_name in LITE_NAMES.items():
            part, name = getattr(block, attribute, None), f"_blocks.{number}.{release_name}"
            if attribute.startswith("bn") and part is not None:
                norms[name] = part
            elif part is not None:
                state[f"{name}.weight"] = part.weight
    for name, norm in norms.items():
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        torch.nn.init.normal_(norm.running_mean)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = getattr(norm, part)
    return {name: x.detach().clone() for name, x in state.items()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    torch.save(released(), folder / "lite.pth")
    path = folder / "model.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.write(folder / "lite.pth", "package/models/lite.pth")
    return path


@pytest.mark.slow
def test_the_mean_of_the_maps_is_the_classifiers_answer(wheel: Path) -> None:
    network, state = script.read_classifier(wheel), released()
    frames = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        maps = network(frames)
        deep = network.backbone(frames).r5
        mean, var = state["_bn1.running_mean"], state["_bn1.running_var"]
        x = torch.einsum("oc,bchw->bohw", state["_conv_head.weight"][:, :, 0, 0], deep)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-3).sqrt()
        x = x * state["_bn1.weight"][:, None, None] + state["_bn1.bias"][:, None, None]
        pooled = x.clamp(0, 6).mean(dim=(2, 3))
        wanted = pooled @ state["_fc.weight"].T + state["_fc.bias"]
    assert maps.shape == (2, 1000, 2, 3)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_an_activation_is_stretched_over_the_photo(wheel: Path) -> None:
    network = script.read_classifier(wheel)
    photo = np.random.default_rng(0).integers(0, 256, (70, 101, 3), np.uint8)
    seen = script.activation(network, photo)
    assert seen.shape == (70, 101)
    assert (seen.min(), seen.max()) == (0, 1)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a green ground, with a little noise, and where the disc is."""
    disc = np.zeros((120, 160), np.uint8)
    cv2.circle(disc, (70, 60), 32, 1, -1)
    photo = np.where(disc[..., None] > 0, (200, 40, 40), (40, 160, 60))
    noise = np.random.default_rng(0).normal(0, 8, photo.shape)
    return np.clip(photo + noise, 0, 255).astype(np.uint8), disc > 0


def blob(x: int, y: int, radius: float) -> np.ndarray:
    """An activation that falls from 1 at (x, y)."""
    rows, columns = np.mgrid[:120, :160]
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2)).astype(np.float32)


def test_a_vague_activation_becomes_an_exact_mask() -> None:
    photo, disc = scene()
    mask = script.mask_of(photo, blob(74, 57, 26))
    assert mask is not None
    assert set(np.unique(mask)) == {0, 255}
    own = mask > 0
    assert (own & disc).sum() > 0.97 * (own | disc).sum()


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (blob(70, 60, 5), "the map is a small part of what was cut out"),
        (1 - blob(70, 60, 40), "the ground, which the border cuts"),
        (np.zeros((120, 160), np.float32), "nothing"),
    ],
)
def test_a_mask_that_the_map_does_not_bear_out_is_not_believed(seen: np.ndarray, why: str) -> None:
    assert script.mask_of(scene()[0], seen) is None, why


@pytest.mark.slow
def test_a_folder_gets_its_masks_once(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, disc = scene()
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.png"):
        cv2.imwrite(str(tmp_path / "images" / name), photo[..., ::-1])
    cv2.imwrite(str(tmp_path / "images" / "plain.png"), np.full((120, 160, 3), 90, np.uint8))
    arguments = [str(wheel), str(tmp_path)]
    # What random weights look at means nothing.
    monkeypatch.setattr(script, "activation", lambda network, photo: blob(74, 57, 26))
    assert script.main(arguments) == 0
    assert "masks for 2 of 3 photos" in capsys.readouterr().out
    masks = sorted((tmp_path / "masks").iterdir())
    assert [path.name for path in masks] == ["a.png", "b.png"]
    own = cv2.imread(str(masks[1]), cv2.IMREAD_GRAYSCALE) > 0
    assert (own & disc).sum() > 0.97 * (own | disc).sum()
    assert script.main(arguments) == 1
    assert "exists already" in capsys.readouterr().err


def test_what_is_no_folder_of_photos_is_said(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(wheel), str(tmp_path)]) == 1
    assert "no photos" in capsys.readouterr().err
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"nothing")
    assert script.main([str(wheel), str(tmp_path)]) == 1
    assert "a.png: cannot be read" in capsys.readouterr().err
