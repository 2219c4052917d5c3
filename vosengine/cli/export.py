"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .terminal import Weights, console, parse_size


def export(
    model: Annotated[str, typer.Argument(help="Name of the model; see `vosengine models`.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the graphs and model.json.")] = None,
    server_repository: Annotated[
        Path | None,
        typer.Option(help="Write a repository for NVIDIA Triton Inference Server instead."),
    ] = None,
    weights: Weights = None,
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH in the network: static graphs of this size."),
    ] = None,
    dynamic: Annotated[
        bool,
        typer.Option("--dynamic", help="Any size, objects and memory; the default without --size."),
    ] = False,
    max_objects: Annotated[
        int | None,
        typer.Option(help="Maximum number of objects; in static graphs, the number of rows."),
    ] = None,
    memory_frames: Annotated[
        int | None, typer.Option(help="Frames in the memory; default: the model's.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
    opset: Annotated[int, typer.Option(help="ONNX opset: 20 or 21.")] = 20,
    ops: Annotated[
        str,
        typer.Option(
            help="Operators: standard (any runtime), contrib (onnxruntime's attention), or "
            "vosengine (custom operators, from the library installed with this package)."
        ),
    ] = "standard",
) -> None:
    """Export a model as ONNX graphs for onnxruntime; each is checked and compared with torch."""
    if size is not None and dynamic:
        raise typer.BadParameter("wanted --size or --dynamic, given both")
    if (out is None) == (server_repository is None):
        raise typer.BadParameter("wanted --out DIR or --server-repository DIR")
    parsed = None if size is None else parse_size(size)
    from ..commands.export import Export
    from ..commands.export import export as work

    wanted = Export(
        model=model,
        out=out,
        server_repository=server_repository,
        weights=weights,
        size=parsed,
        max_objects=max_objects,
        memory_frames=memory_frames,
        precision=precision,
        opset=opset,
        ops=ops,
    )
    with console.status("tracing") as status:
        written = work(wanted, report=lambda line: status.update(f"writing {line}"))
    table = Table("graph", "MiB", "largest difference from torch", "largest value")
    for row in written.graphs:
        table.add_row(*row)
    console.print(table)
    console.print(
        f"compared with torch: {100 * written.differs:.4f} % of the labels differ "
        f"({written.frames} generated frames)"
    )
    for line in written.kept:
        console.print(f"standard operators in {line}", soft_wrap=True)
    caption = written.caption
    console.print(f"weights: {caption}", style=None if written.trained else "yellow")
    console.print(f"wrote {written.folder}", soft_wrap=True)
