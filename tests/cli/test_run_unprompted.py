"""`vosengine run` with models that need no mask: latency, names, masks, resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SELF_FINDERS, to_the_end
from PIL import Image

from vosengine.commands.run import Progress, RunOptions, run
from vosengine.engine.segmenter import Segmenter
from vosengine.errors import InputError
from vosengine.training.synthetic import Clip
from vosengine.video import read_labels, write_labels

Weights = Callable[[str], Path]
MODELS = pytest.mark.parametrize("model", SELF_FINDERS)


@pytest.fixture
def folder(clip: Clip, tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for index, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(images / f"shot-{index}.png")
    return images


def masks_in(out: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_labels(path) for path in sorted(out.glob("*.png"))}


@MODELS
@pytest.mark.slow
def test_every_frame_has_a_mask_under_its_own_name(
    model: str, folder: Path, clip: Clip, tmp_path: Path, tiny_weights: Weights
) -> None:
    weights = tiny_weights(model)
    reports: list[Progress] = []
    plain = RunOptions(str(folder), model, tmp_path / "o", weights=str(weights), device="cpu")
    summary = run(plain, report=reports.append)
    assert summary["frames"] == [f"shot-{index}" for index in range(10)]
    assert [report.done for report in reports] == list(range(1, 11))
    assert summary["complete"] is True
    masks = masks_in(tmp_path / "o")
    assert len(masks) == 10
    wanted = to_the_end(Segmenter(model, weights=weights, device="cpu"), clip.frames)
    for result in wanted:
        np.testing.assert_array_equal(masks[f"shot-{result.frame_index}"], result.numpy())


@MODELS
@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    model: str, folder: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    common = {"weights": str(tiny_weights(model)), "device": "cpu"}
    run(RunOptions(str(folder), model, tmp_path / "whole", **common))  # type: ignore[arg-type]
    for stop_after in (2, 3, 2):
        stops = iter([False] * stop_after + [True])
        resume = (tmp_path / "parts").exists()
        parts = RunOptions(str(folder), model, tmp_path / "parts", resume=resume, **common)  # type: ignore[arg-type]
        assert run(parts, should_stop=lambda a=stops: next(a))["complete"] is False
    final = RunOptions(str(folder), model, tmp_path / "parts", resume=True, **common)  # type: ignore[arg-type]
    assert run(final)["frame_count"] == 10
    whole, resumed = masks_in(tmp_path / "whole"), masks_in(tmp_path / "parts")
    assert whole.keys() == resumed.keys()
    for name, mask in whole.items():
        np.testing.assert_array_equal(resumed[name], mask)


def test_online_answers_every_frame_at_once(
    folder: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    weights = str(tiny_weights("imcnet"))
    out = tmp_path / "o"
    stops = iter([False] * 3 + [True])
    plain = RunOptions(str(folder), "imcnet", out, weights=weights, device="cpu", online=True)
    summary = run(plain, should_stop=lambda: next(stops))
    assert summary["frames"] == ["shot-0", "shot-1", "shot-2"]


def test_a_mask_for_imcnet_is_refused_before_anything_is_written(
    folder: Path, clip: Clip, tmp_path: Path, tiny_weights: Weights
) -> None:
    write_labels(tmp_path / "first.png", clip.masks[0])
    wrong = RunOptions(
        str(folder),
        "imcnet",
        tmp_path / "o",
        mask=tmp_path / "first.png",
        weights=str(tiny_weights("imcnet")),
        device="cpu",
    )
    with pytest.raises(InputError, match="mask: imcnet finds the foreground by itself"):
        run(wrong)
    assert not list((tmp_path / "o").glob("*"))


@pytest.mark.slow
def test_a_mask_for_target_aware_starts_tracks_of_its_ids(
    folder: Path, clip: Clip, tmp_path: Path, tiny_weights: Weights
) -> None:
    prompt = np.array([0, 40, 9], np.uint8)[clip.masks[0]]
    write_labels(tmp_path / "first.png", prompt)
    plain = RunOptions(
        str(folder),
        "target_aware",
        tmp_path / "o",
        mask=tmp_path / "first.png",
        weights=str(tiny_weights("target_aware")),
        device="cpu",
        limit=2,
    )
    summary = run(plain)
    assert {9, 40} <= set(summary["objects"])
    first = masks_in(tmp_path / "o")["shot-0"]
    np.testing.assert_array_equal(np.where(np.isin(first, (9, 40)), first, 0), prompt)
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["frame_count"] == 2
