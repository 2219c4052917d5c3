"""The commands `train`, `clips`, `plot` and `eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import TextColumn

from ..errors import ConfigError
from .terminal import (
    INTERRUPTED,
    Device,
    Memory,
    Model,
    Precision,
    Ray,
    Threshold,
    Weights,
    WorkingSize,
    asked_to_stop,
    console,
    parse_size,
    parse_working_size,
    progress_bar,
)

if TYPE_CHECKING:
    from ..commands.evaluate import EvaluateOptions
    from ..training.trainer import Progress as TrainingProgress


def train(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, log and weights.")],
    config: Annotated[
        str,
        typer.Option(
            help="lite (with the pretrained backbone that ships), small (from scratch) or paper."
        ),
    ] = "small",
    data: Annotated[
        str,
        typer.Option(
            help="synthetic, cache:FOLDER, paste:FOLDER, stills:FOLDER, davis:FOLDER or "
            "youtube:FOLDER; or a weighted mix: davis:FOLDER=5,synthetic=1."
        ),
    ] = "synthetic",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips per step.")] = None,
    frames: Annotated[int | None, typer.Option(min=2, help="Frames per clip.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of the clips.")] = None,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate of AdamW.")] = None,
    parts: Annotated[
        str | None,
        typer.Option(help="Parts of target_aware, comma-separated: dnet, reid, tnet."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed of weights, clips and sampling.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Initial weights: of any model or a backbone; default for lite: the shipped one."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after this many minutes; --resume continues.")
    ] = None,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 180.0,
    score_every: Annotated[
        int, typer.Option(min=0, help="Steps between scores on held-out clips; 0: none.")
    ] = 500,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare clips.")] = 0,
    device: Device = "auto",
) -> None:
    """Train a model on procedural or your own video. Can be stopped and resumed at any time."""
    changes: dict[str, Any] = {
        "steps": steps,
        "batch": batch,
        "frames": frames,
        "size": None if size is None else parse_size(size),
        "rate": rate,
        "parts": None if parts is None else tuple(parts.split(",")),
        "precision": precision,
        "seed": seed,
    }
    from ..commands.train import TrainOptions
    from ..commands.train import train as work

    options = TrainOptions(
        model=model,
        out=out,
        config=config,
        data=data,
        changes={name: value for name, value in changes.items() if value is not None},
        init=init,
        resume=resume,
        device=device,
        workers=workers,
        minutes=minutes,
        save_every=save_every,
        score_every=score_every,
    )
    with (
        asked_to_stop() as stop,
        progress_bar(TextColumn("{task.fields[state]}"), unit="steps") as bar,
    ):
        task = bar.add_task(model, total=None, state="")

        def show(progress: TrainingProgress) -> None:
            loss = sum(progress.losses.values())
            state = f"loss {loss:.3f}, {progress.seconds:.2f} s a step"
            if progress.score is not None:
                bar.console.print(
                    f"step {progress.step}: loss {loss:.3f}, held-out {progress.score:.3f}"
                )
            bar.update(task, completed=progress.step, total=progress.steps, state=state)

        result = work(options, show, lambda: bool(stop))
    console.print(f"{result.steps} steps, {result.seconds / 60:.1f} minutes")
    console.print(f"wrote {result.weights}", soft_wrap=True)
    if not result.finished:
        console.print("stopped before the end; --resume continues from here")
        raise typer.Exit(INTERRUPTED if stop else 0)


def clips(
    out: Annotated[Path, typer.Option(help="Folder for the clips.")],
    count: Annotated[int, typer.Option(min=4, help="Number of clips.")] = 4096,
    frames: Annotated[int, typer.Option(min=2, help="Frames per clip.")] = 5,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the clips.")] = "160x288",
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    labelled: Annotated[
        bool,
        typer.Option("--labelled", help="Label everything that looks like an object."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw a cache.")] = 1,
    davis: Annotated[
        bool,
        typer.Option("--davis", help="Write a data set in DAVIS layout, for `eval`, not a cache."),
    ] = False,
    level: Annotated[
        int | None,
        typer.Option(min=0, max=3, help="With --davis: difficulty of all clips."),
    ] = None,
) -> None:
    """Draw a cache of procedural clips for `train --data cache:FOLDER`. Restart to resume."""
    height, width = parse_size(size)
    from ..commands.draw import write_davis
    from ..training.synthetic.cache import write_cache

    if level is not None and not davis:
        raise ConfigError("level: is for --davis; a cache holds all levels")
    with progress_bar(unit="clips" if davis else "shards") as bar:
        task = bar.add_task("clips", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        shape = height, width
        if davis:
            write_davis(out, count, frames, shape, seed, level, labelled=labelled, on_clip=show)
        else:
            write_cache(out, count, frames, shape, workers, seed, labelled=labelled, on_shard=show)
    console.print(f"wrote {count} clips to {out}", soft_wrap=True)


def plot(
    folder: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    out: Annotated[Path | None, typer.Option(help="PNG to write; default FOLDER/log.png.")] = None,
) -> None:
    """Plot the losses and held-out scores of a training run over its steps."""
    from ..training.plot import plot_log
    from ..training.trainer import LOG

    picture = out or folder / "log.png"
    plot_log(folder / LOG, picture)
    console.print(f"wrote {picture}", soft_wrap=True)


def evaluate(
    predictions: Annotated[
        Path | None, typer.Option(help="Masks to score: DIR/<sequence>/<frame>.png.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Ground truth, in the same layout.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to run on --data and score.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Data set in DAVIS layout: JPEGImages and Annotations.")
    ] = None,
    weights: Weights = None,
    device: Device = "auto",
    precision: Precision = "auto",
    size: WorkingSize = None,
    memory: Memory = None,
    sequences: Annotated[
        str | None, typer.Option(help="Only these sequences, comma-separated.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=3, help="Only this many frames of each sequence.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the model's masks.")] = None,
    binary: Annotated[bool, typer.Option("--binary", help="Merge all ids into one.")] = False,
    void: Annotated[
        bool | None,
        typer.Option(
            help="Treat 255 as void, or as an object id. Default: void if other ids occur."
        ),
    ] = None,
    threshold: Threshold = None,
    propagation: Annotated[
        bool,
        typer.Option(help="Also score the first mask propagated by a backbone's features."),
    ] = True,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes, or Ray actors, for the sequences.")
    ] = 1,
    ray: Ray = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
) -> None:
    """Measure J and F of masks in a folder, or of a model and of baselines without training.

    The first and the last frame of a sequence are not scored; the mean is over sequences.
    """
    working_size = parse_working_size(size)
    folders, runs = (predictions, annotations), (model, data)
    if any(folders) == any(runs) or not (all(folders) or all(runs)):
        raise typer.BadParameter("wanted --predictions and --annotations, or --model and --data")
    from ..evaluation import comparison, measure_folders, report, write_json
    from ..files import Given, keep_apart
    from ..video import MaskRule, prepare_output_folder

    rule = MaskRule(void, threshold)
    if json_file is not None:
        read = (("the masks", predictions), ("the annotations", annotations))
        keep_apart([g for what, at in read for g in Given.named(what, at, tree=True)], [json_file])
        prepare_output_folder(json_file.absolute().parent)
    if predictions is not None and annotations is not None:
        measured = measure_folders(predictions, annotations, binary=binary, rule=rule)
        console.print(comparison({"": measured}))
        content = report(measured)
        _say_void(content)
    if model is not None and data is not None:
        from ..commands.evaluate import EvaluateOptions

        options = EvaluateOptions(
            model=model,
            data=data,
            weights=weights,
            device=device,
            precision=precision,
            size=working_size,
            memory=memory,
            sequences=None if sequences is None else tuple(sequences.split(",")),
            limit=limit,
            binary=binary,
            rule=rule,
            out=out,
            json=json_file,
            propagation=propagation,
            workers=workers,
            ray=ray,
        )
        content = _evaluate(options)
    if json_file is not None:
        write_json(json_file, content)
        console.print(f"wrote {json_file}", soft_wrap=True)


def _say_void(content: dict[str, Any]) -> None:
    if content["with_void"]:
        console.print(
            f"255 is void in the annotation of {', '.join(content['with_void'])} and is not "
            "scored; --no-void treats it as an object id",
            soft_wrap=True,
        )


def _evaluate(options: EvaluateOptions) -> dict[str, Any]:
    from ..commands.evaluate import evaluate as work
    from ..evaluation import comparison

    with progress_bar() as bar:
        task = bar.add_task(options.model, total=None)
        result = work(
            options,
            lambda p: bar.update(task, completed=p.done, total=p.total, description=p.sequence),
        )
    content = result.as_json()
    name, note = content["weights"]["name"], content["weights"]["note"]
    console.print(f"weights: {note or name}", style="yellow" if note else None)
    console.print(comparison({options.model: result.evaluation, **result.baselines}))
    _say_void(content)
    console.print(
        f"{content['p50_ms']:.1f} ms a frame (median), {content['network_size']}, "
        f"{content['precision']}, {content['device_name']}",
        soft_wrap=True,
    )
    return content
