"""The command line: parsing and printing. torch is imported after the arguments are parsed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from ..allocation import keep_freed_memory
from ..errors import ConfigError, VosError
from . import batch as cli_batch
from . import bench as cli_bench
from . import export as cli_onnx
from . import serve as cli_serve
from . import training as cli_training
from .terminal import (
    INTERRUPTED,
    Device,
    Memory,
    Online,
    Precision,
    Threshold,
    Weights,
    WorkingSize,
    asked_to_stop,
    console,
    parse_size,
    parse_working_size,
    progress_bar,
    say_error,
)

if TYPE_CHECKING:
    from ..commands.run import RunOptions

app = typer.Typer(
    help="Streaming video object segmentation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Run the command line. A VosError is printed without traceback and exits with code 1."""
    # Spinning OpenMP threads slow a step 20-fold if another process uses the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    try:
        app()
    except VosError as error:
        say_error(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None


def _version(wanted: bool) -> None:
    if wanted:
        from ..build import described

        console.print(f"vosengine {described()}", soft_wrap=True)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[EXPORT] SOURCE",
            help="Video file, image folder, glob, camera number, or address. "
            "With --engine onnx: the export's folder, then the source.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for masks, overlay.mp4 and summary.json.")],
    model: Annotated[
        str | None, typer.Option(help="Name of the model; see `vosengine models`.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="fast, eager (layer by layer), or onnx (an export's graphs).")
    ] = "fast",
    mask: Annotated[
        Path | None,
        typer.Option(help="PNG of the first frame's object ids, or a folder of PNGs by frame."),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            help="[N:]X,Y,W,H: box of object N (default 1, 2, ..) in the first frame; repeatable."
        ),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            help="[N:]X,Y: point on object N (default 1); [N:]X,Y,-: point outside it; repeatable."
        ),
    ] = None,
    prompt_method: Annotated[
        str | None, typer.Option(help="How boxes and points become masks: click, grabcut or auto.")
    ] = None,
    mask_void: Annotated[
        bool | None,
        typer.Option(
            help="Treat 255 in masks as void, or as an object id. Default: void if other ids occur."
        ),
    ] = None,
    threshold: Threshold = None,
    proposals: Annotated[
        str | None,
        typer.Option(
            help="Source of proposals: dnet[:WEIGHTS], file:FILE.json or torchvision:FILE.pth."
        ),
    ] = None,
    boxes_as_masks: Annotated[
        bool,
        typer.Option("--boxes-as-masks", help="With file: use the box as mask if there is none."),
    ] = False,
    weights: Weights = None,
    device: Device = "auto",
    precision: Precision = "auto",
    max_objects: Annotated[
        int | None, typer.Option(help="Maximum number of objects; default: the model's.")
    ] = None,
    size: WorkingSize = None,
    memory: Memory = None,
    online: Online = False,
    bits: Annotated[
        int | None,
        typer.Option(help="Bit depth of the data, 8 to 16; default: from the first frames."),
    ] = None,
    reconnect: Annotated[
        int, typer.Option(help="Reopen a dropped address up to this many times.")
    ] = 0,
    fps: Annotated[
        float | None, typer.Option(help="Frame rate of the overlay; default: the source's times.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    checkpoint: Annotated[
        int, typer.Option(min=0, help="Save the stream every N frames, for --resume after a kill.")
    ] = 0,
    overlay: Annotated[bool, typer.Option(help="Write overlay.mp4.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
) -> None:
    """Segment a video: masks as indexed PNGs, an overlay video, and a summary."""
    export, source = _split_sources(sources, engine)
    if (model is None) != (engine == "onnx"):
        raise typer.BadParameter("wanted --model MODEL, or --engine onnx with the export's folder")
    working_size = parse_working_size(size)
    from ..commands.run import RunOptions

    options = RunOptions(
        source=source,
        model=model or str(export),
        out=out,
        engine=engine,
        export=export,
        mask=mask,
        boxes=tuple(box or ()),
        points=tuple(point or ()),
        prompt_method=prompt_method,
        mask_void=mask_void,
        threshold=threshold,
        proposals=proposals,
        boxes_as_masks=boxes_as_masks,
        weights=weights,
        device=device,
        precision=precision,
        max_objects=max_objects,
        size=working_size,
        memory=memory,
        online=online,
        bits=bits,
        reconnect=reconnect,
        fps=fps,
        limit=limit,
        checkpoint=checkpoint,
        overlay=overlay,
        resume=resume,
    )
    _run(options)


def _split_sources(sources: list[str], engine: str) -> tuple[Path | None, str]:
    """Split the arguments into (export folder or None, source)."""
    wanted = 2 if engine == "onnx" else 1
    if len(sources) != wanted:
        what = "the export's folder, then SOURCE" if wanted == 2 else "one SOURCE"
        raise typer.BadParameter(f"wanted {what}, given {' '.join(sources)}")
    return (Path(sources[0]) if wanted == 2 else None), sources[-1]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the clip, masks and overlay.")],
    model: Annotated[str, typer.Option(help="Name of the model.")] = "giel",
    clip: Annotated[
        str | None, typer.Option(help="Your own clip instead of a drawn one; a source as in run.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="With --clip: masks as in run; the first frame needs one.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Frames of the drawn clip; default 24.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH of the drawn clip; default 240x432.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed of the drawn clip; default 3.")
    ] = None,
) -> None:
    """Draw a short clip with moving objects and segment it; or segment your own clip."""
    from ..commands.demo import Demo, make_demo_clip, own_clip, score_demo

    if clip is not None:
        drawn = {"frames": frames, "size": size, "seed": seed}
        _run(own_clip(out, model, clip, mask, [n for n, x in drawn.items() if x is not None]))
        return
    if mask is not None:
        raise ConfigError("mask: is for a clip of your own; give that with --clip, or omit it")
    height, width = parse_size("240x432" if size is None else size)
    made = Demo(out, model, frames or 24, height, width, 3 if seed is None else seed)
    _run(make_demo_clip(made))
    of = "the objects" if made.prompted else "the foreground"
    console.print(f"mean J of {of}: {score_demo(made):.3f}")


def _run(options: RunOptions) -> None:
    from ..commands.run import run as work

    with asked_to_stop() as stop, progress_bar(TextColumn("{task.fields[rate]}")) as bar:
        task = bar.add_task(options.model, total=None, rate="")
        summary = work(
            options,
            report=lambda p: bar.update(
                task, completed=p.done, total=p.total, rate=f"{1e3 / p.last_ms:.1f} frames/s"
            ),
            should_stop=lambda: bool(stop),
        )
    note = summary["weights"]["note"]
    console.print(f"weights: {note}", style=None if summary["weights"]["trained"] else "yellow")
    if (summary["mask"] or {}).get("with_void"):
        console.print("mask: 255 is void (no object); --no-mask-void treats it as an object id")
    if summary["proposals"] is not None:
        counts = dict(summary["proposals"])
        source, caption = counts.pop("source"), counts.pop("weights")
        parts = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items()]
        console.print(
            ", ".join([f"proposals: {source}", *([caption] if caption else []), *parts]),
            style="yellow" if caption and "RANDOM" in caption else None,
            soft_wrap=True,
        )
    speed = (
        f", p50 {summary['p50_ms']} ms, p95 {summary['p95_ms']} ms" if "p50_ms" in summary else ""
    )
    console.print(f"{summary['frame_count']} frames on {summary['device_name']}{speed}")
    console.print(f"wrote {options.out}", soft_wrap=True)
    if not summary["complete"]:
        console.print("stopped before the end; --resume continues from here")
        raise typer.Exit(INTERRUPTED)


@app.command()
def models() -> None:
    """List the models and the installed weights."""
    from ..zoo.registry import MODELS
    from ..zoo.weights import backbone_cards, cards

    table = Table("model", "summary", "weights", "trained")
    for name, entry in MODELS.items():
        for card in (card for card in cards().values() if card.model == name):
            table.add_row(name, entry.summary, card.tag, "yes" if card.trained else "no: RANDOM")
    for card in (card for card in cards().values() if card.model not in MODELS):
        table.add_row(card.model, card.description, card.tag, "yes")
    console.print(table)
    backbones = Table("backbone", "source", "licence")
    for backbone in backbone_cards().values():
        backbones.add_row(backbone.name, backbone.source, backbone.licence)
    console.print(backbones)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Name of the model; see `vosengine models`.")],
    size: Annotated[str, typer.Option(help="Frame size as HEIGHTxWIDTH.")] = "480x854",
    objects: Annotated[int, typer.Option(min=1, help="Objects in the frame.")] = 3,
    memory_frames: Annotated[int, typer.Option(min=1, help="Frames in the memory.")] = 5,
    max_objects: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of objects; default: the model's.")
    ] = None,
) -> None:
    """Print parameters, GFLOP and memory of a model at a frame size and object count."""
    frame_size = parse_size(size)
    from ..commands.info import cost

    costs = cost(
        model,
        frame_size,
        objects,
        memory_frames=memory_frames,
        max_objects=max_objects,
    )
    memory = f", {memory_frames} memory frames" if costs.memory_frames else ""
    title = f"{model}: {size}, {objects} objects{memory}, fp32"
    table = Table("quantity", "value", title=title)
    table.add_row("parameters", f"{costs.parameters / 1e6:.1f} M")
    table.add_row("network input", "x".join(map(str, costs.network_size)))
    for verb, gflop in costs.gflop.items():
        table.add_row(f"{verb}, per frame", f"{gflop:.1f} GFLOP")
    table.add_row("total, per frame", f"{sum(costs.gflop.values()):.1f} GFLOP")
    for name in ("weights", "features", "memory"):
        table.add_row(f"{name} size", f"{getattr(costs, f'{name}_bytes') / 2**20:.0f} MiB")
    console.print(table)


@app.command()
def doctor() -> None:
    """Print installed versions and the backends of every op with the reasons, and test them."""
    from ..commands.doctor import machine, self_test, versions

    table = Table("what", "found", show_header=False)
    for facts in (versions(), machine()):
        for name, value in facts.items():
            table.add_row(name, value)
    console.print(table)
    ops = Table("op", "device", "backend", "", "self-test against the reference")
    failed = False
    for report in self_test():
        failed = failed or report.fault is not None
        outcome = Text(f"{report.tested} cases agree" if report.tested else "", style="green")
        if report.fault is not None:
            outcome = Text.assemble(("FAILS", "bold red"), f" {report.fault}")
        elif report.reason is not None:
            reason = f"{'; but not' if report.tested else 'not used'}: {report.reason}"
            outcome = Text.assemble(outcome, reason)
        elif report.backend == "reference":
            outcome = Text("takes every call")
        chosen = "chosen" if report.chosen else ""
        ops.add_row(report.op, report.device, report.backend, chosen, outcome)
    console.print(ops)
    if failed:
        say_error("a backend disagrees with its reference; do not trust it")
        raise typer.Exit(1)


app.command()(cli_batch.batch)
app.command("eval")(cli_training.evaluate)
app.command()(cli_training.train)
app.command()(cli_training.clips)
app.command()(cli_training.plot)
app.command()(cli_bench.bench)
app.command()(cli_onnx.export)
app.command()(cli_serve.serve)


if __name__ == "__main__":
    main()
