"""Results: copying, pickling, and COCO run-length encoding."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import follow, make
from pycocotools import mask as coco

from vosengine.errors import InputError
from vosengine.rle import decode
from vosengine.training.synthetic import Clip
from vosengine.types import Result, _unpickled


@pytest.fixture(scope="module")
def answer(clip: Clip) -> Result[torch.Tensor]:
    """Return the result of a frame without a mask, with objects 8 and 3."""
    prompt = np.array([0, 8, 3], np.uint8)[clip.masks[0]]
    return follow(make("stm"), clip.frames[:3], prompt)[-1]


@pytest.fixture(scope="module")
def of_arrays(answer: Result[torch.Tensor]) -> Result[np.ndarray]:
    """Return the same result with NumPy arrays, as an OnnxSegmenter does."""
    rows = answer.probabilities.numpy()
    return Result(answer.numpy(), answer.ids, answer.frame_index, lambda: rows.copy())


def assert_equal(result: Result, wanted: Result) -> None:
    assert type(result.labels) is type(wanted.labels)
    assert type(result.probabilities) is type(wanted.probabilities)
    assert result.labels.dtype == wanted.labels.dtype
    assert result.probabilities.dtype == wanted.probabilities.dtype
    assert (result.ids, result.frame_index) == (wanted.ids, wanted.frame_index)
    np.testing.assert_array_equal(result.numpy(), wanted.numpy())
    np.testing.assert_array_equal(result.probabilities, wanted.probabilities)


WAYS: dict[str, Callable[[Result], Result]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {n}": lambda r, n=n: pickle.loads(pickle.dumps(r, n))  # type: ignore[misc]
        for n in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
    "pickled twice": lambda r: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(r)))),
    "a copy pickled": lambda r: pickle.loads(pickle.dumps(copy.deepcopy(r))),
    "a pickle copied": lambda r: copy.deepcopy(pickle.loads(pickle.dumps(r))),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_says_the_same_and_is_its_own(
    answer: Result[torch.Tensor], of_arrays: Result[np.ndarray], way: str
) -> None:
    for wanted in (answer, of_arrays):
        before = wanted.numpy().copy()
        copied = WAYS[way](wanted)
        assert_equal(copied, wanted)
        copied.probabilities[:] = 0  # a new one whenever it is asked for
        assert_equal(copied, wanted)
        if way != "copy":
            copied.labels[:] = 77
        np.testing.assert_array_equal(wanted.numpy(), before)


READ = """
import pickle, sys
import numpy as np
result = pickle.load(open(sys.argv[1], "rb"))
np.savez(sys.argv[2], labels=result.numpy(), rows=result.probabilities, ids=result.ids)
print(type(result.labels).__name__, "torch" in sys.modules)
"""


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.slow
def test_a_pickle_is_read_by_another_process(
    answer: Result[torch.Tensor], of_arrays: Result[np.ndarray], arrays: bool, tmp_path: Path
) -> None:
    """Without torch, if the result is from onnxruntime."""
    wanted: Result = of_arrays if arrays else answer
    (tmp_path / "result").write_bytes(pickle.dumps(wanted))
    command = [sys.executable, "-c", READ, str(tmp_path / "result"), str(tmp_path / "found.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == (["ndarray", "False"] if arrays else ["Tensor", "True"])
    loaded = np.load(tmp_path / "found.npz")
    np.testing.assert_array_equal(loaded["labels"], wanted.numpy())
    np.testing.assert_array_equal(loaded["rows"], wanted.probabilities)
    assert tuple(loaded["ids"]) == wanted.ids


def test_a_result_of_a_gpu_comes_back_on_the_cpu_where_there_is_none(
    answer: Result[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle from a GPU has arrays and the name of the device."""
    read, arguments = answer.__reduce__()
    assert read is _unpickled
    assert all(not isinstance(argument, torch.Tensor) for argument in arguments)
    assert arguments[-1] == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device in ("cuda", "cuda:0", "cuda:1"):
        restored = read(*arguments[:-1], device)
        assert restored.labels.device == restored.probabilities.device == torch.device("cpu")
        assert_equal(restored, answer)


@pytest.mark.gpu
def test_a_result_of_a_gpu_comes_back_on_it(clip: Clip) -> None:
    wanted = follow(make("stm", device="cuda"), clip.frames[:2], clip.masks[0])[-1]
    restored = pickle.loads(pickle.dumps(wanted))
    assert restored.labels.device == wanted.labels.device
    assert torch.equal(restored.labels, wanted.labels)
    assert torch.equal(restored.probabilities, wanted.probabilities)


# Independent implementation of COCO's encoding, from pycocotools' description, pixel by pixel


def runs_of(mask: np.ndarray) -> list[int]:
    """Down the columns, background first."""
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def text_of(runs: list[int]) -> str:
    """Encode runs: from the fourth on the difference to the last but one; five bits per character
    from 48 on, lowest first, plus 32 if more follow."""
    text = ""
    for place, run in enumerate(runs):
        left = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            bits, left = left & 31, left >> 5
            more = left != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def mask_of(text: str, size: tuple[int, int]) -> np.ndarray:
    """Decode an encoded mask."""
    runs: list[int] = []
    number = place = 0
    for character in text:
        bits = ord(character) - 48
        number += (bits & 31) << 5 * place
        place += 1
        if not bits & 32:
            number -= (1 << 5 * place) if bits & 16 else 0
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = place = 0
    pixels = [index % 2 == 1 for index, run in enumerate(runs) for _ in range(run)]
    return np.array(pixels).reshape(size[1], size[0]).T


def labelled(labels: np.ndarray, ids: tuple[int, ...], form: str) -> Result:
    kept = torch.from_numpy(labels) if form == "torch" else labels
    return Result(kept, ids, 0, lambda: kept)


LABELS = {
    "empty": np.zeros((5, 7), np.uint8),
    "full": np.full((5, 7), 3, np.uint8),
    "a corner": np.pad(np.full((1, 1), 3, np.uint8), ((0, 4), (0, 6))),
    "the last pixel": np.pad(np.full((1, 1), 3, np.uint8), ((4, 0), (6, 0))),
    "noise": np.random.default_rng(0).choice(np.array([0, 3, 9], np.uint8), (31, 45)),
    "long runs": np.pad(np.full((300, 200), 3, np.uint8), ((100, 20), (90, 7))),
}


@pytest.mark.parametrize("form", ["numpy", "torch"])
@pytest.mark.parametrize("name", LABELS)
def test_a_mask_as_coco_writes_it(name: str, form: str) -> None:
    labels = LABELS[name]
    rle = labelled(labels, (3, 9), form).rle(3)
    assert json.loads(json.dumps(rle)) == rle
    assert set(rle) == {"size", "counts"}
    assert rle["size"] == list(labels.shape)
    assert rle["counts"] == text_of(runs_of(labels == 3))
    np.testing.assert_array_equal(mask_of(rle["counts"], labels.shape), labels == 3)
    np.testing.assert_array_equal(decode(rle["counts"], labels.shape), labels == 3)
    expected = coco.encode(np.asfortranarray((labels == 3).astype(np.uint8)))
    assert (rle["size"], rle["counts"]) == (expected["size"], expected["counts"].decode())


def test_masks_of_an_answer_as_coco_writes_them(answer: Result[torch.Tensor]) -> None:
    for object_id in answer.ids:
        wanted = answer.numpy() == object_id
        assert answer.rle(object_id)["counts"] == text_of(runs_of(wanted))


def test_only_objects_of_the_frame_have_a_mask(answer: Result[torch.Tensor]) -> None:
    for object_id in (0, 1, 255, -1):
        with pytest.raises(InputError, match=rf"^rle: no object {object_id}; .*: 3, 8$"):
            answer.rle(object_id)
    with pytest.raises(InputError, match="no object 3; those of this frame: none"):
        labelled(LABELS["full"], (), "numpy").rle(3)
