"""The command `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DependencyError
from .terminal import Device, Precision, Weights, console


def serve(
    model: Annotated[
        str, typer.Option(help="Name of the model; see `vosengine models`.")
    ] = "munet",
    weights: Weights = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000,
    token: Annotated[
        list[str] | None,
        typer.Option(help="Token that allows creating sessions; default: a random one."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    max_sessions: Annotated[int, typer.Option(min=1, help="Streams in memory at a time.")] = 64,
    sessions_per_token: Annotated[
        int | None, typer.Option(min=1, help="Maximum sessions of one token.")
    ] = None,
    max_memory: Annotated[
        int | None,
        typer.Option(min=1, help="MiB for the memory of all streams."),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Maximum frames encoded together.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Folder for saved streams, to resume after a restart.")
    ] = None,
    autosave: Annotated[
        int | None, typer.Option(min=0, help="With --state-dir: save every N answers; default 25.")
    ] = None,
    park_after: Annotated[
        float, typer.Option(min=1, help="Seconds without a frame until a stream leaves memory.")
    ] = 60.0,
    close_after: Annotated[
        float, typer.Option(min=1, help="Seconds without a frame until a session ends.")
    ] = 3600.0,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin allowed to connect: https://example.org.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host name of the server: example.org.")
    ] = None,
) -> None:
    """Serve live streams over HTTP and WebSocket, with a page at /. See docs/serving.md."""
    from ..server.settings import MIB, Settings

    settings = Settings(
        model=model,
        weights=weights,
        device=device,
        precision=precision,
        max_batch=max_batch,
        host=host,
        port=port,
        tokens=tuple(token or ()),
        max_sessions=max_sessions,
        sessions_per_token=sessions_per_token,
        max_memory=None if max_memory is None else max_memory * MIB,
        state_dir=state_dir,
        autosave=(0 if state_dir is None else 25) if autosave is None else autosave,
        park_after=park_after,
        close_after=close_after,
        allow_origins=tuple(allow_origin or ()),
        allow_hosts=tuple(allow_host or ()),
    )
    try:
        from ..server.run import serve as work
    except ImportError as error:
        raise DependencyError(
            f'serve: a package is missing ({error}); pip install "vosengine[serve]"'
        ) from error

    def announce(port: int, tokens: tuple[str, ...]) -> None:
        shown = f"[{host}]" if ":" in host else host
        for value in tokens:
            console.print(f"http://{shown}:{port}/#token={value}", soft_wrap=True)

    work(settings, announce)
