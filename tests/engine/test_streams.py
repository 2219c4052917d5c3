"""Streams over time: bitwise resume in another process, delayed results, constant memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import FOLLOWERS, WITH_MEMORY, follow, make, tiny_config, to_the_end
from quick_streams import stream_state
from safetensors.torch import save
from torch.utils._python_dispatch import TorchDispatchMode

from vosengine.engine.segmenter import Segmenter
from vosengine.errors import InputError, OutputError, StateError
from vosengine.models.method import Method, State
from vosengine.training.synthetic import Clip
from vosengine.types import Geometry, Masks, Scores

RESUME = """
import sys
import numpy as np
from conftest import make, to_the_end
model, state, frames, out, policy = sys.argv[1:]
segmenter = make(model, max_objects=4, size=48, memory=policy or None)
segmenter.load_state(state)
results = to_the_end(segmenter, np.load(frames))
np.savez(out, labels=[r.numpy() for r in results],
         probabilities=[r.probabilities.numpy() for r in results],
         indices=[r.frame_index for r in results])
"""


def with_our_paths() -> dict[str, str]:
    """Return an environment in which another process can import the test support modules."""
    tests = Path(__file__).resolve().parents[1]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests, tests / "support")))}


@pytest.mark.slow
def test_a_stream_resumes_in_a_new_process_bit_by_bit(
    any_model: str, clip: Clip, tmp_path: Path
) -> None:
    """At another size than the frame's, and with the adaptive memory if supported."""
    policy = "afb" if any_model in WITH_MEMORY else ""
    segmenter = make(any_model, max_objects=4, size=48, memory=policy or None)
    prompt = np.array([0, 8, 3], np.uint8)[clip.masks[0]]
    for index, frame in enumerate(clip.frames[:6]):
        segmenter.step(frame, prompt if index == 0 and any_model in FOLLOWERS else None)
    segmenter.save_state(tmp_path / "stream.safetensors")
    np.save(tmp_path / "frames.npy", clip.frames[6:])
    wanted = to_the_end(segmenter, clip.frames[6:])
    assert len(wanted) == 4 + segmenter.latency
    paths = [tmp_path / name for name in ("stream.safetensors", "frames.npy", "out")]
    command = [sys.executable, "-c", RESUME, any_model, *map(str, paths), policy]
    done = subprocess.run(
        command, env=with_our_paths(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    resumed = np.load(tmp_path / "out.npz")
    for index, result in enumerate(wanted):
        assert resumed["indices"][index] == result.frame_index
        np.testing.assert_array_equal(resumed["labels"][index], result.numpy())
        np.testing.assert_array_equal(resumed["probabilities"][index], result.probabilities.numpy())


def test_a_stream_that_does_not_fit_is_refused(clip: Clip, tmp_path: Path) -> None:
    path = tmp_path / "stream.safetensors"
    segmenter = make("stm")
    follow(segmenter, clip.frames[:2], clip.masks[0])
    segmenter.save_state(path)
    with pytest.raises(StateError, match="model: saved stm, here munet"):
        make("munet").load_state(path)
    with pytest.raises(StateError, match="max_objects: saved 10, here 2"):
        make("stm", max_objects=2).load_state(path)
    with pytest.raises(StateError, match="no such file"):
        segmenter.load_state(tmp_path / "nothing")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StateError, match="corrupt"):
        segmenter.load_state(path)
    with pytest.raises(OutputError, match="cannot be written"):
        segmenter.save_state(tmp_path / "no" / "folder")
    assert segmenter.step(clip.frames[2]) is not None


@pytest.fixture
def two_steps(clip: Clip) -> Segmenter:
    segmenter = make("stm")
    follow(segmenter, clip.frames[:2], clip.masks[0])
    return segmenter


def test_a_snapshot_is_a_saved_file_and_may_be_restored_again(
    two_steps: Segmenter, clip: Clip, tmp_path: Path
) -> None:
    """Snapshots and files are interchangeable."""
    data, file = two_steps.snapshot(), tmp_path / "stream.safetensors"
    two_steps.save_state(file)
    wanted = to_the_end(two_steps, clip.frames[2:5])
    fresh = make("stm")
    ways: list[Callable[[], None]] = [
        lambda: fresh.restore(data),
        lambda: two_steps.restore(data),
        lambda: fresh.restore(file.read_bytes()),
        lambda: (file.write_bytes(data), fresh.load_state(file))[1],
    ]
    for again, way in zip((fresh, two_steps, fresh, fresh), ways, strict=True):
        way()
        for one, other in zip(to_the_end(again, clip.frames[2:5]), wanted, strict=True):
            assert one.frame_index == other.frame_index
            assert torch.equal(one.probabilities, other.probabilities)
    for same in (bytearray(data), memoryview(data)):
        fresh.restore(same)  # type: ignore[arg-type]
        assert fresh.frame_count == 2


def test_a_snapshot_that_does_not_fit_is_refused(two_steps: Segmenter, clip: Clip) -> None:
    data = two_steps.snapshot()
    calm = make("stm")
    calm.restore(data)
    middle = bytearray(data)
    middle[len(data) // 2] ^= 1
    start = data.index(b'"flushed') if b'"flushed' in data else data.index(b"flushed")
    renamed = data[:start] + data[start:].replace(b"flushed", b"flashed", 1)
    bad: list[tuple[type[Exception], str, Any]] = [
        (StateError, "corrupt, or no saved stream", b""),
        (StateError, "corrupt, or no saved stream", data[:5]),
        (StateError, "corrupt, or no saved stream", data[:-40]),
        (StateError, "corrupt, or no saved stream", data[40:]),
        (StateError, "corrupt, or no saved stream", data + b"0"),
        (StateError, "fails its hash", bytes(middle)),
        (StateError, "fails its hash", renamed),
        (StateError, "not a stream that this version saved", save({"a": torch.ones(3)})),
        (StateError, "max_objects: saved 3, here 10", make("stm", max_objects=3).snapshot()),
        (StateError, "model: saved munet, here stm", make("munet").snapshot()),
        (InputError, "wanted the bytes of snapshot", "stream.safetensors"),
    ]
    for kind, message, value in bad:
        name = "snapshot" if kind is StateError else "restore"
        with pytest.raises(kind, match=f"^{name}: .*{message}"):
            two_steps.restore(value)
    assert (two_steps.ids, two_steps.frame_count) == (calm.ids, calm.frame_count)
    one, other = (segmenter.step(clip.frames[2]) for segmenter in (two_steps, calm))
    assert one is not None
    assert other is not None
    assert torch.equal(one.probabilities, other.probabilities)


class EchoState(State):
    """State that counts calls."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def forget(self, slot: int) -> None:
        self.object_count -= 1

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, tensors: dict[str, torch.Tensor], object_count: int) -> None:
        self.object_count = object_count


class EchoFeatures(NamedTuple):
    number: torch.Tensor


class Echo(Method[EchoFeatures, EchoState]):
    """Method with a window of two frames back and three ahead, which records its frames."""

    sees = (-2, 0, 3)
    features = EchoFeatures

    def __init__(self) -> None:
        super().__init__()
        self.config = tiny_config("stm")
        self.encoded = 0

    def start(
        self, geometry: Geometry, max_objects: int, memory: object = None, pools: object = None
    ) -> EchoState:
        return EchoState()

    def encode(self, frames: torch.Tensor) -> EchoFeatures:
        self.encoded += 1
        return EchoFeatures(frames.mean()[None] * 0 + self.encoded - 1)

    def segment(self, seen: Sequence[EchoFeatures], state: EchoState) -> Scores:
        return Scores(torch.zeros(state.object_count, 16, 16), stride=4)

    def remember(self, seen: Sequence[EchoFeatures], masks: Masks, state: EchoState) -> None:
        state.seen.append(tuple(int(features.number) for features in seen))
        state.object_count = masks.object_count


class Counting(TorchDispatchMode):
    """Counts searches for ids in masks."""

    times = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.times += function.overloadpacket.__name__ in ("bincount", "unique", "_unique2")
        return function(*args, **(kwargs or {}))


def test_a_prompt_is_named_once_however_long_it_waits() -> None:
    segmenter = make("stm")
    segmenter.runs_on.method = Echo()
    segmenter.reset()
    frame, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    mask[:9, :9] = 4
    with Counting() as counting:
        answers = [segmenter.step(frame, {0: mask, 2: mask + 1}.get(i)) for i in range(6)]
        assert segmenter.flush()[-1].ids == (1, 4, 5)
    assert answers[5] is not None and answers[5].ids == (1, 4, 5)
    assert counting.times == 2


def test_a_method_that_looks_ahead_answers_late_and_flush_gives_the_rest() -> None:
    segmenter = make("stm")
    echo = Echo()
    segmenter.runs_on.method = echo
    segmenter.reset()
    frame = np.zeros((64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:9, :9] = 4
    late = np.zeros((64, 64), np.uint8)
    late[40:, 40:] = 6
    assert segmenter.latency == 3
    answers = [segmenter.step(frame, {0: mask, 2: late}.get(i)) for i in range(6)]
    assert [a and a.frame_index for a in answers] == [None, None, None, 0, 1, 2]
    assert answers[3] is not None
    assert answers[5] is not None
    assert answers[3].ids == (4,)  # the prompt of frame 2 waits for its own frame
    assert answers[5].ids == (4, 6)
    np.testing.assert_array_equal(answers[5].numpy() == 6, late == 6)
    assert [result.frame_index for result in segmenter.flush()] == [3, 4, 5]
    windows = stream_state(segmenter).seen
    assert windows == [(0, 0, 3), (0, 1, 4), (0, 2, 5), (1, 3, 5), (2, 4, 5), (3, 5, 5)]
    assert echo.encoded == 6  # once per frame
    assert segmenter.flush() == []
    with pytest.raises(InputError, match="flushed"):
        segmenter.step(frame)


def test_a_prompt_in_the_ring_counts_against_the_capacity() -> None:
    segmenter = make("stm", max_objects=2)
    segmenter.runs_on.method = Echo()
    segmenter.reset()
    frame = np.zeros((64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    for object_id in (1, 2):
        mask[:] = 0
        mask[object_id] = object_id
        segmenter.step(frame, mask)
    mask[:] = 3
    with pytest.raises(InputError, match=r"3 objects \[1, 2, 3\] are more than max_objects = 2"):
        segmenter.step(frame, mask)


@pytest.mark.slow
def test_memory_of_the_process_stays_flat() -> None:
    """Resident memory does not grow over 400 frames after warm-up."""
    code = """
import numpy as np, resource
from conftest import follow, make, tiny_config
from vosengine import Segmenter
from vosengine.training.synthetic import ClipConfig, iterate_clip
def resident():
    with open("/proc/self/statm") as f: return int(f.read().split()[1]) * resource.getpagesize()
segmenter = Segmenter("munet", device="cpu", config=tiny_config("munet"), max_objects=3)
clip = iterate_clip(ClipConfig(frames=451, height=64, width=96, objects=(2, 2)), seed=2)
for index, (frame, mask) in enumerate(clip):
    segmenter.step(frame, None if index else mask)
    if index == 50: start = resident()
print((resident() - start) / 2**20)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=with_our_paths(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 3  # MiB; one frame's features of this clip are 0.5 MiB
