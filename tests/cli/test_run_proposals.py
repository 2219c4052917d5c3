"""`vosengine run --proposals`: any detector's masks followed, and what it says of where they are
from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image

from vosengine.cli.app import main
from vosengine.commands.run import RunOptions, run
from vosengine.detectors.file import write_proposals
from vosengine.errors import ConfigError, DependencyError, InputError
from vosengine.proposals import Proposals, boxes_of
from vosengine.training.synthetic import Clip
from vosengine.video import VideoWriter, read_labels, write_labels
from vosengine.zoo.registry import build
from vosengine.zoo.weights import save, state_of

Weights = Callable[[str], Path]
Content = dict[str, list[dict[str, Any]]]


def write_weights(path: Path, *, trained: bool = True) -> Path:
    """A tiny target_aware with minimal training of its trackers."""
    quick = {"first_iterations": (1,), "later_iterations": (1,), "augmentations": 0}
    config = tiny_config("target_aware", max_tracks=4, **quick)
    tensors = state_of(build("target_aware", config, seed=3))
    save(path, "target_aware", config, tensors, trained=trained, description="", licence="MIT")
    return path


def proposals_of(labels: np.ndarray) -> Proposals:
    """The masks of a label image, as a perfect detector would return them."""
    ids = [i for i in np.unique(labels).tolist() if i]
    masks = torch.from_numpy(np.stack([labels == i for i in ids]))
    return Proposals(boxes_of(masks), masks, torch.ones(len(ids)))


@pytest.fixture
def folder(clip: Clip, tmp_path: Path) -> Path:
    """Three frames as images, and the clip's exact masks as proposals.json beside them."""
    images = tmp_path / "images"
    images.mkdir()
    for index, frame in enumerate(clip.frames[:3]):
        Image.fromarray(frame).save(images / f"shot-{index}.png")
    write_proposals(tmp_path / "proposals.json", map(proposals_of, clip.masks[:3]))
    return images


@pytest.fixture
def options(folder: Path, tmp_path: Path) -> Callable[..., RunOptions]:
    weights = write_weights(tmp_path / "quick.safetensors")

    def describe(**changes: object) -> RunOptions:
        defaults = {
            "source": str(folder),
            "model": "target_aware",
            "weights": str(weights),
            "proposals": f"file:{tmp_path / 'proposals.json'}",
            "device": "cpu",
            "overlay": False,
            "out": tmp_path / "o",
        }
        return RunOptions(**{**defaults, **changes})  # type: ignore[arg-type]

    return describe


Options = Callable[..., RunOptions]


def edit(path: Path, change: Callable[[Content], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.slow
def test_the_files_masks_are_followed(options: Options, clip: Clip, tmp_path: Path) -> None:
    summary = run(options())
    assert summary["proposals"] == {
        "source": f"file:{tmp_path / 'proposals.json'}",
        "weights": None,
    }
    first = read_labels(tmp_path / "o" / "shot-0.png")
    np.testing.assert_array_equal(first > 0, clip.masks[0] > 0)
    for i in (1, 2):
        assert len(np.unique(clip.masks[0][first == i])) == 1  # each is one object's
    assert set(np.unique(first)) == {0, 1, 2}
    alone = run(options(proposals=None, out=tmp_path / "alone", limit=1))
    assert alone["proposals"] is None
    other = read_labels(tmp_path / "alone" / "shot-0.png")
    assert not np.array_equal(other > 0, clip.masks[0] > 0)


@pytest.mark.slow
def test_dmn_aoa_picks_from_a_file(
    options: Options,
    clip: Clip,
    tmp_path: Path,
    tiny_weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the command line, with the first frame's mask; the summary names the source."""
    mask = tmp_path / "first.png"
    write_labels(mask, np.where(clip.masks[0] > 0, 5 * clip.masks[0], 0).astype(np.uint8))
    settings = options()
    arguments = ["--mask", str(mask), "--weights", str(tiny_weights("dmn_aoa"))]
    arguments += ["--proposals", str(settings.proposals), "--no-overlay"]
    arguments += ["--out", str(settings.out)]
    command = ["vosengine", "run", settings.source, "--model", "dmn_aoa", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="0"):
        main()
    for index in range(3):
        labels = read_labels(settings.out / f"shot-{index}.png")
        assert set(np.unique(labels).tolist()) <= {0, 5, 10}
    summary = json.loads((settings.out / "summary.json").read_text())
    assert summary["proposals"]["source"] == settings.proposals
    assert summary["objects"] == [5, 10]


@pytest.mark.parametrize("kind", ["file:proposals.json", "dnet:quick.safetensors"])
@pytest.mark.slow
def test_stopped_and_resumed_is_the_same_as_never_stopped(
    kind: str, options: Options, tmp_path: Path
) -> None:
    proposals = kind.replace(":", f":{tmp_path}/")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(options(proposals=proposals, out=whole))
    stops = iter([False, False, True])
    run(options(proposals=proposals, out=parts), should_stop=lambda: next(stops))
    summary = run(options(proposals=proposals, out=parts, resume=True))
    assert summary["complete"] and summary["proposals"]["source"] == proposals
    assert len(list(whole.glob("*.png"))) == 3
    for path in whole.glob("*.png"):
        np.testing.assert_array_equal(read_labels(parts / path.name), read_labels(path))


@pytest.mark.slow
def test_a_random_d_net_says_so_in_every_output(options: Options, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "untrained.safetensors", trained=False)
    summary = run(options(proposals=f"dnet:{path}", limit=1))
    assert summary["weights"]["trained"] is True
    assert summary["proposals"]["weights"].startswith("RANDOM weights (target_aware.untrained)")
    with Image.open(tmp_path / "o" / "shot-0.png") as image:
        assert image.info["Comment"].startswith("proposals: RANDOM weights")
    run(options(limit=1))
    with Image.open(tmp_path / "o" / "shot-0.png") as image:
        assert "Comment" not in image.info


@pytest.mark.slow
def test_the_command_line_prints_where_they_are_from(
    options: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings, untrained = options(), tmp_path / "untrained.safetensors"
    write_weights(untrained, trained=False)
    command = ["vosengine", "run", settings.source, "--limit", "1", "--no-overlay"]
    command += ["--model", "target_aware", "--weights", str(settings.weights)]
    command += ["--device", "cpu", "--out", str(settings.out), "--proposals"]
    monkeypatch.setattr(sys, "argv", [*command, f"dnet:{untrained}"])
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = capsys.readouterr().out
    assert f"proposals: dnet:{untrained}, RANDOM weights (target_aware.untrained)" in printed
    monkeypatch.setattr(sys, "argv", [*command, "yolo"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "ConfigError: proposals: no source is named 'yolo'; wanted" in capsys.readouterr().err


@pytest.mark.slow
def test_bad_proposals_are_refused_before_anything_is_removed(
    options: Options, tmp_path: Path, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(options(limit=1))
    before = {path: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    (tmp_path / "broken.json").write_text("{")
    named = tmp_path / "named.json"
    named.write_text((tmp_path / "proposals.json").read_text())
    edit(named, lambda c: c["images"][1].update(file_name="JPEGImages/other.png"))
    stm = {"model": "stm", "weights": str(tiny_weights("stm"))}
    for changes, error, message in (
        (stm, ConfigError, "proposals: stm takes none"),
        ({"proposals": f"file:{tmp_path / 'none.json'}"}, InputError, "cannot be read"),
        ({"proposals": f"file:{tmp_path / 'broken.json'}"}, InputError, "not valid JSON"),
        ({"proposals": f"file:{named}"}, InputError, "frame 1 is 'JPEGImages/other.png' there"),
    ):
        with pytest.raises(error, match=message):
            run(options(**changes))
    assert {path: path.read_bytes() for path in (tmp_path / "o").iterdir()} == before
    run(options(proposals=f"file:{named}", limit=1))  # what is not reached does not count
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as where it is not installed
    with pytest.raises(DependencyError, match="torchvision"):
        run(options(proposals="torchvision:m.pth"))


@pytest.mark.slow
def test_a_video_has_no_names_to_compare(options: Options, clip: Clip, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", 25) as writer:
        for frame in clip.frames[:2]:
            writer.write(frame[:64, :98])
    write_proposals(tmp_path / "p.json", (proposals_of(m[:64, :98]) for m in clip.masks[:2]))
    edit(tmp_path / "p.json", lambda c: c["images"][0].update(file_name="frame_0001.jpg"))
    settings = options(source=str(tmp_path / "clip.mp4"), proposals=f"file:{tmp_path / 'p.json'}")
    assert run(settings)["frame_count"] == 2


@pytest.mark.parametrize(
    ("frame", "change", "message"),
    [
        (1, lambda c: grow(c, 1), "frame 1: masks are 99 x 99, the frame is 65 x 99"),
        (1, lambda c: of_frame(c, 1)["segmentation"].update(counts="0"), "cannot be decoded"),
    ],
)
@pytest.mark.slow
def test_a_fault_in_mid_stream_keeps_what_came_before(
    frame: int, change: Callable[[Content], object], message: str, options: Options, tmp_path: Path
) -> None:
    """Errors found only when the frame is requested; once repaired, the run resumes."""
    path = tmp_path / "proposals.json"
    good = path.read_text()
    edit(path, change)
    with pytest.raises(InputError, match=message):
        run(options())
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert (summary["frame_count"], summary["complete"]) == (frame, False)
    path.write_text(good)
    assert run(options(resume=frame > 0))["frame_count"] == 3


def of_frame(content: Content, frame: int) -> Content:
    """The first annotation of that frame."""
    annotation: Content = next(a for a in content["annotations"] if a["image_id"] == frame)
    return annotation


def grow(content: Content, frame: int) -> None:
    """That frame at another size, and its masks with it."""
    content["images"][frame]["height"] = 99
    for annotation in content["annotations"]:
        if annotation["image_id"] == frame:
            annotation["segmentation"] = {"size": [99, 99], "counts": [99 * 99]}


def test_frames_without_proposals_have_no_objects(options: Options, tmp_path: Path) -> None:
    edit(tmp_path / "proposals.json", lambda c: c["annotations"].clear())
    assert run(options())["objects"] == []
    assert not read_labels(tmp_path / "o" / "shot-2.png").any()


@pytest.mark.slow
def test_boxes_stand_for_masks_where_asked_and_the_summary_says_so(
    options: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A box without a segmentation, or with an empty one, is an error, not an empty mask."""
    path = tmp_path / "proposals.json"
    edit(path, lambda c: [a.update(segmentation=[]) for a in c["annotations"]])
    edit(path, lambda c: c["annotations"][0].pop("segmentation"))
    settings = options()
    with pytest.raises(InputError, match=r"annotations\[0\]: segmentation: .* --boxes-as-masks"):
        run(settings)
    assert not list(settings.out.glob("*"))
    command = ["vosengine", "run", settings.source, "--model", "target_aware", "--weights"]
    command += [str(settings.weights), "--out", str(settings.out)]
    command += ["--proposals", str(settings.proposals)]
    monkeypatch.setattr(sys, "argv", [*command, "--no-overlay", "--boxes-as-masks"])
    with pytest.raises(SystemExit, match="0"):
        main()
    count = len(json.loads(path.read_text())["annotations"])
    summary = json.loads((settings.out / "summary.json").read_text())
    assert summary["proposals"]["boxes_as_masks"] == count
    assert f"proposals: {settings.proposals}, {count} boxes as masks" in capsys.readouterr().out
    boxes = [a["bbox"] for a in json.loads(path.read_text())["annotations"] if a["image_id"] == 0]
    wanted = np.zeros((65, 99), bool)
    for left, top, width, height in np.array(boxes).astype(int):
        wanted[top : top + height, left : left + width] = True
    np.testing.assert_array_equal(read_labels(settings.out / "shot-0.png") > 0, wanted)
    with pytest.raises(ConfigError, match="boxes_as_masks: is for --proposals file"):
        run(options(proposals=None, boxes_as_masks=True))
    with pytest.raises(ConfigError, match="boxes_as_masks: is for proposals from a file"):
        run(options(proposals="dnet", boxes_as_masks=True))
