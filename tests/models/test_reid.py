"""ReID: crops against a float64 transcription, and the inputs of an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vosengine.config import TargetAwareConfig
from vosengine.models.backbone import initialise
from vosengine.models.target_aware.reid import ReID, crop_boxes, grow_boxes

SIZE = (60, 83)
BOXES = {
    "magnified": (20, 10, 28, 22),
    "between pixels": (20.3, 10.6, 28.9, 22.2),
    "reduced": (2, 3, 79, 55),
    "reduced in x alone": (1.5, 20, 81, 27),
    "a little reduced": (10, 10, 26.001, 27),
    "over the edge": (-15, -9.5, 30, 25),
    "around everything": (-30, -40, 120, 110),
    "outside": (100, 10, 130, 40),
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bilinear(frame: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """frame [C, H, W] at the points y x x, pixel centres at halves, 0 outside."""
    padded = np.pad(frame, ((0, 0), (1, 1), (1, 1)))
    height, width = padded.shape[1:]
    y, x = np.clip(y + 0.5, 0, height - 1), np.clip(x + 0.5, 0, width - 1)
    top, left = np.minimum(y.astype(int), height - 2), np.minimum(x.astype(int), width - 2)
    down, right = (y - top)[:, None], x - left
    rows = padded[:, top][:, :, left], padded[:, top][:, :, left + 1]
    below = padded[:, top + 1][:, :, left], padded[:, top + 1][:, :, left + 1]
    upper = rows[0] * (1 - right) + rows[1] * right
    lower = below[0] * (1 - right) + below[1] * right
    return upper * (1 - down) + lower * down


def transcribed(frame: torch.Tensor, box: tuple[float, ...], size: int) -> np.ndarray:
    """A crop in float64: means of fine grids of bilinear samples around its pixels' centres."""
    left, top, right, bottom = box
    steps = np.arange(size) + 0.5
    samples = 60

    def places(low: float, high: float) -> np.ndarray:
        scale = (high - low) / size
        span = max(scale - 1, 0)
        around = ((np.arange(samples) + 0.5) / samples - 0.5) * span
        return (low + steps[:, None] * scale + around).ravel()

    fine = bilinear(frame[0].double().numpy(), places(top, bottom), places(left, right))
    return fine.reshape(-1, size, samples, size, samples).mean(axis=(2, 4))


@pytest.mark.parametrize("name", list(BOXES))
def test_a_crop_is_the_mean_of_bilinear_samples(name: str) -> None:
    frame = draw(1, 3, *SIZE)
    crop = crop_boxes(frame, torch.tensor([BOXES[name]]), 16)
    np.testing.assert_allclose(crop[0].numpy(), transcribed(frame, BOXES[name], 16), atol=2e-3)
    assert bool(crop.any()) == (name != "outside")


@pytest.mark.parametrize("box", [(20, 10, 28, 22), (20.3, 10.6, 28.9, 22.2), (-5, -5, 9, 9)])
def test_a_magnified_crop_is_exactly_bilinear(box: tuple[float, ...]) -> None:
    frame = draw(1, 3, *SIZE)
    crop = crop_boxes(frame, torch.tensor([box]), 16)
    np.testing.assert_allclose(crop[0].numpy(), transcribed(frame, box, 16), atol=2e-5)


def test_crops_that_are_known_without_arithmetic() -> None:
    frame = draw(1, 3, 32, 32)
    boxes = torch.tensor([[4.0, 8, 20, 24], [0, 0, 32, 32]])
    same, half = crop_boxes(frame, boxes, 16)
    torch.testing.assert_close(same, frame[0, :, 8:24, 4:20], rtol=0, atol=2e-5)
    means = frame[0].unflatten(1, (16, 2)).unflatten(3, (16, 2)).mean(dim=(2, 4))
    torch.testing.assert_close(half, means, rtol=0, atol=2e-5)


def test_every_pixel_of_a_large_box_counts() -> None:
    frame = torch.ones(1, 1, 64, 96, requires_grad=True)
    crop = crop_boxes(frame, torch.tensor([[8.0, 4, 88, 60]]), 8)  # 10 and 7 pixels to one
    torch.testing.assert_close(crop, torch.ones_like(crop))
    crop.sum().backward()
    assert frame.grad is not None
    assert (frame.grad[0, 0, 5:59, 9:87] > 0).all()
    assert not frame.grad[0, 0, :, :7].any() and not frame.grad[0, 0, :3].any()


def test_boxes_grow_about_their_centres() -> None:
    boxes = torch.tensor([[10.0, 20, 110, 70], [10, 20, 12, 70], [0, 0, 0, 0]])
    wanted = [[0, 15, 120, 75], [-7, 15, 29, 75], [-18, -18, 18, 18]]
    torch.testing.assert_close(grow_boxes(boxes, 30, 1.2), torch.tensor(wanted).float())


def build(**changes: Any) -> ReID:
    narrow: dict[str, Any] = {
        "reid_backbone": "resnet18",
        "reid_width": 8,
        "reid_channels": 12,
        "reid_crop": 64,
    }
    torch.manual_seed(2)
    net = ReID(TargetAwareConfig(**{**narrow, **changes})).eval().requires_grad_(False)
    initialise(net)
    return net


FRAME = draw(1, 3, 96, 160, seed=7)
OBJECTS = torch.tensor(
    [[10.0, 10, 60, 70], [80, 20, 150, 90], [5, 60, 30, 96], [100, 3, 104, 9], [0, 0, 160, 96]]
)


def test_embeddings_have_length_one_and_tell_boxes_apart() -> None:
    vectors = build()(FRAME, OBJECTS)
    assert vectors.shape == (5, 12) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    likeness = vectors @ vectors.T
    assert (likeness[~torch.eye(5, dtype=torch.bool)] < 0.9999).all()


def test_boxes_do_not_see_each_other() -> None:
    net = build()
    together = net(FRAME, OBJECTS)
    one_by_one = torch.cat([net(FRAME, box[None]) for box in OBJECTS])
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-5)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(net(FRAME, OBJECTS[order]), together[order], rtol=0, atol=1e-5)


def test_an_embedding_sees_the_box_and_its_context_alone() -> None:
    net = build()
    box = torch.tensor([[60.0, 30, 100, 60]])  # with context 56..104, 27..63
    far, context = FRAME.clone(), FRAME.clone()
    far[:, :, :, :54], far[:, :, 66:] = 9, 9
    context[:, :, 28:30, 60:100] = 9
    torch.testing.assert_close(net(far, box), net(FRAME, box))
    assert not torch.allclose(net(context, box), net(FRAME, box), atol=1e-3)


def test_no_boxes_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build()

    def refuse(*_: Any) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(nn.Conv2d, "forward", refuse)
    vectors = net(FRAME, torch.zeros(0, 4))
    assert vectors.shape == (0, 12) and vectors.dtype == torch.float32


def test_an_empty_box_is_the_corner_and_not_nan() -> None:
    net = build()
    vectors = net(FRAME, torch.tensor([[0.0, 0, 0, 0], [-15, -15, 15, 15]]))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(vectors[0], vectors[1])


def test_half_precision_gives_float32_of_length_one() -> None:
    net = build()
    vectors = net.bfloat16()(FRAME.bfloat16(), OBJECTS)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))


@pytest.mark.slow
def test_the_full_network() -> None:
    """ResNet-50 without its classifier, and 2048 -> 128; 2.7 GFLOP a crop beside the cropping."""
    with torch.device("meta"), torch.no_grad():
        net = ReID(TargetAwareConfig()).eval()
        assert sum(p.numel() for p in net.parameters()) == 23_508_032 + 2048 * 128 + 128
        with FlopCounterMode(display=False) as counter:
            assert net(torch.zeros(1, 3, 480, 864), torch.zeros(3, 4)).shape == (3, 128)
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert convolutions / 3 == pytest.approx(2.7e9, rel=0.03)
    assert counter.get_total_flops() / 3 < 3.1e9
