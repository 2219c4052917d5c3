"""The command `batch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import TextColumn
from rich.table import Table

from .terminal import (
    INTERRUPTED,
    Device,
    Memory,
    Online,
    Precision,
    Ray,
    Weights,
    WorkingSize,
    asked_to_stop,
    console,
    parse_working_size,
    progress_bar,
    say_error,
)


def batch(
    clips: Annotated[
        list[str],
        typer.Argument(
            metavar="CLIPS...",
            help="Videos, frame folders, globs, folders of these, data sets in DAVIS or "
            "YouTube-VOS layout; or one manifest, .jsonl or .csv. Paths or addresses (s3://...).",
        ),
    ],
    out: Annotated[str, typer.Option(help="Output folder or address; one subfolder per clip.")],
    model: Annotated[
        str, typer.Option(help="Name of the model; a manifest can set it per clip.")
    ] = "giel",
    workers: Annotated[int, typer.Option(min=1, help="Processes, or Ray actors.")] = 1,
    ray: Ray = None,
    scratch: Annotated[
        Path | None,
        typer.Option(help="Folder for temporary copies of clips at addresses."),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="Times a clip is retried after its process died.")
    ] = 2,
    checkpoint: Annotated[
        int, typer.Option(min=0, help="Save a clip's stream every N frames; 0: only on stop.")
    ] = 100,
    mask_suffix: Annotated[
        str,
        typer.Option(
            help="The mask of NAME.mp4 is NAME + suffix + .png, or a folder NAME + suffix."
        ),
    ] = "",
    rle: Annotated[bool, typer.Option("--rle", help="Write masks.jsonl, COCO RLE.")] = False,
    overlay: Annotated[bool, typer.Option(help="Write overlay.mp4.")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum frames per clip.")] = None,
    redo: Annotated[
        bool, typer.Option("--redo", help="Repeat clips that were finished with other options.")
    ] = False,
    weights: Weights = None,
    device: Device = "auto",
    precision: Precision = "auto",
    max_objects: Annotated[
        int | None, typer.Option(min=1, max=255, help="Maximum number of objects.")
    ] = None,
    size: WorkingSize = None,
    memory: Memory = None,
    online: Online = False,
) -> None:
    """Segment many clips, each into a folder as `run` writes it. Restart to resume after a stop."""
    working_size = parse_working_size(size)
    from ..batch.plan import BatchOptions
    from ..batch.stores import is_address
    from ..commands.batch import Tally
    from ..commands.batch import batch as work

    run = {
        "model": model,
        "weights": weights,
        "device": device,
        "precision": precision,
        "max_objects": max_objects,
        "size": working_size,
        "memory": memory,
        "online": online,
        "limit": limit,
        "checkpoint": checkpoint,
        "overlay": overlay,
    }
    options = BatchOptions(
        tuple(clips),
        out if is_address(out) else Path(out),
        run,
        mask_suffix,
        workers,
        retries,
        rle,
        redo,
        ray,
        scratch,
    )
    fields = TextColumn("{task.fields[failed]} failed, {task.fields[rate]:.1f} frames/s")
    with asked_to_stop() as stop, progress_bar(fields, unit="clips") as bar:
        task = bar.add_task("batch", total=None, failed=0, rate=0.0)

        def show(tally: Tally) -> None:
            failed, skipped = tally.counts["failed"], tally.counts["skipped"]
            bar.update(
                task,
                completed=tally.counts["done"] + failed,
                total=len(tally.rows) - skipped,
                failed=failed,
                rate=tally.frames_per_second,
            )

        summary = work(options, report=show, should_stop=lambda: bool(stop))
    _say(summary, out)
    if summary["failed"]:
        say_error(
            f"{summary['failed']} clips failed; {out.rstrip('/')}/failed.jsonl has the reasons"
        )
    if stop and summary["stopped"] + summary["waiting"]:
        console.print("stopped before the end; the same command continues from here")
        raise typer.Exit(INTERRUPTED)
    if summary["failed"]:
        raise typer.Exit(1)


def _say(summary: dict[str, Any], out: str) -> None:
    table = Table("clips", "done", "failed", "skipped", "not finished", "frames", "frames/s")
    left = summary["stopped"] + summary["waiting"]
    counts = (summary[name] for name in ("clips", "done", "failed", "skipped"))
    table.add_row(
        *map(str, (*counts, left, summary["frames"], f"{summary['frames_per_second']:.2f}"))
    )
    console.print(table)
    console.print(f"wrote {out}", soft_wrap=True)
