"""`vosengine export` and `run --engine onnx` on the command line."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import Export, draw_clip, weights_of
from PIL import Image
from typer.testing import CliRunner

from vosengine.cli import app as cli
from vosengine.detectors.file import write_proposals
from vosengine.errors import (
    ConfigError,
    DeviceError,
    OutputError,
    VosError,
    WeightsError,
)
from vosengine.onnx.export.folder import replaced_export
from vosengine.onnx.manifest import hash_of
from vosengine.proposals import Proposals, boxes_of
from vosengine.video import VideoWriter, read_labels, read_mask, write_labels

SIZE = 96, 144


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in arguments])


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A video and the masks of its first frame: two objects, and both as one in 0 and 255."""
    clip = draw_clip(SIZE, 2, frames=5)
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        for frame in clip.frames:
            writer.write(frame)
    write_labels(tmp_path / "first.png", clip.masks[0])
    Image.fromarray(np.where(clip.masks[0] > 0, 255, 0).astype(np.uint8)).save(
        tmp_path / "binary.png"
    )
    return tmp_path / "clip.mp4"


def masks_in(folder: Path) -> list[np.ndarray]:
    return [read_labels(path) for path in sorted(folder.glob("*.png"))]


def test_a_mask_of_0_and_255_shows_object_1(export: Export, video: Path) -> None:
    """Both engines give the same labels."""
    mask = video.parent / "binary.png"
    assert set(np.unique(read_mask(mask))) == {0, 1} and read_labels(mask).max() == 255
    out, other = video.parent / "onnx", video.parent / "torch"
    arguments = [str(video), "--mask", mask, "--no-overlay", "--out"]
    folder = export("munet")
    ran = run("run", "--engine", "onnx", folder, *arguments, out)
    assert ran.exit_code == 0, ran.output
    assert "weights: munet.demo" in ran.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["model"] == "munet" and summary["engine"] == "onnx"
    assert summary["objects"] == [1] and summary["complete"] and summary["frame_count"] == 5
    by_torch = ["--model", "munet", "--weights", weights_of(folder, "munet"), "--device", "cpu"]
    assert run("run", *by_torch, *arguments, other).exit_code == 0
    differs = np.mean(np.stack(masks_in(out)) != np.stack(masks_in(other)))
    assert differs < 1e-3
    assert set(np.unique(masks_in(out)[-1])) == {0, 1}


def test_an_export_asks_the_source_that_is_named(export: Export, video: Path) -> None:
    """For a model that takes proposals; others refuse them."""
    clip = draw_clip(SIZE, 2, frames=2)
    masks = [torch.from_numpy(np.stack([mask == i for i in (1, 2)])) for mask in clip.masks]
    detections = (Proposals(boxes_of(stack), stack, torch.tensor([0.9, 0.8])) for stack in masks)
    write_proposals(video.parent / "p.json", detections)
    proposals = ["--proposals", f"file:{video.parent / 'p.json'}"]
    arguments = [video, "--mask", video.parent / "first.png", *proposals]
    arguments += ["--limit", 2, "--no-overlay"]
    out, other = video.parent / "onnx", video.parent / "torch"
    folder = export("dmn_aoa")
    ran = run("run", "--engine", "onnx", folder, *arguments, "--out", out)
    assert ran.exit_code == 0, ran.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["proposals"] == {"source": proposals[1], "weights": None}
    by_torch = ["--model", "dmn_aoa", "--weights", weights_of(folder, "dmn_aoa"), "--device", "cpu"]
    assert run("run", *by_torch, *arguments, "--out", other).exit_code == 0
    assert np.mean(np.stack(masks_in(out)) != np.stack(masks_in(other))) < 1e-3
    ran = run("run", "--engine", "onnx", export("munet"), *arguments, "--out", out)
    assert isinstance(ran.exception, ConfigError)
    assert "an export of munet takes none" in str(ran.exception)


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["--weights", "demo"], ConfigError, "weights: is fixed by the export"),
        (["--size", "96"], ConfigError, "size: is fixed by the export"),
        (["--precision", "fp16"], ConfigError, "precision: is fixed by the export"),
        (["--checkpoint", "2"], ConfigError, "a stream of exported graphs cannot be saved"),
        (["--device", "tpu"], ConfigError, "device: wanted auto, cpu or cuda, given 'tpu'"),
        (["--device", "cuda"], DeviceError, "providers: "),
    ],
)
def test_what_an_export_has_settled(
    export: Export, video: Path, words: list[str], kind: type[VosError], message: str
) -> None:
    arguments = [str(video), "--mask", video.parent / "first.png", "--out", video.parent / "out"]
    ran = run("run", "--engine", "onnx", export("munet"), *arguments, *words)
    assert isinstance(ran.exception, kind) and message in str(ran.exception)


def test_sources_and_engines_that_do_not_fit(video: Path) -> None:
    out = ["--out", video.parent / "out"]
    for arguments, message in (
        ([str(video), *out], "wanted --model MODEL"),
        (["--engine", "onnx", str(video), *out], "the export's folder, then SOURCE"),
        (["--model", "munet", "folder", str(video), *out], "wanted one SOURCE"),
        (["--engine", "onnx", "--model", "munet", "folder", str(video), *out], "wanted --model"),
    ):
        ran = run("run", *arguments)
        assert ran.exit_code == 2 and message in " ".join(ran.output.split()), ran.output
    ran = run("run", "--engine", "onnx", video.parent, video, *out)
    assert isinstance(ran.exception, WeightsError) and "holds no model.json" in str(ran.exception)
    ran = run("run", "--engine", "quick", "--model", "munet", video, *out)
    assert isinstance(ran.exception, ConfigError) and "engine: wanted" in str(ran.exception)


def test_export_says_what_it_wrote(tmp_path: Path) -> None:
    """Static graphs of a small size, compared with torch one by one and as a stream."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.onnx").write_bytes(b"")
    (out / "mine.onnx").write_bytes(b"mine")
    old = {"file": "old.onnx", "sha256": hashlib.sha256(b"").hexdigest()}
    (out / "model.json").write_text(json.dumps({"graphs": {"old": old}}))
    ran = run("export", "imcnet", "--out", out, "--size", "64x96", "--opset", "21")
    assert ran.exit_code == 0, ran.output
    output = " ".join(ran.output.split())
    (differ,) = re.findall(r"([0-9.]+) % of the labels differ", output)
    assert float(differ) < 0.02 and "weights: imcnet.demo" in output
    assert "segment.onnx" in output and f"wrote {out}" in output
    manifest = json.loads((out / "model.json").read_text())
    assert manifest["opset"] == 21 and manifest["size"] == [64, 96] and not manifest["dynamic"]
    assert {path.name for path in out.iterdir()} == {
        "model.json",
        "mine.onnx",
        *(f"{verb}.onnx" for verb in ("prepare", "encode", "segment", "finish")),
    }


def test_an_export_replaces_nothing_but_an_export(tmp_path: Path) -> None:
    """Neither graphs that it does not list or that were changed, nor another model.json; after an
    error nothing has changed."""
    one = tmp_path / "one.onnx"
    with replaced_export(tmp_path, ["one.onnx"], None) as folder:
        (folder / "one.onnx").write_text("first")
        known = {"graphs": {"one": {"file": "one.onnx", "sha256": hash_of(folder / "one.onnx")}}}
        (folder / "model.json").write_text(json.dumps(known))
    with pytest.raises(ZeroDivisionError), replaced_export(tmp_path, ["one.onnx"], None) as folder:
        (folder / "one.onnx").write_text("second")
        raise ZeroDivisionError
    assert one.read_text() == "first" and len(list(tmp_path.iterdir())) == 2
    weights = tmp_path / "model.json"
    with pytest.raises(OutputError, match=r"the weights .*model\.json"):
        replaced_export(tmp_path, ["two.onnx"], str(weights)).__enter__()
    one.write_text("mine")
    with pytest.raises(OutputError, match=r"one\.onnx: is in the way"):
        replaced_export(tmp_path, ["one.onnx"], None).__enter__()
    for text in ("[]", "{", '{"graphs": {"a": {"file": "../a", "sha256": ""}}}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(OutputError, match=r"holds a model\.json of something else"):
            replaced_export(tmp_path, ["two.onnx"], None).__enter__()
    assert one.read_text() == "mine"


def test_export_of_what_cannot_be(tmp_path: Path) -> None:
    for arguments, message in (
        (["munet"], "wanted --out DIR or --server-repository DIR"),
        (["munet", "--out", "a", "--size", "64x64", "--dynamic"], "wanted --size or --dynamic"),
        (["munet", "--out", "a", "--size", "64"], "wanted HEIGHTxWIDTH"),
    ):
        ran = run("export", *arguments)
        assert ran.exit_code == 2 and message in " ".join(ran.output.split()), ran.output
    wrong: list[tuple[list[Any], str]] = [
        (["xmem", "--out", tmp_path / "a"], "model: wanted one of stm"),
        (["munet", "--out", tmp_path / "a", "--opset", "17"], "opset: wanted 20..21"),
        (["munet", "--server-repository", tmp_path / "a"], "wants --size HxW"),
        (["munet", "--out", tmp_path / "a", "--ops", "fast"], "ops: wanted standard, contrib"),
        (
            ["munet", "--server-repository", tmp_path / "a", "--ops", "vosengine"],
            "wanted --ops standard or contrib, given vosengine",
        ),
    ]
    for arguments, message in wrong:
        ran = run("export", *arguments)
        assert isinstance(ran.exception, ConfigError) and message in str(ran.exception)
    assert not (tmp_path / "a").exists()
