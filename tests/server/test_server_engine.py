"""The server over a real engine with a narrow network: labels are those of a Segmenter, whatever
else goes on; a process that is killed or asked to end loses nothing that it need not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Semaphore
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from conftest import make, tiny_config
from serving import SIZE, TOKEN, Line, Running, bearer, running, tiny_engine, until
from stub_engine import StubEngine
from websockets.exceptions import ConnectionClosed

from vosengine.client import Client, ServerError
from vosengine.training.synthetic import ClipConfig, make_clip
from vosengine.zoo.registry import build
from vosengine.zoo.weights import save, state_of

SESSIONS, FRAMES = 16, 4


def clip_of(seed: int, frames: int = FRAMES) -> Any:
    height, width = SIZE
    return make_clip(ClipConfig(frames=frames, height=height, width=width, objects=(1, 2)), seed)


def alone(clip: Any, model: str = "stm", **options: Any) -> list[np.ndarray]:
    """The labels of a separate Segmenter."""
    segmenter = make(model, **options)
    masks = [clip.masks[0], *[None] * len(clip.frames)]
    if not segmenter.method.takes_mask:
        masks[0] = None
    answers = [segmenter.step(f, m) for f, m in zip(clip.frames, masks, strict=False)]
    return [a.numpy() for a in (*answers, *segmenter.flush()) if a is not None]


def test_sixteen_sessions_interleaved_are_each_as_alone() -> None:
    clips = [clip_of(seed) for seed in range(SESSIONS)]
    with running(tiny_engine(max_batch=1), max_sessions=SESSIONS) as server:
        lines = [server.connect(server.open(policy="all")) for _ in clips]
        for index in range(FRAMES):
            for line, clip in zip(lines, clips, strict=True):
                line.image(index, clip.frames[index], None if index else clip.masks[0])
        for line, clip in zip(lines, clips, strict=True):
            for index, wanted in enumerate(alone(clip)):
                answer = line.hear(30)
                assert answer["frame"] == index
                np.testing.assert_array_equal(answer["labels"], wanted)
            line.socket.close()


def test_every_session_has_its_turn_within_a_round() -> None:
    engine = StubEngine()
    with running(engine, max_sessions=SESSIONS) as server:
        lines = [server.connect(server.open(policy="all")) for _ in range(SESSIONS)]
        mask = clip_of(0).masks[0]
        for line in lines:
            line.frame(0, 0, mask)
            line.hear()
        engine.order.clear()
        engine.may_step.clear()
        for number in (1, 2, 3):  # the first sends three frames before the last sends one
            lines[0].frame(number)
        for line in lines[1:]:
            line.frame(1)
        worker = server.service.worker
        until(lambda: len(worker._turns) + worker._inbox.qsize() == SESSIONS - 1)
        engine.may_step.set()
        for line in lines[1:]:
            line.hear()
        [lines[0].hear() for _ in range(3)]
        assert len(set(engine.order[:SESSIONS])) == SESSIONS


@pytest.mark.parametrize("model", ["stm", "imcnet"])
def test_tritonclient_steps_a_stream(model: str) -> None:
    clip = clip_of(3, frames=7)
    with running(tiny_engine(model)) as server:
        client = triton.InferenceServerClient(server.url[7:])
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready(model)
        metadata = client.get_model_metadata(model)
        names = [entry["name"] for entry in metadata["inputs"]]
        assert names == (["frame", "prompt"] if model == "stm" else ["frame"])
        parameters = client.get_model_config(model)["parameters"]
        latency = int(parameters["latency"]["string_value"])
        assert latency == (0 if model == "stm" else 4)
        outputs = []
        for index in range(len(clip.frames) + latency):
            frame = clip.frames[min(index, len(clip.frames) - 1)]
            tensors = {"frame": frame}
            if model == "stm":
                tensors["prompt"] = clip.masks[0] if index == 0 else np.zeros(SIZE, np.uint8)
            answer = client.infer(
                model,
                [
                    infer_input_of(name, tensor, binary=index % 2 == 0)
                    for name, tensor in tensors.items()
                ],
                sequence_id=7,
                sequence_start=index == 0,
                sequence_end=index == len(clip.frames) + latency - 1,
                headers=bearer(TOKEN),
            )
            outputs.append(answer.as_numpy("labels"))
        assert not any(labels.any() for labels in outputs[:latency])
        wanted = alone(clip, model)
        exact = len(wanted) - latency  # the last ones see repeated frames, as the client sent
        for labels, other in zip(outputs[latency:][:exact], wanted[:exact], strict=True):
            np.testing.assert_array_equal(labels, other)
        assert server.http.get("/v1/sessions").json() == []  # the sequence has ended
        frame = [infer_input_of("frame", clip.frames[0])]
        for refused in (
            {"sequence_id": 7, "headers": bearer(TOKEN)},  # has ended
            {"headers": bearer(TOKEN)},  # of none
            {"sequence_id": 8, "sequence_start": True},  # without a token
        ):
            with pytest.raises(triton.InferenceServerException):
                client.infer(model, frame, **refused)
        with pytest.raises(triton.InferenceServerException):
            client.get_model_metadata("another")
        client.close()


def test_a_request_behind_the_one_that_ends_its_sequence_is_answered() -> None:
    engine, mask = StubEngine(), clip_of(0).masks[0]
    tensors = {"frame": np.zeros((*SIZE, 3), np.uint8), "prompt": mask}
    inputs = [
        {"name": name, "shape": list(tensor.shape), "datatype": "UINT8", "data": tensor.tolist()}
        for name, tensor in tensors.items()
    ]
    with running(engine) as server, ThreadPoolExecutor(2) as pool:

        def infer(**parameters: bool) -> httpx.Response:
            body = {"inputs": inputs, "parameters": {"sequence_id": 7, **parameters}}
            return server.http.post("/v2/models/stub/infer", json=body)

        assert infer(sequence_start=True).status_code == 200
        (session,) = server.service._sessions.values()
        engine.may_step.clear()
        last = pool.submit(infer, sequence_end=True)
        until(lambda: session.busy)
        late = pool.submit(infer)
        until(lambda: session.expected == 3)
        engine.may_step.set()
        assert last.result(10).status_code == 200
        assert late.result(10).status_code == 503


class OneByOne(StubEngine):
    """An engine whose every step waits for a permit."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = Semaphore(0)

    def step(self) -> Any:
        assert self.permits.acquire(timeout=10)
        return super().step()


def test_the_client_passes_every_answer_on_before_the_next_step() -> None:
    """The last ones too, so that a session whose turns are over is not heard of later than others.

    With a window of two frames the third is sent once the first is answered, and then no more."""
    engine, frame = OneByOne(), np.zeros((*SIZE, 3), np.uint8)
    with running(engine) as server, Client(f"{server.url}/#token={TOKEN}", policy="all") as client:
        answers = client.stream([(frame, clip_of(0).masks[0]), (frame, None), (frame, None)])
        for number in range(3):
            engine.permits.release()
            assert next(answers).frame == number
            assert len(engine.order) == number + 1
        assert list(answers) == []


def test_the_client_says_a_control_again_after_a_cut() -> None:
    engine, frame, mask = StubEngine(), np.zeros((*SIZE, 3), np.uint8), clip_of(0).masks[0]
    with ExitStack() as stack:
        server = stack.enter_context(running(engine))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        client = stack.enter_context(Client(f"{server.url}/#token={TOKEN}", policy="all"))
        client.step(frame, mask)
        (session,) = server.service._sessions.values()
        other = stack.enter_context(server.connect(server.open()))  # keeps the engine busy
        engine.may_step.clear()
        other.frame(0, 0, mask)
        until(lambda: server.service.worker._begun)
        done = pool.submit(client.reset)
        until(lambda: server.service.worker._inbox.qsize())
        cut: Any = session.listener
        cut._socket.scope["extensions"]["vosengine.cut"](1013)
        until(lambda: session.listener not in (cut, None))
        engine.may_step.set()
        done.result(10)
        answer = client.step(frame, mask)
        assert answer is not None and answer.frame == 0


def infer_input_of(name: str, tensor: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    infer_input = triton.InferInput(name, list(tensor.shape), "UINT8")
    infer_input.set_data_from_numpy(tensor, binary_data=binary)
    return infer_input


def test_the_client_streams_steps_removes_and_resets() -> None:
    clip = clip_of(5, frames=6)
    with running(tiny_engine()) as server:
        address = f"{server.url}/#token={TOKEN}"
        with Client(address, encoding="png", policy="all") as client:
            pairs = [(f, None if i else clip.masks[0]) for i, f in enumerate(clip.frames)]
            answers = list(client.stream(pairs))
            assert [answer.frame for answer in answers] == list(range(6))
            for answer, wanted in zip(answers, alone(clip), strict=True):
                np.testing.assert_array_equal(answer.labels, wanted)
            first = answers[0].ids[0]
            assert first not in client.remove(first)
            with pytest.raises(ServerError) as refused:
                client.remove(first)
            assert refused.value.code == "bad_request"
            client.reset()
            answer = client.step(*pairs[0])
            assert answer is not None and answer.frame == 0
            np.testing.assert_array_equal(answer.labels, answers[0].labels)
        assert server.http.get("/v1/sessions").json() == []
        with pytest.raises(ServerError) as wrong, Client(server.url, "wrong"):
            pass
        assert wrong.value.code == "token"


def test_the_client_sends_again_after_a_cut() -> None:
    clip = clip_of(6, frames=8)
    with running(tiny_engine()) as server:
        with Client(f"{server.url}/#token={TOKEN}", encoding="raw", policy="all") as client:
            answers = []
            for index, frame in enumerate(clip.frames):
                client.send(frame, None if index else clip.masks[0])
                if index in (2, 5):  # cut without a word, frames under way
                    (session,) = server.service._sessions.values()
                    socket: Any = session.listener
                    socket._socket.scope["extensions"]["vosengine.cut"](1013)
                    time.sleep(0.1)
            answers = client.flush()
        for answer, wanted in zip(answers, alone(clip), strict=True):
            np.testing.assert_array_equal(answer.labels, wanted)


@contextmanager
def process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Running]]:
    """`vosengine serve` in a separate process with narrow weights, and its clients."""
    weights, states = folder / "narrow.safetensors", folder / "states"
    if not weights.exists():
        config = tiny_config("stm")
        metadata = {"trained": True, "description": "narrow", "licence": "MIT"}
        save(weights, "stm", config, state_of(build("stm", config)), **metadata)
    command = [sys.executable, "-m", "vosengine", "serve", "--model", "stm"]
    command += ["--weights", str(weights), "--device", "cpu", "--precision", "fp32", "--port", "0"]
    command += ["--token", TOKEN, "--state-dir", str(states), "--autosave", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().strip()
            url, _, token = address.partition("/#token=")
            assert token == TOKEN, address
            with httpx.Client(base_url=url, headers=bearer(TOKEN), trust_env=False) as http:
                yield server, Running(url, http)
        finally:
            if server.poll() is None:
                server.kill()


def test_a_killed_server_is_gone_on_with_and_one_that_ends_delivers(tmp_path: Path) -> None:
    """kill -9 under load; the next server resumes every session; SIGTERM ends that one."""
    clips = [clip_of(seed, frames=12) for seed in range(3)]
    wanted = [alone(clip) for clip in clips]
    with process(tmp_path) as (server, running_server):
        sessions = [running_server.open(policy="all") for _ in clips]
        lines = [running_server.connect(session) for session in sessions]
        for index in range(6):
            for line, clip in zip(lines, clips, strict=True):
                line.image(index, clip.frames[index], None if index else clip.masks[0])
            for line in lines[: 3 if index < 4 else 0]:
                line.hear(30)
        server.kill()
        server.wait(10)
        for line in lines:
            with pytest.raises((ConnectionClosed, EOFError)):
                for _ in range(9):
                    line.hear(5)
    with process(tmp_path) as (server, running_server):
        listed = {
            session["id"]: session for session in running_server.http.get("/v1/sessions").json()
        }
        assert set(listed) == {session["id"] for session in sessions}
        lines = []
        for session, clip, labels in zip(sessions, clips, wanted, strict=True):
            made = running_server.open(resume_from=session["id"])
            start = made["next_frame"]
            assert 2 <= start <= 6
            lines.append(running_server.connect(session))
            for index in range(start, 9):
                lines[-1].image(index, clip.frames[index])
                answer = lines[-1].hear(30)
                assert answer["frame"] == index
                np.testing.assert_array_equal(answer["labels"], labels[index])
        for line, clip in zip(lines, clips, strict=True):
            for index in (9, 10):
                line.image(index, clip.frames[index])
        end = time.monotonic()
        server.send_signal(signal.SIGTERM)
        messages = [rest_of(line) for line in lines]
        server.wait(10)
        assert time.monotonic() - end < 10
    with process(tmp_path) as (_, running_server):
        for session, clip, labels, rest in zip(sessions, clips, wanted, messages, strict=True):
            assert rest[-1] == {"type": "closing", "reason": "restart"}
            answered = [message["frame"] for message in rest[:-1]]
            with running_server.connect(session) as line:
                number = line.hello["next_frame"]
                assert answered == list(range(9, number))  # what was counted was delivered
                line.image(number, clip.frames[number])
                np.testing.assert_array_equal(line.hear(30)["labels"], labels[number])


def rest_of(line: Line) -> list[dict[str, Any]]:
    """All messages of a connection until the server closes it."""
    messages = []
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            messages.append(line.hear(10))
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
    return messages
