"""What a Result is good for once it is there: copied and sent elsewhere."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import follow, make

from vosengine.training.synthetic import Clip
from vosengine.types import Result, _unpickled


@pytest.fixture(scope="module")
def answer(clip: Clip) -> Result[torch.Tensor]:
    """Of a frame without a mask, with objects of ids 8 and 3."""
    prompt = np.array([0, 8, 3], np.uint8)[clip.masks[0]]
    return follow(make("stm"), clip.frames[:3], prompt)[-1]


@pytest.fixture(scope="module")
def of_arrays(answer: Result[torch.Tensor]) -> Result[np.ndarray]:
    """The same, as an OnnxSegmenter gives it."""
    rows = answer.probabilities.numpy()
    return Result(answer.numpy(), answer.ids, answer.frame_index, lambda: rows.copy())


def assert_equal(found: Result, wanted: Result) -> None:
    assert type(found.labels) is type(wanted.labels)
    assert type(found.probabilities) is type(wanted.probabilities)
    assert found.labels.dtype == wanted.labels.dtype
    assert found.probabilities.dtype == wanted.probabilities.dtype
    assert (found.ids, found.frame_index) == (wanted.ids, wanted.frame_index)
    np.testing.assert_array_equal(found.numpy(), wanted.numpy())
    np.testing.assert_array_equal(found.probabilities, wanted.probabilities)


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
        found = WAYS[way](wanted)
        assert_equal(found, wanted)
        found.probabilities[:] = 0  # a new one whenever it is asked for
        assert_equal(found, wanted)
        if way != "copy":
            found.labels[:] = 77
        np.testing.assert_array_equal(wanted.numpy(), before)


READ = """
import pickle, sys
import numpy as np
result = pickle.load(open(sys.argv[1], "rb"))
np.savez(sys.argv[2], labels=result.numpy(), rows=result.probabilities, ids=result.ids)
print(type(result.labels).__name__, "torch" in sys.modules)
"""


@pytest.mark.parametrize("arrays", [False, True])
def test_a_pickle_is_read_by_another_process(
    answer: Result[torch.Tensor], of_arrays: Result[np.ndarray], arrays: bool, tmp_path: Path
) -> None:
    """Without torch, where the result came from onnxruntime."""
    wanted: Result = of_arrays if arrays else answer
    (tmp_path / "result").write_bytes(pickle.dumps(wanted))
    command = [sys.executable, "-c", READ, str(tmp_path / "result"), str(tmp_path / "found.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == (["ndarray", "False"] if arrays else ["Tensor", "True"])
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_array_equal(found["labels"], wanted.numpy())
    np.testing.assert_array_equal(found["rows"], wanted.probabilities)
    assert tuple(found["ids"]) == wanted.ids


def test_a_result_of_a_gpu_comes_back_on_the_cpu_where_there_is_none(
    answer: Result[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is pickled on a GPU: arrays, and the name of the device."""
    read, given = answer.__reduce__()
    assert read is _unpickled
    assert all(not isinstance(each, torch.Tensor) for each in given)
    assert given[-1] == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device in ("cuda", "cuda:0", "cuda:1"):
        found = read(*given[:-1], device)
        assert found.labels.device == found.probabilities.device == torch.device("cpu")
        assert_equal(found, answer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_result_of_a_gpu_comes_back_on_it(clip: Clip) -> None:
    wanted = follow(make("stm", device="cuda"), clip.frames[:2], clip.masks[0])[-1]
    found = pickle.loads(pickle.dumps(wanted))
    assert found.labels.device == wanted.labels.device
    assert torch.equal(found.labels, wanted.labels)
    assert torch.equal(found.probabilities, wanted.probabilities)
