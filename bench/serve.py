"""What the server adds to the engine's step, how even 16 sessions are served, and what a thousand
sessions leave behind.

    python bench/serve.py [--model munet] [--weights demo] [--frames 100] [--sessions 16]
        [--rounds 20] [--opened 1000] [--folder bench/results]

The server is `vosengine serve` in a process of its own, reached over loopback. Overhead: frames of
480x854 as JPEG (quality 90), one at a time, labels back; of each the time from send to receipt
less the step that the server reports, which begins with the frame's check and ends with its labels
on the CPU. Wanted: p50 <= 2.5 ms, p95 <= 5 ms. Fairness: all sessions send all their frames as
their credit allows; of every session the longest run of other answers between two of its own: with
N sessions N - 1 where every one has its turn within a round. Memory: sessions are opened, given
two small frames, and ended; resident memory of the server after every tenth of them. Writes
<date>-serve-<device>.json. Time on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import RESULTS, describe, write_json
from rich.console import Console

from vosengine.client import AsyncClient, Client
from vosengine.server import protocol
from vosengine.timing import summarise
from vosengine.training.synthetic import Clip, ClipConfig, make_clip

SIZE, SMALL = (480, 854), (96, 128)
WARM_UP = 5
MIB = 1 << 20


def draw(size: tuple[int, int]) -> Clip:
    height, width = size
    return make_clip(ClipConfig(frames=8, height=height, width=width, objects=(1, 1)), seed=3)


@contextmanager
def server(given: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Its address and its process."""
    command = [sys.executable, "-m", "vosengine", "serve", "--port", "0", "--model", given.model]
    command += ["--weights", given.weights, "--device", given.device]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.terminate()


def overhead(address: str, frames: int) -> dict[str, Any]:
    """Milliseconds of the round trip, of the step in it, and of the rest."""
    clip = draw(SIZE)
    taken: dict[str, list[float]] = {"round_trip": [], "step": [], "overhead": []}
    with Client(address, policy="all") as client:
        for index in range(WARM_UP + frames):
            image = clip.frames[index % len(clip.frames)]
            start = time.perf_counter()
            answer = client.step(image, clip.masks[0] if index == 0 else None)
            total = 1e3 * (time.perf_counter() - start)
            coding = 1e3 * coding_seconds(image, answer.labels)
            if index >= WARM_UP:
                taken["round_trip"].append(total - coding)
                taken["step"].append(answer.step_ms)
                taken["overhead"].append(total - coding - answer.step_ms)
    return {name: summarise(values) for name, values in taken.items()}


def coding_seconds(image: np.ndarray, labels: np.ndarray) -> float:
    """What the client itself takes to encode a frame and to decode labels."""
    masks = protocol.encode_masks(labels, (), "labels")
    start = time.perf_counter()
    protocol.frame_message(0, image, None, "jpeg")
    protocol.decode_masks(masks, protocol.REPLIES["labels"])
    return time.perf_counter() - start


async def fairness(address: str, sessions: int, rounds: int) -> dict[str, Any]:
    """The order in which sessions that all have frames are answered."""
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
        places = [place for place, each in enumerate(order) if each == number]
        longest.append(max(np.diff(places).tolist(), default=1) - 1)
    return {"sessions": sessions, "frames_each": rounds, "longest_wait": max(longest)}


def churn(address: str, process: int, opened: int) -> dict[str, Any]:
    """Resident MiB of the server while sessions come and go."""
    clip, held = draw(SMALL), []
    for number in range(opened):
        with Client(address, policy="all") as client:
            for index in range(2):
                client.step(clip.frames[index], None if index else clip.masks[0])
        if (number + 1) % max(1, opened // 10) == 0:
            held.append(round(resident(process) / MIB, 1))
    return {"opened": opened, "frame": list(SMALL), "resident_mib": held}


def resident(process: int) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="The server over its engine.")
    parser.add_argument("--model", default="munet")
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--opened", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args()
    with server(given) as (address, process):
        found = {
            "overhead": overhead(address, given.frames),
            "fairness": asyncio.run(fairness(address, given.sessions, given.rounds)),
            "churn": churn(address, process, given.opened),
        }
    Console().print(found)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {**describe(device), "model": given.model, "frame": list(SIZE)}
    write_json({**facts, **found}, given.folder / f"{facts['date']}-serve-{device.type}.json")


if __name__ == "__main__":
    main()
