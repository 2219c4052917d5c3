"""Benchmark reports: terminal tables, Markdown, and a chart."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ..errors import DependencyError
from ..files import whole
from .variants import OURS, REFERENCE

TIMES = ("p50", "p90", "p95", "p99", "mean")
HEADS = ("size", "objects", "variant", *TIMES, "fps")
COLUMNS = (*HEADS, f"to {REFERENCE}", "labels differ", "first mask", "MiB", "paper's own ms")
VARIANT = COLUMNS.index("variant")
# Columns omitted on a narrow terminal, in this order.
SPARE = ("mean", "p90", "fps", "MiB", "first mask", "p99", "p95")
Row = tuple[str, ...]


def rows_of(model: dict[str, Any]) -> list[Row]:
    """Return one row per cell, with results or the fault, then one row per published figure."""
    rows = [row for point in model["points"] for row in _measured(point)]
    gap = [""] * (len(TIMES) + 5)
    for paper in model["published"]:
        variant = f" ({paper['variant']})" if paper["variant"] else ""
        name = f"{paper['source']}{variant}: {paper['hardware']}"
        rows.append(("480p", "", name, *gap, f"{paper['milliseconds']:.0f}"))
    return rows


def _measured(point: dict[str, Any]) -> Iterator[Row]:
    eager: dict[str, Any] = next((c for c in point["cells"] if c["variant"] == REFERENCE), {})
    for cell in point["cells"]:
        height, width = cell["size"]
        precision = f" {cell['precision']}" if cell["variant"] == OURS else ""
        head = f"{height}x{width}", str(cell["objects"]), cell["variant"] + precision
        if cell["fault"] is not None:
            yield *head, cell["fault"], *[""] * (len(COLUMNS) - len(head) - 1)
            continue
        held = cell["host_mib"] if cell["device_mib"] is None else cell["device_mib"]
        yield (
            *head,
            *(f"{cell[f'{name}_ms']:.1f}" for name in TIMES),
            f"{cell['fps']:.2f}",
            f"{eager['p50_ms'] / cell['p50_ms']:.2f}x" if "p50_ms" in eager else "",
            "" if cell["differs"] is None else f"{100 * cell['differs']:.3f} %",
            f"{cell['cold_start_s']:.1f} s",
            f"{held:.0f}",
            "",
        )


def tables_of(result: dict[str, Any], width: int) -> Iterator[Table]:
    """Yield one table per model for a terminal of `width` characters, with notes below."""
    for model in result["models"]:
        rows = rows_of(model)
        names, left_out = _fitting(rows, width)
        notes = notes_of(model)
        if left_out:
            notes.append(f"no room for {', '.join(left_out)}: --output-md has them")
        table = Table(
            title=title_of(model, result["environment"]),
            caption="\n".join(notes),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
        )
        for name in names:
            side: Any = "left" if name == "variant" else "right"
            table.add_column(name, justify=side, width=_least(name, rows))
        for point, group in groupby(rows, key=_point):
            table.add_section()
            table.add_row(point, style="bold")
            for row in group:
                cells = [row[COLUMNS.index(name)] for name in names]
                if row[VARIANT + 1] and not row[VARIANT + 2]:  # a fault instead of figures
                    cells[:2] = [f"{row[VARIANT]}: {row[VARIANT + 1]}", ""]
                table.add_row(*cells)
        yield table


def _fitting(rows: Sequence[Row], width: int) -> tuple[list[str], list[str]]:
    """Return the columns that fit on a terminal, and those left out. Size and number of objects are
    shown on separate lines."""
    names = [name for name in COLUMNS if name not in HEADS[:2]]
    left_out: list[str] = []
    for name in SPARE:
        if sum(3 + _least(name, rows) for name in names) <= width:
            break
        names.remove(name)
        left_out.append(name)
    return names, left_out


def _least(name: str, rows: Sequence[Row]) -> int:
    """Return the minimum width of a column: figures are not wrapped, other text is."""
    index = COLUMNS.index(name)
    cells = [row[index] for row in rows if row[VARIANT + 2] or name == COLUMNS[-1]]
    points = [_point(row) for row in rows] if name == "variant" else []
    return max(map(len, (*name.split(), *cells, *points)))


def _point(row: Row) -> str:
    """Return the size and number of objects as text."""
    size, objects = row[:2]
    return f"{size}, {objects} object{'s' * (objects != '1')}" if objects else size


def markdown_of(result: dict[str, Any]) -> str:
    """Return the report as Markdown, with the command and the device."""
    facts = result["environment"]
    lines = ["# Whole models", "", f"    {facts['command']}", ""]
    lines += [f"{facts['date']}, {facts['device']}, torch {facts['torch']}.", ""]
    for model in result["models"]:
        lines += [f"## {title_of(model, facts)}", "", f"| {' | '.join(COLUMNS)} |"]
        lines.append("| --- | ---: | --- |" + " ---: |" * (len(COLUMNS) - 3))
        lines += [f"| {' | '.join(row)} |" for row in rows_of(model)]
        lines += ["", *(f"- {note}" for note in notes_of(model)), ""]
    return "\n".join(lines)


def title_of(model: dict[str, Any], facts: dict[str, Any]) -> str:
    return f"{model['model']}: ms a step, {model['weights']}, {facts['device']}"


def notes_of(model: dict[str, Any]) -> list[str]:
    """Return notes: shares of stages, roofline, long stream, and caveats of published figures."""
    notes = []
    for point in model["points"]:
        height, width = point["size"]
        where = f"{height}x{width}, {point['objects']} objects"
        ours = next((c for c in point["cells"] if c["variant"] == OURS and c["stages"]), None)
        if ours is not None:
            shares = ", ".join(f"{n} {100 * s:.0f} %" for n, s in ours["stages"].items())
            notes.append(f"ours, {where}: {shares}")
        if point["roofline"] is not None and ours is not None:
            notes.append(_roofline(point["roofline"], ours, where))
    stream = model.get("stream")
    if stream is not None:
        notes.append(_stream(stream))
    for paper in model["published"]:
        parts = ", ".join(f"{name} {ms:.0f} ms" for name, ms in paper["modules"].items())
        notes.append(f"{paper['source']}: {paper['caveat']}{'; ' + parts if parts else ''}")
    if not model["published"]:
        notes.append("no published time for this model")
    return notes


def _roofline(roofline: dict[str, float], ours: dict[str, Any], where: str) -> str:
    least = max(roofline["compute_ms"], roofline["traffic_ms"])
    return (
        f"roofline, {where}: {roofline['compute_ms']:.1f} ms for {roofline['gflop']:.0f} GFLOP at "
        f"the rate of a large matrix product, {roofline['traffic_ms']:.1f} ms to read "
        f"{roofline['mib']:.0f} MiB; ours "
        f"takes {ours['p50_ms'] / least:.1f} times that"
    )


def _stream(stream: dict[str, Any]) -> str:
    early, late = (stream["state_mib"][i] for i in (len(stream["at"]) // 10, -1))
    return (
        f"{len(stream['milliseconds'])} frames of one stream: p50 {stream['p50_ms']:.1f} ms, p99 "
        f"{stream['p99_ms']:.1f} ms; the state holds {early:.1f} MiB at first and {late:.1f} MiB "
        "at the end"
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw a PNG: per model, latency over the number of objects, and over the frame index.

    Raises  DependencyError without matplotlib, OutputError if the file cannot be written.
    """
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise DependencyError(
            f'bench: the chart needs matplotlib ({error}); pip install "vosengine[train]"'
        ) from error
    models = result["models"]
    figure = figure_module.Figure(figsize=(11, 4 * len(models)), layout="constrained")
    rows = figure.subplots(len(models), 2, squeeze=False)
    for (objects, frames), model in zip(rows, models, strict=True):
        _draw_objects(objects, model["points"])
        _draw_stream(frames, model.get("stream"))
        objects.set_title(title_of(model, result["environment"]), loc="left", fontsize="small")
    with whole(path) as scratch:
        figure.savefig(scratch, dpi=120, format="png")


def _draw_objects(axes: Any, points: Sequence[dict[str, Any]]) -> None:
    axes.set(xlabel="objects", ylabel="ms a step, p50 to p95")
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for point in points:
        if point["size"] != points[0]["size"]:
            continue
        for cell in point["cells"]:
            if cell["fault"] is None:
                timing = cell["objects"], cell["p50_ms"], cell["p95_ms"]
                lines.setdefault(cell["variant"], []).append(timing)
    for variant, measured in lines.items():
        counts, middle, high = zip(*sorted(measured), strict=True)
        (line,) = axes.plot(counts, middle, marker="o", label=variant)
        axes.fill_between(counts, middle, high, alpha=0.2, color=line.get_color())
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({point["objects"] for point in points}))
    if lines:
        axes.legend(fontsize="small")


def _draw_stream(axes: Any, stream: dict[str, Any] | None) -> None:
    axes.set(xlabel="frame", ylabel="ms a step")
    if stream is None:
        return
    axes.plot(stream["milliseconds"], linewidth=0.8)
    axes.set_ylim(bottom=0)
    memory = axes.twinx()
    memory.plot(stream["at"], stream["held_mib"], color="tab:orange")
    memory.set_ylabel("MiB held (orange)")
    memory.set_ylim(0, 1.2 * max(stream["held_mib"]))
