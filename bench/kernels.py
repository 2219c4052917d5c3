"""Benchmark of every op at sizes of real use, on every backend that supports them, with peers.

    python bench/kernels.py [op ...] [--device auto] [--dtype float32] [--repeat 50]
                            [--compile SECONDS] [--all-cases] [--budget SECONDS]
                            [--folder bench/results]

Writes <date>-kernels-<dtype>-<device>.json after every case, and prints a short table at the end.

Candidates are timed only if they agree with the reference in float64 (kernels/parity.py). They are
interleaved, so that noise affects all alike; a ratio is the median over rounds of the ratio within
a round. On a GPU times are measured with events: with a cold L2 cache (the primary figures), a warm
one, and by replay of a captured graph (clocks.py). Rates are compared with a copy and a matrix
product measured in the same run (ceilings.py).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from candidates import WRONG, Candidates, bench_cases, candidates_of, is_target, with_fixed_inputs
from ceilings import Ceilings, measure_ceilings
from clocks import Clock, Stopwatch, clock_of, percentiles, release
from costs import cost_of
from environment import describe, parser_of, write_json
from rich.console import Console
from rich.table import Table
from summary import show_summary

from vosengine.device import choose_device
from vosengine.kernels import OPS, Op
from vosengine.kernels.cases import Case

WARM_UP = 3
SLOW_ROUNDS = 5
COMPILE_LIMIT = 45.0  # s per peer on a GPU

Rounds = dict[str, dict[str, list[float | None]]]  # mode -> candidate -> ms by round


def time_in_turns(watches: dict[str, dict[str, Stopwatch]], clock: Clock, repeat: int) -> Rounds:
    """Return milliseconds by mode, candidate and round; None if a slow candidate was skipped."""
    stride = {}
    for name, modes in watches.items():
        first = modes[clock.modes[0]]
        slow = first() > clock.slow
        for _ in range(0 if slow else WARM_UP - 1):
            first()
        stride[name] = max(1, repeat // SLOW_ROUNDS) if slow else 1
    rounds: Rounds = {
        mode: {name: [] for name, modes in watches.items() if mode in modes} for mode in clock.modes
    }
    for number in range(repeat):
        for mode, times in rounds.items():
            for name, samples in times.items():
                sits_out = number % stride[name] > 0
                samples.append(None if sits_out else watches[name][mode]())
    return rounds


def times_as_fast(mine: list[float | None], other: list[float | None]) -> float | None:
    """Return the median of other / mine over rounds that have both: above 1, mine is faster."""
    both = [b / a for a, b in zip(mine, other, strict=True) if a is not None and b is not None]
    return statistics.median(both) if both else None


def summarise_mode(times: dict[str, list[float | None]], name: str) -> dict[str, Any]:
    """Return percentiles of one candidate in one mode, and ratios to all others except C++."""
    samples = [value for value in times[name] if value is not None]
    ratios = {
        other: round(ratio, 3)
        for other in times
        if other not in (name, "cpu")
        and (ratio := times_as_fast(times[name], times[other])) is not None
    }
    return {**percentiles(samples), "runs": len(samples), "times_as_fast_as": ratios}


def stopwatches_of(
    candidates: Candidates, clock: Clock
) -> tuple[dict[str, dict[str, Stopwatch]], dict[str, dict[str, str]]]:
    watches, lacking = {}, {}
    for name, call in candidates.calls.items():
        watches[name], lacking[name] = clock.stopwatches(call)
    return watches, lacking


def measure(
    op: Op,
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    repeat: int,
    *,
    limit: float | None = None,
    clock: Clock | None = None,
    ceilings: Ceilings | None = None,
) -> dict[str, Any]:
    """Measure one case of one op; returns its entry of the JSON file."""
    clock = clock or clock_of(device)
    case = with_fixed_inputs(case, dtype)
    candidates = candidates_of(op, case, device, dtype, limit)
    watches, lacking = stopwatches_of(candidates, clock)
    rounds = time_in_turns(watches, clock, repeat)
    arguments = case.arguments(device, dtype)
    cost = cost_of(op.name, arguments, op.reference(**arguments))
    results: dict[str, dict[str, Any]] = {}
    for name in watches:
        parity = candidates.parities[name]
        first, *others = clock.modes
        results[name] = {
            **summarise_mode(rounds[first], name),
            "error": parity.error,
            "error_allowed": parity.allowed,
        }
        if ceilings is not None:
            results[name].update(ceilings.judge(cost, results[name]["p50_ms"]))
        for mode in others:
            there = name in rounds[mode]
            results[name][mode] = (
                summarise_mode(rounds[mode], name) if there else lacking[name][mode]
            )
    return {
        "op": op.name,
        "case": case.name,
        "target": is_target(op, case),
        "arguments": {name: described(value) for name, value in arguments.items()},
        "flop": cost.flop,
        "bytes": cost.bytes,
        "results": results,
        "compile_seconds": candidates.compile_seconds,
        "not_timed": candidates.reasons,
    }


def described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple):
        return [described(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def show(console: Console, measured: dict[str, Any]) -> None:
    results = measured["results"]
    table = Table(title=f"{measured['op']}: {measured['case']}", title_justify="left")
    modes = [mode for mode in ("warm", "graph") if any(mode in r for r in results.values())]
    backend = next(iter(results), "")
    table.add_column("candidate")
    headings = ("p20 ms", "p50 ms", "p80 ms", *(f"{mode} p50" for mode in modes))
    for heading in (*headings, "GB/s", "TFLOP/s", "of ceiling", "error", f"{backend} is x"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        ratio = results[backend]["times_as_fast_as"].get(name)
        others = (result[mode] for mode in modes)
        table.add_row(
            name,
            *(f"{result[key]:.4g}" for key in ("p20_ms", "p50_ms", "p80_ms")),
            *(f"{timing['p50_ms']:.4g}" if isinstance(timing, dict) else "" for timing in others),
            *(str(result.get(key, "")) for key in ("gb_per_s", "tflops")),
            f"{result['of_ceiling']:.0%} {result['bound']}" if "of_ceiling" in result else "",
            f"{result['error']:.1e}",
            "" if ratio is None else f"{ratio:.2f}",
        )
    console.print(table)
    for name, reason in measured["not_timed"].items():
        console.print(f"  {name}: {reason}", style="dim", highlight=False, markup=False)


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__)
    names = [op.name for op in OPS]
    parser.add_argument("op", nargs="*", help=f"of {', '.join(names)}; all if none is given")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--repeat", default=50, type=int, help="rounds (default 50)")
    parser.add_argument(
        "--compile",
        type=float,
        metavar="SECONDS",
        help="let torch.compile's peers take so long each: on a GPU those of the targets have "
        f"{COMPILE_LIMIT:g} s and 0 leaves them out; on a CPU there are none without it",
    )
    parser.add_argument(
        "--all-cases", action="store_true", help="on a CPU too the heavy cases of gpu_cases.py"
    )
    parser.add_argument(
        "--targets", action="store_true", help="only the cases that have a target, on any device"
    )
    parser.add_argument("--budget", type=float, help="start no case after so many seconds")
    options = parser.parse_args()
    unknown = sorted(set(options.op) - set(names))
    if unknown:
        parser.error(f"op: wanted some of {', '.join(names)}, given {', '.join(unknown)}")
    if options.repeat < 1:
        parser.error(f"--repeat: wanted 1 or more, given {options.repeat}")
    return options


def chosen_cases(options: argparse.Namespace, device: torch.device) -> list[tuple[Op, Case]]:
    """Return the selected cases, those with a target first, so that a budget does not omit them."""
    heavy = device.type == "cuda" or options.all_cases or options.targets
    ops = [op for op in OPS if not options.op or op.name in options.op]
    cases = [(op, case) for op in ops for case in bench_cases(op, heavy)]
    if options.targets:
        return [pair for pair in cases if is_target(*pair)]
    return sorted(cases, key=lambda pair: not is_target(*pair)) if heavy else cases


def compile_limit(options: argparse.Namespace, device: torch.device, target: bool) -> float | None:
    if options.compile is not None:
        return options.compile or None
    return COMPILE_LIMIT if device.type == "cuda" and target else None


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    start = time.monotonic()
    device, dtype = choose_device(options.device), getattr(torch, options.dtype)
    torch.backends.cudnn.allow_tf32 = False  # float32 peers must compute in float32
    torch.backends.cuda.matmul.allow_tf32 = False
    report: dict[str, Any] = {
        **describe(device),
        "dtype": options.dtype,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }
    console.print(" | ".join(f"{name} {value}" for name, value in report.items() if value))
    clock, ceilings = clock_of(device), measure_ceilings(device, dtype)
    report |= {"modes": clock.modes, "ceilings": asdict(ceilings), "cases": [], "not_reached": []}
    path = options.folder / f"{report['date']}-kernels-{options.dtype}-{device.type}.json"
    for op, case in chosen_cases(options, device):
        if options.budget is not None and time.monotonic() - start > options.budget:
            report["not_reached"].append(f"{op.name}: {case.name}")
            continue
        limit = compile_limit(options, device, is_target(op, case))
        with torch.inference_mode():
            measured = measure(
                op, case, device, dtype, options.repeat, limit=limit, clock=clock, ceilings=ceilings
            )
        release(device)
        report["cases"].append(measured)
        show(console, measured)
        write_json(report, path, say=False)
    write_json(report, path)
    return report


def main() -> None:
    options = parse()
    console = Console(width=None if sys.stdout.isatty() else 130)
    report = run(options, console)
    show_summary(console, [report])
    reasons = [reason for case in report["cases"] for reason in case["not_timed"].values()]
    if any(reason.startswith(WRONG) for reason in reasons):
        sys.exit("some of our backends are wrong and were not timed")


if __name__ == "__main__":
    main()
