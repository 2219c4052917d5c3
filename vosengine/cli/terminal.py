"""Terminal helpers of all commands: shared options, size parsing, progress and signals."""

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

# Printed paths may contain [x] or :x:, which must not be read as markup or emoji.
console = Console(markup=False, emoji=False, highlight=False)
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)

INTERRUPTED = 130  # the shell's exit code for Ctrl-C

Model = Annotated[str, typer.Option("--model", help="Name of the model; see `vosengine models`.")]
Weights = Annotated[
    str | None, typer.Option(help="A tag (`vosengine models`) or a .safetensors file.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, tf32, bf16 or fp16.")]
WorkingSize = Annotated[
    str | None, typer.Option(help="Working size: short side, HEIGHTxWIDTH, or native.")
]
Memory = Annotated[str | None, typer.Option(help="Memory policy: every-N, all or afb.")]
Online = Annotated[
    bool, typer.Option("--online", help="Answer every frame at once, without future frames.")
]
Threshold = Annotated[
    int | None,
    typer.Option(min=1, max=255, help="Masks are soft, 0..255: object 1 at this value and above."),
]
Ray = Annotated[
    str | None,
    typer.Option("--ray", help="Run on a Ray cluster: HOST:PORT, auto, or local."),
]


def say_error(message: str) -> None:
    """Print an error message; characters that the terminal cannot encode are escaped."""
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
    """Create a progress bar that disappears when it is done."""
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
    """Yield a list that receives the number of a SIGINT or SIGTERM.

    A second signal ends the process at once.
    """
    received: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def record(number: int, _frame: object) -> None:
        received.append(number)
        for kind in kinds:
            signal.signal(kind, before[kind])

    for kind in kinds:
        signal.signal(kind, record)
    try:
        yield received
    finally:
        for kind in kinds:
            signal.signal(kind, before[kind])
