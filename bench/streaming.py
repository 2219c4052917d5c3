"""Speed-up from cached features: a streamed frame of imcnet against its clip without a cache.

    python bench/streaming.py [--rounds 8] [--device auto] [--folder bench/results]

Writes <date>-cache-imcnet-<device>.json. Whole models are timed by `vosengine bench`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from environment import describe, median_ratio, parser_of, write_json
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from vosengine.config import IMCNetConfig
from vosengine.device import choose_device
from vosengine.kernels import use_backend
from vosengine.timing import summarise, timed
from vosengine.types import Geometry
from vosengine.zoo.registry import build

SIZE = (480, 854)


def cache(device: torch.device, rounds: int) -> dict[str, Any]:
    """Measure IMCNet at its published size: a streamed frame against its clip without a cache."""
    config = IMCNetConfig()
    method = build("imcnet", config).to(device)
    state = method.start(Geometry.fit(SIZE, size=config.size, multiple=method.stride), 1)
    frames = torch.rand(len(config.sees), 3, *config.size, device=device)
    encoded = [method.encode(frame[None]) for frame in frames]

    def streamed() -> torch.Tensor:
        newest = method.encode(frames[-1:])
        return method.segment([*encoded[:-1], newest], state).logits

    def from_nothing() -> torch.Tensor:
        whole = method.encode(frames)
        parts = [type(whole)(*(x[i : i + 1] for x in whole)) for i in range(len(frames))]
        return method.segment(parts, state).logits

    _check_same(streamed(), from_nothing())
    times = {"streamed": [], "from nothing": [], "encode": []}
    for _ in range(rounds):
        times["streamed"].append(timed(streamed, device)[1])
        times["from nothing"].append(timed(from_nothing, device)[1])
        times["encode"].append(timed(lambda: method.encode(frames[-1:]), device)[1])
    return {
        "size": list(config.size),
        "streamed_over_clip": median_ratio(times["streamed"], times["from nothing"]),
        "flop_ratio": _flop(streamed) / _flop(from_nothing),
        **{name: summarise(values) for name, values in times.items()},
    }


def _check_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Exit unless the two results agree: both timings must be of the same function."""
    difference = float((one - other).abs().max() / one.abs().max())
    if not difference < 1e-3:
        sys.exit(f"results with and without the cache differ by {difference:.2g}: not timed")


def _flop(call: Callable[[], Any]) -> float:
    with use_backend("reference"), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


@torch.no_grad()
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    device = choose_device(options.device)
    results = {**describe(device), "model": "imcnet", "cache": cache(device, options.rounds)}
    Console().print_json(json.dumps(results["cache"]))
    write_json(results, options.folder / f"{results['date']}-cache-imcnet-{device.type}.json")


if __name__ == "__main__":
    main()
