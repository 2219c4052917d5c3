"""Server overhead per frame, fairness among sessions, and memory after a thousand sessions.

    python bench/serve.py [--model munet] [--weights demo] [--frames 100] [--sessions 16]
        [--rounds 20] [--opened 1000] [--folder bench/results]

The server is `vosengine serve` in its own process, reached over loopback.

Overhead: frames of 480x854 are sent as JPEG (quality 90), then raw, one at a time, and labels come
back. The overhead is the time from the first byte sent to the last byte received, minus the step
that the server reports (from the check of the frame to its labels on the CPU). Wanted: p50 <= 2.5
ms, p95 <= 5 ms. Its parts are measured in between: `coding`, decoding the frame and compressing its
labels as the server does; `transport`, the round trip of a repeated frame, whose result the server
has kept; `hand_overs`, the rest. `client` is what `vosengine.client.Client` adds to the round trip:
its own coding, and its thread.

Fairness: all sessions send frames as fast as their credit allows. Reported is the largest number of
results of other sessions between two of one session, as received; with N sessions it is N - 1 if
they take turns.

Memory: sessions are opened, step two small frames, and are closed; reported is the resident memory
of the server after every tenth of them.

Writes <date>-serve-<device>.json. Time on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import numpy as np
import torch
from environment import describe, parser_of, resident_mib, write_json
from rich.console import Console
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from vosengine.client import AsyncClient, Client
from vosengine.server import protocol
from vosengine.server.images import decode_frame
from vosengine.timing import summarise, timed
from vosengine.training.synthetic import Clip, ClipConfig, make_clip

SIZE, SMALL = (480, 854), (96, 128)
MOST_PIXELS = SIZE[0] * SIZE[1]
WARM_UP = 5
CPU = torch.device("cpu")


def draw(size: tuple[int, int]) -> Clip:
    height, width = size
    return make_clip(ClipConfig(frames=8, height=height, width=width, objects=(1, 1)), seed=3)


@contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Start a server; yields its address and process id."""
    command = [sys.executable, "-m", "vosengine", "serve", "--port", "0", "--model", args.model]
    command += ["--weights", args.weights, "--device", args.device]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.terminate()


@contextmanager
def socket_of(address: str) -> Iterator[ClientConnection]:
    """Open the WebSocket of a new session, after its hello message."""
    base, _, token = address.partition("/#token=")
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.post(f"{base}/v1/sessions", json={"policy": "all"}, headers=headers)
    session = answer.raise_for_status().json()
    with connect(
        f"{base.replace('http', 'ws', 1)}/v1/sessions/{session['id']}/stream",
        subprotocols=[Subprotocol(protocol.SUBPROTOCOL)],
        additional_headers={"Authorization": f"Bearer {session['token']}"},
        compression=None,
        max_size=None,
        proxy=None,
    ) as socket:
        socket.recv()
        yield socket


def overhead(address: str, frames: int, encoding: str) -> dict[str, Any]:
    """Statistics of a frame's round trip and its parts, in milliseconds; frames are sent in an
    encoding of protocol.FRAMES."""
    clip = draw(SIZE)
    parts = "round_trip", "step", "overhead", "coding", "transport", "hand_overs", "client"
    taken: dict[str, list[float]] = {name: [] for name in parts}
    with socket_of(address) as socket, Client(address, encoding=encoding, policy="all") as client:

        def ask(message: bytes) -> bytes:
            socket.send(message)
            received = socket.recv()
            assert isinstance(received, bytes), received
            return received

        for index in range(WARM_UP + frames):
            image, mask = clip.frames[index % 8], None if index else clip.masks[0]
            message = protocol.frame_message(index, image, mask, encoding)
            received, round_trip = timed(partial(ask, message), CPU)
            answer = protocol.read_answer(received)
            _, again = timed(partial(ask, message), CPU)
            coding = timed(partial(code, message, answer.labels), CPU)[1]
            ours, whole = timed(partial(client.step, image, mask), CPU)
            if index < WARM_UP:
                continue
            over = round_trip - answer.step_ms
            values = round_trip, answer.step_ms, over, coding, again, over - coding - again
            for name, value in zip(parts, (*values, whole - ours.step_ms - over), strict=True):
                taken[name].append(value)
    return {name: summarise(values) for name, values in taken.items()}


def code(message: bytes, labels: np.ndarray) -> None:
    """Decode a frame message and encode its labels as the server does."""
    parts = protocol.unpack(message, protocol.FRAME)
    decode_frame(parts.first, parts.encoding, MOST_PIXELS)
    protocol.encode_masks(labels, (), "labels")


async def fairness(address: str, sessions: int, rounds: int) -> dict[str, Any]:
    """Largest number of results of other sessions between two of one session."""
    clip = draw(SMALL)
    order: list[int] = []

    async def play(number: int) -> None:
        async with AsyncClient(address, policy="all") as client:
            await client.step(clip.frames[0], clip.masks[0])
            begun.append(number)
            if len(begun) == sessions:
                ready.set()
            await ready.wait()
            frames = ((clip.frames[1 + index % 7], None) for index in range(rounds))
            async for _ in client.stream(frames):
                order.append(number)

    begun: list[int] = []
    ready = asyncio.Event()
    await asyncio.gather(*(play(number) for number in range(sessions)))
    longest = []
    for number in range(sessions):
        places = [place for place, session in enumerate(order) if session == number]
        longest.append(max(np.diff(places).tolist(), default=1) - 1)
    return {"sessions": sessions, "frames_each": rounds, "longest_wait": max(longest)}


def churn(address: str, process: int, opened: int) -> dict[str, Any]:
    """Resident MiB of the server while sessions are opened and closed."""
    clip, held = draw(SMALL), []
    for number in range(opened):
        with Client(address, policy="all") as client:
            for index in range(2):
                client.step(clip.frames[index], None if index else clip.masks[0])
        if (number + 1) % max(1, opened // 10) == 0:
            held.append(round(resident_mib(process), 1))
    return {"opened": opened, "frame": list(SMALL), "resident_mib": held}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="munet")
    parser.add_argument("--weights", default="demo", help="demo, random, or a file")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--opened", type=int, default=1000)
    args = parser.parse_args()
    with server(args) as (address, process):
        results: dict[str, Any] = {}
        if args.frames:
            results["overhead"] = {
                encoding: overhead(address, args.frames, encoding) for encoding in ("jpeg", "raw")
            }
        if args.rounds:
            results["fairness"] = asyncio.run(fairness(address, args.sessions, args.rounds))
        if args.opened:
            results["churn"] = churn(address, process, args.opened)
    Console().print(results)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {**describe(device), "model": args.model, "frame": list(SIZE)}
    write_json({**facts, **results}, args.folder / f"{facts['date']}-serve-{device.type}.json")


if __name__ == "__main__":
    main()
