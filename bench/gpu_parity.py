"""Parity of every backend on a device: random inputs, odd shapes, and determinism.

    python bench/gpu_parity.py [--device auto] [--seeds 3] [--shapes 20] [--first SEED]
                               [--budget SECONDS] [--folder bench/results]

The cases of kernels/<op>/cases.py are drawn from new seeds, shapes are drawn at random
(odd_shapes.py), memory is poisoned, and everything runs twice; outputs that differ bitwise are
reported. Exits with 1 if a backend violates the rule of kernels/parity.py. Writes
<date>-parity-<device>.json.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from candidates import call_on
from environment import describe, parser_of, write_json
from odd_shapes import odd_case
from rich.console import Console
from rich.table import Table

from vosengine.device import choose_device
from vosengine.kernels import OPS, Op
from vosengine.kernels.cases import Case, map_tensors
from vosengine.kernels.parity import cases_of, check_parity
from vosengine.kernels.poison import poisoned

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHOWN = 5  # maximum printed faults of one kind


@dataclass
class Tally:
    """Results of one backend of one op in one dtype.

    calls     number of supported calls
    worst     maximum of error / allowed error
    faults    failures, as "case, seed: fault"
    unsteady  cases whose outputs differed bitwise between two runs
    """

    op: str
    backend: str
    dtype: str
    calls: int = 0
    worst: float = 0.0
    faults: list[str] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)


def fresh(case: Case, seed: int) -> Case:
    """Return the same case, drawn from another seed."""
    return Case(
        f"{case.name}, seed {seed}", lambda _: case.make(torch.Generator().manual_seed(seed))
    )


def calls(first: int, seeds: int, shapes: int) -> Iterator[tuple[Op, Case]]:
    """Yield calls seed by seed, so that a time budget cuts off the last seed of all ops."""
    for seed in range(first, first + max(seeds, shapes)):
        for op in OPS:
            if seed < first + seeds:
                for case in cases_of(op):
                    if not case.bench:
                        yield op, fresh(case, seed)
            odd = odd_case(op.name, seed) if seed < first + shapes else None
            if odd is not None:
                yield op, fresh(odd, seed)


def check(op: Op, case: Case, device: torch.device, tallies: dict[tuple[str, ...], Tally]) -> None:
    """Check one case on every backend that supports it, except the reference, in every dtype."""
    for dtype in DTYPES:
        arguments = case.arguments(device, dtype)
        for backend, reason in op.explain(**arguments).items():
            if backend == "reference" or reason is not None:
                continue
            key = (op.name, backend, str(dtype).removeprefix("torch."))
            tally = tallies.setdefault(key, Tally(*key))
            with poisoned():
                verdict = check_parity(op, case, backend, device=device, dtype=dtype)
            tally.calls += 1
            if verdict.allowed > 0:
                tally.worst = max(tally.worst, verdict.error / verdict.allowed)
            if verdict.fault is not None:
                tally.faults.append(f"{case.name}: {verdict.fault}")
            if not same_bits(op, backend, arguments):
                tally.unsteady.append(case.name)


def same_bits(op: Op, backend: str, arguments: dict[str, Any]) -> bool:
    """Return whether two runs are bitwise equal, the second with another poison."""
    with poisoned():
        one = bits_of(call_on(backend, op, arguments))
    with poisoned(number=1e4, integer=85):
        other = bits_of(call_on(backend, op, arguments))
    return len(one) == len(other) and all(map(torch.equal, one, other))


def bits_of(outputs: Any) -> list[torch.Tensor]:
    results: list[torch.Tensor] = []

    def add(tensor: torch.Tensor) -> torch.Tensor:
        results.append(tensor.contiguous().flatten().view(torch.uint8))
        return tensor

    map_tensors(add, outputs)
    return results


def show(console: Console, tallies: list[Tally]) -> None:
    table = Table(title="fresh inputs and odd shapes", title_justify="left")
    for heading in ("op", "backend", "dtype"):
        table.add_column(heading)
    for heading in ("calls", "of allowed error", "faults", "not the same bits twice"):
        table.add_column(heading, justify="right")
    for tally in tallies:
        counts = (str(tally.calls), f"{tally.worst:.0%}", len(tally.faults), len(tally.unsteady))
        table.add_row(tally.op, tally.backend, tally.dtype, *map(str, counts))
    console.print(table)
    for tally in tallies:
        where = f"{tally.op} {tally.backend} {tally.dtype}"
        for fault in tally.faults[:SHOWN]:
            console.print(f"FAULT {where}: {fault}", highlight=False, markup=False)
        for name in tally.unsteady[:SHOWN]:
            console.print(f"other bits {where}: {name}", highlight=False, markup=False)


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", default=3, type=int, help="of every case of the parity suite")
    parser.add_argument("--shapes", default=20, type=int, help="random shapes of every op")
    parser.add_argument("--first", type=int, help="the first seed; a new one each time without it")
    parser.add_argument("--budget", type=float, help="stop after so many seconds")
    return parser.parse_args()


def run(options: argparse.Namespace) -> list[Tally]:
    """Run, print and write all checks; returns a tally per op, backend and dtype with calls."""
    device = choose_device(options.device)
    first = random.SystemRandom().randrange(1 << 20) if options.first is None else options.first
    tallies: dict[tuple[str, ...], Tally] = {}
    start, complete = time.monotonic(), True
    for op, case in calls(first, options.seeds, options.shapes):
        if options.budget is not None and time.monotonic() - start > options.budget:
            complete = False
            break
        with torch.inference_mode():
            check(op, case, device, tallies)
    results = sorted(tallies.values(), key=lambda tally: (tally.op, tally.backend, tally.dtype))
    console = Console(width=None if sys.stdout.isatty() else 130)
    show(console, results)
    coverage = "all of it" if complete else "as far as the time went"
    console.print(f"seeds from {first} (--first {first} repeats this), {coverage}", highlight=False)
    facts = describe(device)
    report = {
        **facts,
        "first_seed": first,
        "complete": complete,
        "checked": list(map(asdict, results)),
    }
    write_json(report, options.folder / f"{facts['date']}-parity-{device.type}.json")
    return results


def main() -> None:
    results = run(parse())
    if not results:
        sys.exit("no backend supports any call on this device")
    if any(tally.faults for tally in results):
        sys.exit("a backend violates the parity rule")


if __name__ == "__main__":
    main()
