"""The click network: its crop, its inputs, its files, and that it learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vosengine.errors import ConfigError, InputError, OutputError, StateError, WeightsError
from vosengine.prompts.click import ClickModel, planes_of
from vosengine.prompts.crop import GREY, LEAST, Crop, box_of, marked_box, square_around
from vosengine.prompts.hints import check_hints
from vosengine.prompts.network import ClickConfig, ClickNet, Seen
from vosengine.prompts.weights import build_click, load_click, load_shipped, save_click
from vosengine.training.clicks.__main__ import main
from vosengine.training.clicks.objective import ClickObjective
from vosengine.training.clicks.run import ClickTraining, train_clicks
from vosengine.training.clicks.simulation import drawn_box, next_click, spoilt
from vosengine.training.clicks.square_source import SquareSource
from vosengine.training.samples import collate
from vosengine.zoo import weights
from vosengine.zoo.registry import build
from vosengine.zoo.weights import save, state_of

TINY = ClickConfig(channels=(16, 8, 8), blocks=(1, 1, 1), stem=(4, 8, 8, 8), size=64)


# the square that it sees


@settings(max_examples=200, deadline=None)
@given(st.data())
@pytest.mark.slow
def test_the_square_holds_the_box_and_stays_in_the_frame_where_it_fits(data: Any) -> None:
    height, width = (data.draw(st.integers(8, 300)) for _ in range(2))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    wide, high = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    crop = square_around((x, y, wide, high), (height, width))
    assert crop.x <= x and x + wide <= crop.x + crop.side
    assert crop.y <= y and y + high <= crop.y + crop.side
    assert crop.side <= max(height, width)
    assert crop.side == min(max(round(1.4 * max(wide, high)), LEAST), max(height, width))
    for start, side in ((crop.x, width), (crop.y, height)):
        if crop.side <= side:
            assert 0 <= start <= side - crop.side
        else:
            assert start == (side - crop.side) // 2


@pytest.mark.parametrize("crop", [Crop((60, 90), 11, 7, 48), Crop((60, 90), 0, -15, 90)])
def test_what_is_cut_out_and_pasted_back_lies_where_it_was(crop: Crop) -> None:
    rng = np.random.default_rng(0)
    plane = rng.integers(0, 256, (60, 90), np.uint8)
    cut = crop.cut(plane, crop.side, GREY)
    inside = np.zeros((60, 90), bool)
    inside[max(0, crop.y) : crop.y + crop.side, max(0, crop.x) : crop.x + crop.side] = True
    back = crop.paste(cut.astype(np.float32), outside=-1)
    np.testing.assert_array_equal(back[inside], plane[inside])
    assert (back[~inside] == -1).all()
    assert (cut == GREY).sum() >= crop.side**2 - inside.sum()
    for x, y in ((20, 30), (40, 9)):
        assert cut[y - crop.y, x - crop.x] == plane[y, x]
        assert crop.place(x, y, crop.side) == (x - crop.x, y - crop.y)
        at_double = crop.place(x, y, 2 * crop.side)
        assert at_double == (2 * (x - crop.x) + 1, 2 * (y - crop.y) + 1)


@pytest.mark.parametrize("size", [64, 192])
def test_a_shape_comes_back_in_place_at_other_sizes(size: int) -> None:
    crop = Crop((100, 140), 20, -9, 118)
    mask = np.zeros((100, 140), np.uint8)
    cv2.circle(mask, (80, 50), 30, 1, cv2.FILLED)
    seen = crop.cut(mask * np.uint8(255), size, 0).astype(np.float32) - 127.5
    back = crop.paste(seen, outside=-1) > 0
    assert (back != mask).sum() <= 0.02 * mask.sum()


def test_what_is_marked_lies_in_the_planes_where_the_frame_has_it() -> None:
    frame = np.zeros((100, 140, 3), np.uint8)
    last, scribbles = np.zeros((100, 140), np.uint8), np.zeros((100, 140), np.uint8)
    last[40:60, 50:70] = 1
    scribbles[30, 40:60], scribbles[80, 40:60] = 1, 2
    points = [(75, 45, True), (30, 20, False)]
    hints = check_hints(frame, (40, 30, 40, 40), points, scribbles, last)
    assert marked_box(hints) == (30, 20, 50, 61)
    crop = Crop((100, 140), 20, 0, 64)
    planes = planes_of(hints, crop, 64, 2)
    np.testing.assert_array_equal(planes[0], crop.cut(last, 64, 0))
    assert planes[1][45, 55] == 1 and planes[1][30, 20:40].all()
    assert planes[2][20, 10] == 1 and not planes[2][45, 55]
    box = np.zeros((64, 64))
    box[30:64, 20:60] = 1
    np.testing.assert_array_equal(planes[3], box)
    alone = check_hints(frame, None, points, None, None)
    assert marked_box(alone) == (0, 0, 140, 100)


# the network


def test_marks_change_the_answer_and_the_same_marks_do_not() -> None:
    model = ClickModel(build_click(TINY, seed=1))
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    box = (30, 20, 50, 40)
    answers = [
        model.mask(frame, check_hints(frame, box, points, None, None))
        for points in ([], [(50, 40, True)], [(50, 40, False)], [])
    ]
    for mask in answers:
        assert mask.dtype == np.uint8 and mask.shape == (90, 120)
        assert {*np.unique(mask)} <= {0, 1}
    np.testing.assert_array_equal(answers[0], answers[3])
    assert (answers[1] != answers[2]).any()


def test_a_square_is_seen_once_and_another_frame_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fresh = (ClickModel(build_click(TINY, seed=1)) for _ in range(2))
    frames = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), np.uint8)
    box, seen = (30, 20, 50, 40), []
    encode = ClickNet.encode

    def counted(network: ClickNet, frame: torch.Tensor) -> Seen:
        seen.append(frame)
        return encode(network, frame)

    monkeypatch.setattr(ClickNet, "encode", counted)
    for frame in (frames[0], frames[0].copy(), frames[1]):
        answer = model.mask(frame, check_hints(frame, box, [(50, 40, True)], None, None))
    assert len(seen) == 2
    hints = check_hints(frames[1], box, [(50, 40, True)], None, None)
    np.testing.assert_array_equal(answer, fresh.mask(frames[1], hints))


def test_a_file_brings_its_network_back(tmp_path: Path) -> None:
    network, path = build_click(TINY, seed=2), tmp_path / "click.safetensors"
    save_click(path, network, "a trial")
    restored, metadata = load_click(path)
    assert restored.config == TINY
    assert (metadata["trained"], metadata["description"]) == ("true", "a trial")
    assert metadata["licence"] == "MIT AND Apache-2.0 (efficientnet_lite0)"
    for name, tensor in state_of(restored).items():
        torch.testing.assert_close(tensor, state_of(network)[name], rtol=1e-3, atol=1e-3)
    assert load_click(path, size=96)[0].config == replace(TINY, size=96)


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    from conftest import tiny_config

    config = tiny_config("stm")
    other = tmp_path / "stm.safetensors"
    tensors = state_of(build("stm", config))
    save(other, "stm", config, tensors, trained=True, description="", licence="MIT")
    with pytest.raises(WeightsError, match="holds weights of stm, wanted click"):
        load_click(other)
    with pytest.raises(WeightsError, match="no such file"):
        load_click(tmp_path / "none.safetensors")


def test_without_its_weights_the_network_is_no_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "cards", dict)
    with pytest.raises(WeightsError, match=r"^click\.demo: did not ship"):
        load_shipped()


@pytest.mark.parametrize(
    "changes", [{"size": 100}, {"radius": 0}, {"channels": (0, 8, 8)}, {"blocks": (1, 0, 1)}]
)
def test_configurations_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        replace(TINY, **changes)


# the person who clicks


def test_a_click_lies_in_the_middle_of_what_is_wrong() -> None:
    truth, mask = np.zeros((60, 80), bool), np.zeros((60, 80), bool)
    truth[10:31, 10:31] = True
    assert next_click(mask, truth) == (20, 20, True)
    mask[:] = truth
    assert next_click(mask, truth) is None
    mask[40:55, 50:65] = True
    assert next_click(mask, truth) == (57, 47, False)
    assert next_click(mask, truth, made=[(57, 47, False)]) != (57, 47, False)
    rng = np.random.default_rng(0)
    drawn = {next_click(mask, truth, rng) for _ in range(40)}
    assert len(drawn) > 5
    for x, y, positive in (click for click in drawn if click):
        assert not positive and abs(x - 57) <= 4 and abs(y - 47) <= 4


def test_boxes_and_last_masks_are_nearly_right() -> None:
    truth = np.zeros((128, 128), bool)
    truth[30:90, 40:110] = True
    rng, exact = np.random.default_rng(0), box_of(truth.astype(np.uint8))
    boxes = [drawn_box(exact, 128, rng) for _ in range(60)]
    assert 10 < boxes.count(exact) < 50
    for x, y, wide, high in boxes:
        assert 0 <= x < x + wide <= 128 and 0 <= y < y + high <= 128
        assert abs(x - 40) < 25 and abs(y + high - 90) < 25
    for _ in range(20):
        mask = spoilt(truth, rng)
        assert 0.4 < (mask & truth).sum() / (mask | truth).sum() <= 1


# training


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright discs on dark noise, with masks."""
    folder = tmp_path_factory.mktemp("photos") / "discs"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        mask = np.zeros((72, 96), np.uint8)
        centre = int(rng.integers(30, 66)), int(rng.integers(26, 46))
        cv2.circle(mask, centre, int(rng.integers(14, 20)), 255, -1)
        pixels = rng.integers(0, 90, (72, 96, 3), np.uint8)
        pixels[mask > 0] += 150
        Image.fromarray(pixels).save(folder / "images" / f"{seed}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{seed}.png")
    return folder


def test_squares_depend_on_seed_and_number_alone(photos: Path) -> None:
    source, again = SquareSource(photos, 64, 0), SquareSource(photos, 64, 0)
    squares = [source.sample(n, 0.0) for n in range(8)]
    for n in (7, 0, 3):
        np.testing.assert_array_equal(again.sample(n, 0.0).frames, squares[n].frames)
        np.testing.assert_array_equal(again.sample(n, 0.0).masks, squares[n].masks)
    for square in squares:
        assert (square.frames.shape, square.masks.shape) == ((1, 64, 64, 3), (1, 64, 64))
        assert {*np.unique(square.masks)} == {0, 1}
    assert len({square.origin.split()[-1] for square in squares}) > 1
    other = SquareSource(photos, 64, 1).sample(0, 0.0)
    assert (other.frames != squares[0].frames).any()


@pytest.mark.slow
def test_some_steps_lower_the_loss_and_leave_the_backbone(photos: Path) -> None:
    network = build_click(TINY, seed=0).train()
    network.start_gently()
    before = {n: x.clone() for n, x in network.backbone.state_dict().items()}
    objective = ClickObjective(network)
    source = SquareSource(photos, 64, 0)
    batch = collate([source.sample(n, 0.0) for n in range(4)])
    network.requires_grad_(True).backbone.requires_grad_(False)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=5e-3)
    totals = []
    for _ in range(25):
        losses = objective.losses(batch, torch.Generator().manual_seed(0))
        assert {*losses} == {"bce_first", "iou_first", "bce_later", "iou_later"}
        assert all(loss.requires_grad for loss in losses.values())
        total = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        torch.autograd.backward(total)
        optimiser.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.6 * totals[0]
    assert objective.score(batch) > 0.5
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def training(photos: Path, out: Path, **changes: Any) -> ClickTraining:
    return ClickTraining(photos, out, steps=4, batch=1, size=64, **changes)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_bits(photos: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_clicks(training(photos, whole)).startswith("4 steps")
    assert train_clicks(training(photos, parts, minutes=1e-9)).startswith("0 steps")
    assert train_clicks(training(photos, parts, resume=True)).startswith("4 steps")
    files = [folder / "weights.safetensors" for folder in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load_click(files[0])[1]["description"] == "trained for 4 steps on discs"
    log = (whole / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_run_starts_from_the_backbone_that_ships_or_from_weights(
    photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "start.safetensors"
    save_click(path, build_click(ClickConfig(), seed=5), "")
    options = ["--photos", photos, "--batch", 1, "--size", 64, "--seed", 3, "--rate", 1e-4]
    line = [str(word) for word in (*options, "--steps", 1, "--out", tmp_path / "a")]
    assert main([*line, "--init", str(path)]) == 0
    trained = load_click(tmp_path / "a" / "weights.safetensors")[0]
    start = load_click(path)[0]
    torch.testing.assert_close(trained.predict.weight, start.predict.weight, rtol=0, atol=1e-3)
    torch.testing.assert_close(trained.backbone.conv1.weight, start.backbone.conv1.weight)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["--steps", "0"], ConfigError),
        (["--batch", "0"], ConfigError),
        (["--size", "60"], ConfigError),
        (["--rate", "0"], ConfigError),
        (["--seed", "-1"], ConfigError),
        (["--minutes", "0"], ConfigError),
        (["--init", "none.safetensors"], WeightsError),
        (["--resume"], WeightsError),
        (["--photos", "nowhere"], InputError),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_a_step(
    words: list[str], kind: type[Exception], photos: Path, tmp_path: Path, capsys: Any
) -> None:
    line = ["--photos", str(photos), "--out", str(tmp_path / "out"), *words]
    assert main(line) == 1
    assert capsys.readouterr().err.startswith(f"{kind.__name__}: ")
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_folder_holds_one_run(photos: Path, tmp_path: Path) -> None:
    train_clicks(training(photos, tmp_path, minutes=1e-9))
    with pytest.raises(InputError, match="holds a training run"):
        train_clicks(training(photos, tmp_path))
    with pytest.raises(StateError, match="of another run"):
        train_clicks(training(photos, tmp_path, resume=True, seed=4))
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(OutputError):
        train_clicks(training(photos, blocked))
