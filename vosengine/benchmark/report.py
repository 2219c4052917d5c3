"""What a benchmark looks like: on the terminal, as Markdown, as a chart."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import DependencyError, OutputError
from .published import published_of

COLUMNS = ("p50", "p90", "p95", "p99", "mean", "fps", "to eager fp32", "labels differ", "cold start")


def rows_of(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row a cell: size, objects, way, and what was measured or why nothing was."""
    rows = []
    for sweep in result["sweeps"]:
        eager = next((c for c in sweep["cells"] if c["way"] == "eager fp32"), {})
        for cell in sweep["cells"]:
            height, width = cell["size"]
            head = f"{height}x{width}", str(cell["objects"]), cell["way"]
            if cell["fault"] is not None:
                rows.append((*head, cell["fault"], *[""] * (len(COLUMNS) - 1)))
                continue
            speed = eager["p50_ms"] / cell["p50_ms"] if "p50_ms" in eager else None
            rows.append(
                (
                    *head,
                    *(f"{cell[f'{name}_ms']:.1f}" for name in COLUMNS[:5]),
                    f"{cell['fps']:.2f}",
                    "" if speed is None else f"{speed:.2f}x",
                    "" if cell["differs"] is None else f"{100 * cell['differs']:.2f} %",
                    f"{cell['cold_start_s']:.1f} s",
                )
            )
    return rows


def table_of(result: dict[str, Any]) -> Table:
    """The table for a terminal, the papers' own figures under it."""
    table = Table(title=title_of(result), caption="\n".join(notes_of(result)))
    for name in ("size", "objects", "way", *COLUMNS):
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in rows_of(result):
        table.add_row(*row)
    return table


def markdown_of(result: dict[str, Any]) -> str:
    """The same as Markdown."""
    names = ("size", "objects", "way", *COLUMNS)
    lines = [f"# {title_of(result)}", "", f"| {' | '.join(names)} |"]
    lines.append("|" + " --- |" * len(names))
    lines += [f"| {' | '.join(row)} |" for row in rows_of(result)]
    lines += ["", *(f"- {note}" for note in notes_of(result)), ""]
    return "\n".join(lines)


def title_of(result: dict[str, Any]) -> str:
    return f"{result['model']}: ms a step, {result['weights']} weights, {result['device']}"


def notes_of(result: dict[str, Any]) -> list[str]:
    """What the paper prints, the floor, and where the time goes."""
    notes = [
        f"{row.source}{f' ({row.variant})' if row.variant else ''}: {row.milliseconds:.0f} ms a "
        f"frame on {row.hardware}; {row.caveat}"
        for row in published_of(result["model"])
    ] or ["no paper's time is to be had for this model"]
    for sweep in result["sweeps"]:
        floor = sweep.get("floor")
        if floor is not None:
            notes.append(
                f"floor at {sweep['objects']} objects: {floor['compute_ms']:.1f} ms "
                f"({floor['gflop']:.0f} GFLOP), {floor['traffic_ms']:.1f} ms to read "
                f"{floor['mib']:.0f} MiB"
            )
        ours = next((c for c in sweep["cells"] if c["way"] == "ours" and c["stages"]), None)
        if ours is not None:
            shares = ", ".join(f"{n} {100 * s:.0f} %" for n, s in ours["stages"].items())
            notes.append(f"ours, {sweep['objects']} objects: {shares}")
    return notes


def draw(result: dict[str, Any], path: Path) -> None:
    """A PNG: latency against the number of objects, and against the frame.

    Raises  DependencyError without matplotlib, OutputError where it cannot be written.
    """
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise DependencyError(
            f'bench: the chart needs matplotlib ({error}); pip install "vosengine[train]"'
        ) from error
    figure = figure_module.Figure(figsize=(11, 4), layout="constrained")
    objects, frames = figure.subplots(1, 2)
    _draw_objects(objects, result["sweeps"])
    _draw_stream(frames, result.get("stream"))
    figure.suptitle(title_of(result))
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise OutputError(f"{path}: the chart cannot be saved there ({error.strerror})") from error


def _draw_objects(axes: Any, sweeps: Sequence[dict[str, Any]]) -> None:
    lines: dict[str, list[tuple[int, float, float]]] = {}
    largest = {tuple(s["cells"][0]["size"]) for s in sweeps}
    smallest = min(largest, key=lambda size: size[0] * size[1])
    for sweep in sweeps:
        for cell in sweep["cells"]:
            if cell["fault"] is None and tuple(cell["size"]) == smallest:
                point = cell["objects"], cell["p50_ms"], cell["p95_ms"]
                lines.setdefault(cell["way"], []).append(point)
    for way, points in lines.items():
        counts, middle, high = zip(*sorted(points), strict=True)
        (line,) = axes.plot(counts, middle, marker="o", label=way)
        axes.fill_between(counts, middle, high, alpha=0.2, color=line.get_color())
    axes.set(xlabel="objects", ylabel="ms a step, p50 to p95", ylim=(0, None))
    axes.legend()


def _draw_stream(axes: Any, stream: dict[str, Any] | None) -> None:
    axes.set(xlabel="frame", ylabel="ms a step", ylim=(0, None))
    if stream is None:
        return
    axes.plot(stream["frames"], stream["milliseconds"], linewidth=0.8)
    memory = axes.twinx()
    memory.plot(stream["frames"], stream["mib"], color="tab:orange")
    memory.set(ylabel="MiB held", ylim=(0, None))
