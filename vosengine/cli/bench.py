"""The command `bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .terminal import Device, console, errors, parse_size

OBJECT_COUNTS = typer.Option(help="Numbers of objects, comma-separated.")


def bench(
    model: Annotated[str | None, typer.Option(help="Model names, comma-separated.")] = None,
    all_models: Annotated[bool, typer.Option("--all", help="All models.")] = False,
    device: Device = "auto",
    weights: Annotated[
        str, typer.Option(help="random (the papers' model sizes), a tag (demo), or a file.")
    ] = "random",
    sizes: Annotated[
        str, typer.Option(help="Frame sizes, HEIGHTxWIDTH, comma-separated.")
    ] = "480x854,720x1280,1080x1920",
    objects: Annotated[str, OBJECT_COUNTS] = "1,2,3,5,10",
    memory_frames: Annotated[int, typer.Option(min=2, help="Frames in the memory.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps.")] = 50,
    warm_up: Annotated[int, typer.Option(min=0, help="Warm-up steps.")] = 5,
    frames: Annotated[int, typer.Option(min=0, help="Frames of the long stream; 0: none.")] = 1000,
    streams: Annotated[
        str | None,
        typer.Option(help="Time only these numbers of streams on one engine, comma-separated."),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="With --streams: maximum frames encoded together.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Video or frame folder, instead of procedural frames.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option(help="Time torch.compile too, if bf16 is available; minutes a model.")
    ] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="One size, three objects, few steps; minutes on a CPU.")
    ] = False,
    output_json: Annotated[Path | None, typer.Option(help="Write the figures as JSON.")] = None,
    output_md: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Write a chart as PNG.")] = None,
) -> None:
    """Time models in their variants, interleaved: percentiles of a step, memory, stages, and
    labels compared with float32; with the figures published in the papers."""
    if (model is None) != all_models:
        raise typer.BadParameter("wanted --model MODEL or --all")
    parsed = tuple(parse_size(size) for size in sizes.split(","))
    counts = _parse_counts(objects)
    many = None if streams is None else _parse_counts(streams)
    if max_batch is not None and many is None:
        raise typer.BadParameter("--max-batch needs --streams; leave it out")
    from ..benchmark import Plan, table_of_streams, tables_of
    from ..commands.bench import BenchOptions, bench_streams
    from ..commands.bench import bench as work
    from ..zoo.registry import list_models

    options = BenchOptions(
        models=list_models() if model is None else tuple(model.split(",")),
        device=device,
        plan=Plan(weights, memory_frames, warm_up, steps),
        sizes=parsed,
        objects=counts,
        frames=frames,
        compiled=compiled,
        data=data,
        json=output_json,
        markdown=output_md,
        chart=chart,
        command=_command(sys.argv[1:]),
    )
    if quick:
        options = options.quick()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(where: str) -> None:
            bar.update(task, description=where)

        if many is None:
            tables = tables_of(work(options, show), console.width)
        else:
            models = bench_streams(options, many, max_batch, show)["models"]
            tables = (table_of_streams(row["model"], row["streams"]) for row in models)
    for table in tables:
        console.print(table)
    for file in (output_json, output_md, chart):
        if file is not None:
            console.print(f"wrote {file}", soft_wrap=True)


def _command(words: list[str]) -> str:
    """The command line without the output options, whose paths are specific to this machine."""
    kept, files = ["vosengine"], ("--output-json", "--output-md", "--chart")
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        if before not in files and word.partition("=")[0] not in files:
            kept.append(word)
    return " ".join(kept)


def _parse_counts(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdigit() and 1 <= int(word) <= 255 for word in words):
        raise typer.BadParameter(f"wanted counts of 1..255 such as 1,2,3, given {text!r}")
    return tuple(int(word) for word in words)
