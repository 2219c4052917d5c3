"""Times every op at the sizes of real use, on every backend that takes them and beside baselines.

    python bench/kernels.py [op ...] [--device auto] [--dtype float32] [--repeat 50]
                            [--folder bench/results]

Writes <date>-kernels-<dtype>-<device>.json.

Nothing is timed that does not first agree with the reference in float64 (kernels/parity.py). The
candidates of a case take turns, so that noise hits all alike; a ratio is the median over rounds of
the ratio within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from baselines import BASELINES
from environment import RESULTS, describe, write_json
from rich.console import Console
from rich.table import Table

from vosengine.device import choose_device
from vosengine.kernels import BACKENDS, OPS, Op, use_backend
from vosengine.kernels.cases import Case
from vosengine.kernels.parity import Parity, cases_of, check_parity
from vosengine.timing import summarise, timed

WARM_UP = 3
SLOW = 500  # ms a call: such a candidate is warmed up once and sits out most rounds
SLOW_ROUNDS = 5
WRONG = "wrong, hence not timed"

Candidate = Callable[[], Any]


def call_on(backend: str, op: Op, arguments: dict[str, Any]) -> Any:
    with use_backend(backend):
        return op(**arguments)


def candidates_of(
    op: Op, case: Case, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Candidate], dict[str, Parity], dict[str, str]]:
    """What can be timed, its parity, and for everything else the reason why it is not."""
    arguments = case.arguments(device, dtype)
    found: dict[str, Candidate] = {}
    parities: dict[str, Parity] = {}
    reasons: dict[str, str] = {}
    objections = op.explain(**arguments)
    for backend in BACKENDS:
        if objections[backend] is not None:
            reasons[backend] = str(objections[backend])
            continue
        parities[backend] = check_parity(op, case, backend, device=device, dtype=dtype)
        found[backend] = partial(call_on, backend, op, arguments)
    for name, baseline in BASELINES.get(op.name, {}).items():
        # Held against the reference like any backend, by standing in for one.
        stand_in = SimpleNamespace(objection=lambda **_: None, run=baseline)
        posing = Op(op.reference, op.contract, cpu=stand_in)
        parities[name] = check_parity(posing, case, "cpu", device=device, dtype=dtype)
        found[name] = partial(baseline, **arguments)
    for name, parity in parities.items():
        if parity.fault is not None:
            reasons[name] = f"{WRONG}: {parity.fault}"
            del found[name]
    return found, parities, reasons


def time_in_turns(
    candidates: dict[str, Candidate], repeat: int, device: torch.device
) -> dict[str, list[float | None]]:
    """Milliseconds by candidate and round; None where a slow candidate sat out."""
    stride = {}
    for name, call in candidates.items():
        slow = timed(call, device)[1] > SLOW
        for _ in range(0 if slow else WARM_UP - 1):
            timed(call, device)
        stride[name] = max(1, repeat // SLOW_ROUNDS) if slow else 1
    rounds: dict[str, list[float | None]] = {name: [] for name in candidates}
    for number in range(repeat):
        for name, call in candidates.items():
            sits_out = number % stride[name] > 0
            rounds[name].append(None if sits_out else timed(call, device)[1])
    return rounds


def times_as_fast(mine: list[float | None], other: list[float | None]) -> float | None:
    """Median over the rounds that both took part in of other / mine: above 1, mine is faster."""
    both = [b / a for a, b in zip(mine, other, strict=True) if a is not None and b is not None]
    return statistics.median(both) if both else None


def measure(
    op: Op, case: Case, device: torch.device, dtype: torch.dtype, repeat: int
) -> dict[str, Any]:
    """One case of one op, as it goes into the JSON file."""
    candidates, parities, reasons = candidates_of(op, case, device, dtype)
    rounds = time_in_turns(candidates, repeat, device)
    others = [name for name in ("reference", *BASELINES.get(op.name, {})) if name in rounds]
    results = {}
    for name, times in rounds.items():
        taken = [value for value in times if value is not None]
        results[name] = {
            **summarise(taken),
            "runs": len(taken),
            "error": parities[name].error,
            "error_allowed": parities[name].allowed,
            "times_as_fast_as": {
                other: round(ratio, 3)
                for other in others
                if other != name and (ratio := times_as_fast(times, rounds[other])) is not None
            },
        }
    return {
        "op": op.name,
        "case": case.name,
        "arguments": {n: described(v) for n, v in case.arguments(device, dtype).items()},
        "results": results,
        "not_timed": reasons,
    }


def described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple):
        return [described(each) for each in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def show(console: Console, measured: dict[str, Any]) -> None:
    results = measured["results"]
    others = [name for name in ("reference", *BASELINES.get(measured["op"], {})) if name in results]
    table = Table(title=f"{measured['op']}: {measured['case']}", title_justify="left")
    table.add_column("candidate")
    for heading in ("p50 ms", "p95 ms", "runs", "error", *(f"x {name}" for name in others)):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        ratios = [result["times_as_fast_as"].get(other) for other in others]
        table.add_row(
            name,
            f"{result['p50_ms']:.2f}",
            f"{result['p95_ms']:.2f}",
            str(result["runs"]),
            f"{result['error']:.1e}",
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        )
    console.print(table)
    for name, reason in measured["not_timed"].items():
        console.print(f"  {name}: {reason}", style="dim", highlight=False)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [op.name for op in OPS]
    parser.add_argument("op", nargs="*", help=f"of {', '.join(names)}; all if none is given")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--repeat", default=50, type=int, help="rounds (default 50)")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    unknown = sorted(set(options.op) - set(names))
    if unknown:
        parser.error(f"op: wanted some of {', '.join(names)}, given {', '.join(unknown)}")
    if options.repeat < 1:
        parser.error(f"--repeat: wanted 1 or more, given {options.repeat}")
    return options


def main() -> None:
    options = parse()
    device = choose_device(options.device)
    console = Console(width=None if sys.stdout.isatty() else 100)
    report: dict[str, Any] = {
        **describe(device),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "cases": [],
    }
    console.print(" | ".join(f"{name} {value}" for name, value in report.items() if value))
    for op in OPS:
        for case in cases_of(op) if not options.op or op.name in options.op else ():
            if case.bench:
                with torch.inference_mode():
                    dtype = getattr(torch, options.dtype)
                    report["cases"].append(measure(op, case, device, dtype, options.repeat))
                show(console, report["cases"][-1])
    name = f"{report['date']}-kernels-{options.dtype}-{device.type}.json"
    write_json(report, options.folder / name)
    reasons = [reason for case in report["cases"] for reason in case["not_timed"].values()]
    if any(reason.startswith(WRONG) for reason in reasons):
        sys.exit("some candidates are wrong and were not timed")


if __name__ == "__main__":
    main()
