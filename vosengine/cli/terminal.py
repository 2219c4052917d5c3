"""What the commands share at the terminal: options, sizes, progress, and being asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..config import read_working_size
from ..errors import ConfigError

# What is printed holds paths: [x] and :x: in them are no styles and no pictures.
console = Console(markup=False, emoji=False, highlight=False)
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)

INTERRUPTED = 130  # the shell's exit code for Ctrl-C

Model = Annotated[str, typer.Option("--model", help="Which model; `vosengine models` lists them.")]
Weights = Annotated[
    str | None, typer.Option(help="A tag (`vosengine models`) or a .safetensors file.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, tf32, bf16 or fp16.")]
WorkingSize = Annotated[
    str | None, typer.Option(help="What the network works at: short side, HEIGHTxWIDTH, or native.")
]
Memory = Annotated[str | None, typer.Option(help="What is remembered: every-N, all or afb.")]
Ray = Annotated[
    str | None,
    typer.Option("--ray", help="Work on a Ray cluster: HOST:PORT, auto, or local."),
]


def say_error(message: str) -> None:
    """One message in the way of all errors; what the terminal cannot show is escaped."""
    encoding = errors.encoding
    shown = message.encode(encoding, "backslashreplace").decode(encoding)
    errors.print("error:", style="bold red", end=" ")
    errors.print(shown, soft_wrap=True)


def parse_size(size: str) -> tuple[int, int]:
    height, _, width = size.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise typer.BadParameter(f"wanted HEIGHTxWIDTH such as 480x854, given {size!r}")
    return int(height), int(width)


def parse_working_size(size: str | None) -> int | tuple[int, int] | str | None:
    try:
        return None if size is None else read_working_size(size)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def progress_bar(*fields: TextColumn, unit: str = "frames") -> Progress:
    """A bar of frames, gone when it is done."""
    count = TextColumn("{task.completed}/{task.total} " + unit)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        count,
        *fields,
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=errors, transient=True)


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or SIGTERM comes; the second one ends the process at once."""
    received: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        for kind in kinds:
            signal.signal(kind, before[kind])

    for kind in kinds:
        signal.signal(kind, note)
    try:
        yield received
    finally:
        for kind in kinds:
            signal.signal(kind, before[kind])
