"""Summary of kernel results: our fastest backend of every case and its fastest peer.

python bench/summary.py bench/results/*-kernels-*-cuda.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# `separate` and `contiguous` are our own op in another form, not peers.
OTHERWISE = ("separate", "contiguous")
OURS = ("cuda", "triton", "cpu", *OTHERWISE)


def show_summary(console: Console, reports: list[dict[str, Any]]) -> None:
    table = Table(title="best backend and fastest peer, p50 in us", title_justify="left")
    for heading in ("op", "case", "dtype", "ours"):
        table.add_column(heading)
    for heading in ("us", "warm", "graph", "x", "fastest peer", "us", "of ceiling"):
        table.add_column(heading, justify="right")
    for report in reports:
        for case in report["cases"]:
            table.add_row(*row(case, report.get("dtype", "")))
    console.print(table)
    for report in reports:
        for name in report.get("not_reached", ()):
            console.print(f"not reached in time: {name}", highlight=False, markup=False)


def row(case: dict[str, Any], dtype: str) -> tuple[str, ...]:
    """Return the row of a case; without a backend of ours, only the fastest peer."""
    results = case["results"]
    backend = fastest({n: r for n, r in results.items() if n in OURS and n not in OTHERWISE})
    peer = fastest({n: r for n, r in results.items() if n not in OURS})
    name = f"{case['case']} *" if case.get("target") else case["case"]
    cells = [case["op"], name, dtype, backend or "none", "", "", "", ""]
    share = ""
    if backend:
        best = results[backend]
        cells[4:7] = [microseconds(best), *(microseconds(best.get(m)) for m in ("warm", "graph"))]
        share = f"{best['of_ceiling']:.0%} {best['bound']}" if "of_ceiling" in best else ""
        ratio = best["times_as_fast_as"].get(peer)
        cells[7] = "" if ratio is None else f"{ratio:.2f}"
    return (*cells, peer or "none", microseconds(results[peer]) if peer else "", share)


def fastest(results: dict[str, dict[str, Any]]) -> str | None:
    return min(results, key=lambda name: results[name]["p50_ms"], default=None)


def microseconds(times: Any) -> str:
    """Format the p50 in microseconds; empty if there is only a reason instead of times."""
    return f"{1e3 * times['p50_ms']:.4g}" if isinstance(times, dict) else ""


def main() -> None:
    reports = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    show_summary(Console(width=None if sys.stdout.isatty() else 150), reports)


if __name__ == "__main__":
    main()
