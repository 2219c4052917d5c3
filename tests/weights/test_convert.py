"""Conversion of STM's official weights: the transcription's probabilities, or an error."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from stm_transcription import State, official_shapes, random_state_dict, transcribe

from vosengine import MemoryConfig, Segmenter
from vosengine.errors import OutputError, WeightsError
from vosengine.kernels import use_backend
from vosengine.shipped import convert as converter
from vosengine.zoo.weights import read_file

TOLERANCE = 1e-4  # float32 against float64, on probabilities


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def state() -> State:
    return random_state_dict(3)


@pytest.fixture(scope="module")
def converted(state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """As released: `module.` in front of every name, in torch's format of before 2020."""
    folder = tmp_path_factory.mktemp("stm")
    released = {f"module.{name}": tensor for name, tensor in state.items()}
    source, target = folder / "STM_weights.pth", folder / "stm.safetensors"
    torch.save(released, source, _use_new_zipfile_serialization=False)
    assert converter.main(["stm", str(source), str(target)]) == 0
    source.unlink()
    yield target
    target.unlink()  # 150 MB, and pytest keeps the folders of three runs


def make_clip(objects: int, length: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frames [T, 41, 57, 3] (pads 3 + 4 and 3 + 4) with drifting, textured discs; frame 0's ids."""
    rng = np.random.default_rng(objects)
    y, x = np.mgrid[:41, :57]
    starts = rng.uniform((8, 8), (33, 49), (objects, 2))
    steps = rng.uniform(-2, 2, (objects, 2))
    frames, mask = [], np.zeros((41, 57), np.uint8)
    for t in range(length):
        waves = [np.sin((y + 0.7 * t) / 4 + c) * np.cos((x - t) / (5 + c)) for c in range(3)]
        frame = 120 + 60 * np.stack(waves, axis=-1)
        for index in range(objects):
            centre_y, centre_x = starts[index] + t * steps[index]
            down, across = y - centre_y, x - centre_x
            inside = down**2 + across**2 < 64
            stripes = 40 * np.sin((down + (index + 1) * across) / 2)
            frame[inside] = np.roll((200, 90, 40), index) + stripes[inside, None]
            if t == 0:
                mask[inside] = index + 1
        frames.append(np.clip(frame + rng.normal(0, 8, frame.shape), 0, 255).astype(np.uint8))
    assert np.unique(mask).tolist() == list(range(objects + 1))
    return np.stack(frames), mask


def segment(
    segmenter: Segmenter, frames: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> NDArray[np.float32]:
    segmenter.reset()
    results = [segmenter.step(frame, None if t else mask) for t, frame in enumerate(frames)]
    return np.stack([result.probabilities.numpy() for result in results if result is not None])


@pytest.mark.parametrize(("objects", "length", "every"), [(2, 8, 5), (1, 5, 2), (3, 3, 5)])
@pytest.mark.slow
def test_probabilities_are_those_of_the_transcription(
    state: State, converted: Path, objects: int, length: int, every: int
) -> None:
    clip = make_clip(objects, length)
    wanted = transcribe(state, *clip, memory_every=every)
    later = wanted[1:].argmax(axis=1)
    assert np.unique(later).tolist() == list(range(objects + 1))  # no object drowned in another
    memory = MemoryConfig(f"every-{every}")
    segmenter = Segmenter(
        "stm",
        weights=converted,
        device="cpu",
        precision="fp32",
        max_objects=objects,
        memory=memory,
    )
    for backend in ("auto", "reference"):
        with use_backend(backend):
            probabilities = segment(segmenter, *clip)
        assert probabilities.shape == wanted.shape
        for t in range(length):
            deviation = np.abs(probabilities[t] - wanted[t]).max()
            assert deviation <= TOLERANCE, f"{backend}: frame {t} is {deviation:.2g} off"


@pytest.mark.slow
def test_the_file_says_where_it_comes_from(state: State, converted: Path) -> None:
    metadata, tensors = read_file(converted)
    assert metadata["model"] == "stm"
    assert metadata["trained"] == "true"
    assert "STM_weights.pth" in metadata["description"]
    assert metadata["licence"] == "see the source of the weights"
    # 43 norms with a counter in each encoder, mean and std; two mask convolutions become one.
    assert len(tensors) == 558 - 2 * (43 + 2) - 1
    joined = tensors["memory_encoder.mask_conv.weight"]
    torch.testing.assert_close(joined[:, :1], state["Encoder_M.conv1_m.weight"], rtol=0, atol=0)
    torch.testing.assert_close(joined[:, 1:], state["Encoder_M.conv1_o.weight"], rtol=0, atol=0)


@pytest.mark.slow
def test_prefix_and_batch_counters_make_no_difference(
    state: State, converted: Path, tmp_path: Path
) -> None:
    plain = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    source, target = tmp_path / "plain.pth", tmp_path / "plain.safetensors"
    torch.save(plain, source)
    target.write_bytes(b"an older file is replaced")
    converter.convert("stm", source, target)
    tensors, expected = load_file(target), load_file(converted)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
    target.unlink()
    source.unlink()


@pytest.fixture
def flat() -> State:
    """Tensors of ones under every official name and shape, in almost no memory."""
    return {name: torch.ones(()).expand(shape) for name, shape in official_shapes().items()}


Refused = Callable[[Any], str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Save, convert by the command line, and return the complaint."""

    def attempt(saved: Any) -> str:
        source, target = tmp_path / "x.pth", tmp_path / "x.safetensors"
        torch.save(saved, source)
        assert converter.main(["stm", str(source), str(target)]) == 1
        assert not target.exists()
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"error: {source}: ")
        return err

    return attempt


@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_fault_is_listed_by_its_official_name(
    flat: State, refused: Refused, prefix: str
) -> None:
    del flat["Encoder_M.conv1_o.weight"], flat["Decoder.RF2.ResMM.conv1.bias"]
    del flat["Encoder_Q.mean"]
    flat["Encoder_Q.fc.weight"] = torch.ones(3)
    flat["Encoder_M.res4.5.conv3.weight"] = torch.ones(1024, 256, 3, 3)
    flat["Encoder_M.conv1_m.weight"] = torch.ones(64, 2, 7, 7)
    flat["KV_Q_r4.Key.bias"] = torch.ones(64)
    complaint = refused({prefix + name: tensor for name, tensor in flat.items()})
    assert complaint.splitlines()[1:] == [
        "  missing: Decoder.RF2.ResMM.conv1.bias [256]",
        "  missing: Encoder_M.conv1_o.weight [64, 1, 7, 7]",
        "  missing: Encoder_Q.mean [1, 3, 1, 1]",
        "  extra: Encoder_Q.fc.weight",
        "  misshapen: Encoder_M.conv1_m.weight: wanted [64, 1, 7, 7], given [64, 2, 7, 7]",
        "  misshapen: Encoder_M.res4.5.conv3.weight: wanted [1024, 256, 1, 1], "
        "given [1024, 256, 3, 3]",
        "  misshapen: KV_Q_r4.Key.bias: wanted [128], given [64]",
    ]


def test_a_prefix_on_some_names_only_is_refused(flat: State, refused: Refused) -> None:
    flat["module.Decoder.pred2.bias"] = flat.pop("Decoder.pred2.bias")
    complaint = refused(flat)
    assert "missing: Decoder.pred2.bias [2]" in complaint
    assert "extra: module.Decoder.pred2.bias" in complaint


def test_every_official_tensor_is_wanted(flat: State, refused: Refused) -> None:
    wanted = {
        f"  missing: {name} {list(tensor.shape)}"
        for name, tensor in flat.items()
        if "num_batches" not in name
    }
    assert set(refused({}).splitlines()[1:]) == wanted


@pytest.mark.parametrize("part", ["mean", "std"])
def test_encoders_that_disagree_on_their_input_are_refused(
    flat: State, refused: Refused, part: str
) -> None:
    flat[f"Encoder_Q.{part}"] = torch.tensor([0.5, 0.25, 0.125]).view(1, 3, 1, 1)
    complaint = refused(flat)
    assert f"Encoder_M.{part} [1.0, 1.0, 1.0] and Encoder_Q.{part} [0.5, 0.25, 0.125]" in complaint


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_std_must_be_positive(flat: State, refused: Refused, value: float) -> None:
    std = torch.tensor([0.2, value, 0.2]).view(1, 3, 1, 1)
    assert "std" in refused({**flat, "Encoder_M.std": std, "Encoder_Q.std": std})


def test_what_is_no_state_dict_is_refused(flat: State, refused: Refused) -> None:
    assert "wanted a dict of tensors, given list" in refused([torch.ones(3)])
    wrapped = refused({"state_dict": dict(flat), "epoch": 3})
    assert "wanted only tensors, holds also state_dict, epoch" in wrapped


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.slow
def test_damaged_files_are_refused(flat: State, tmp_path: Path, new_format: bool) -> None:
    written = io.BytesIO()
    torch.save(flat, written, _use_new_zipfile_serialization=new_format)
    whole = written.getvalue()
    source = tmp_path / "x.pth"
    for length in (*range(0, len(whole), len(whole) // 20), len(whole) - 1):
        source.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="no file that torch"):
            converter.read_state_dict(source)


@pytest.mark.parametrize("content", [b"hello", b"<html>404</html>", b"GIF89a....", bytes(100)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "x.pth"
    source.write_bytes(content)
    with pytest.raises(WeightsError, match="no file that torch"):
        converter.read_state_dict(source)


def test_paths_are_checked(flat: State, tmp_path: Path) -> None:
    source = tmp_path / "x.pth"
    with pytest.raises(WeightsError, match="no such file"):
        converter.convert("stm", source, tmp_path / "x.safetensors")
    torch.save(flat, source)
    with pytest.raises(WeightsError, match=r"ends in \.safetensors"):
        converter.convert("stm", source, tmp_path / "x.pt")
    with pytest.raises(OutputError, match="cannot be written"):
        converter.convert("stm", source, tmp_path / "none" / "x.safetensors")


@pytest.mark.slow
def test_the_script_runs_and_fails_without_a_traceback(tmp_path: Path) -> None:
    script = [sys.executable, "-W", "error", str(converter.__file__)]
    command = [*script, "stm", str(tmp_path / "none.pth"), str(tmp_path / "x.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (f"error: {tmp_path / 'none.pth'}: no such file; wanted a state dict\n")
