"""Error messages of exports and of their streams."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from exported import Export, both

from vosengine import MemoryConfig, OnnxSegmenter
from vosengine.errors import ConfigError, DeviceError, InputError, WeightsError
from vosengine.onnx import ExportOptions, export_model
from vosengine.onnx.export import family_of
from vosengine.onnx.export.verb import Plan
from vosengine.onnx.sessions import choose_providers
from vosengine.zoo.registry import build


@pytest.fixture(scope="module")
def munet(export: Export) -> Path:
    return export("munet")


def test_bad_frames_and_masks(munet: Path) -> None:
    segmenter, _ = both(munet)
    frame = np.zeros((64, 80, 3), np.uint8)
    mask = np.ones((64, 80), np.uint8)
    wrong: list[tuple[Any, Any, str]] = [
        (frame.astype(np.float32), mask, "wanted dtype uint8, given float32; multiply by 255"),
        (frame[..., 0], mask, r"wanted rank 3, \[H, W, 3\] RGB, given shape \[64, 80\]"),
        (frame[:20], mask, "at least 32 x 32 pixels, given 20 x 80"),
        ("frame.png", mask, "wanted a numpy array, given str"),
        (frame, mask[:10], r"wanted the frame's size \[64, 80\], given \[10, 80\]"),
        (frame, mask.astype(np.float32), "wanted an integer dtype"),
        (frame, mask * 0, "munet needs one with the first frame, .*this one shows no object"),
        (frame, mask.astype(np.int64) * 300, "wanted object ids in 1..255"),
        (frame, None, "munet needs one with the first frame"),
    ]
    for image, prompt, message in wrong:
        with pytest.raises(InputError, match=message):
            segmenter.step(image, prompt)
    assert segmenter.frame_count == 0
    segmenter.step(frame, mask)
    with pytest.raises(InputError, match="the stream is 64 x 80, given 96 x 80"):
        segmenter.step(np.zeros((96, 80, 3), np.uint8))
    assert segmenter.frame_count == 1


def test_an_export_that_was_changed_is_refused(munet: Path, tmp_path: Path) -> None:
    shutil.copytree(munet, tmp_path, dirs_exist_ok=True)
    segment = tmp_path / "segment.onnx"
    segment.write_bytes(segment.read_bytes() + b"\0")
    with pytest.raises(WeightsError, match=r"segment\.onnx: is not the graph that model.json"):
        OnnxSegmenter(tmp_path)
    segment.unlink()
    with pytest.raises(WeightsError, match=r"segment\.onnx: is missing"):
        OnnxSegmenter(tmp_path)
    (tmp_path / "model.json").write_text('{"format": "another"}')
    with pytest.raises(WeightsError, match="wanted format vosengine-onnx-4, given 'another'"):
        OnnxSegmenter(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(WeightsError, match="is not JSON"):
        OnnxSegmenter(tmp_path)
    with pytest.raises(WeightsError, match=r"holds no model.json; wanted a folder that"):
        OnnxSegmenter(tmp_path / "elsewhere")


def test_a_provider_that_is_not_there(munet: Path) -> None:
    with pytest.raises(DeviceError, match=r"wanted some of .*CPUExecutionProvider, given Tensor"):
        OnnxSegmenter(munet, providers=["TensorflowExecutionProvider"])
    with pytest.raises(DeviceError, match="given none"):
        OnnxSegmenter(munet, providers=[])
    assert choose_providers(None)[-1] == "CPUExecutionProvider"
    with pytest.raises(ConfigError, match=r"max_objects: wanted 1..10 \(the export's\), given 11"):
        OnnxSegmenter(munet, max_objects=11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 22}, "opset: wanted 20..21"),
        ({"precision": "int8"}, "precision: wanted fp32 or fp16"),
        ({"max_objects": 0}, r"max_objects: wanted 1..255, given 0"),
        ({"size": (8, 8)}, "size"),
        ({"memory_frames": 1}, "memory.max_frames"),
    ],
)
def test_bad_options_leave_nothing(tmp_path: Path, options: Any, message: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=message):
        export_model("stm", ExportOptions(out, **options))
    assert not out.exists()


def test_a_memory_that_does_not_export(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory_frames: this model has no memory"):
        export_model("imcnet", ExportOptions(tmp_path / "out", memory_frames=4))
    with pytest.raises(ConfigError, match="max_objects: imcnet has at most 1, given 3"):
        export_model("imcnet", ExportOptions(tmp_path / "out", max_objects=3))
    with pytest.raises(ConfigError, match="model: wanted one of"):
        export_model("xmem", ExportOptions(tmp_path / "out"))


@pytest.mark.parametrize("model", ["stm", "munet", "dmn_aoa"])
def test_a_memory_that_merges_by_content_is_refused(model: str) -> None:
    config = tiny_config(model, memory=MemoryConfig(policy="afb"))
    with pytest.raises(ConfigError, match="afb merges features by content"):
        family_of(model).settings(build(model, config), Plan(16, (3, 5), 2, 4))
