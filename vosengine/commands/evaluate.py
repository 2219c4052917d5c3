"""`vosengine eval`: score a model, or masks in a folder, against annotations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..batch.pools import open_pool
from ..batch.supervisor import Event
from ..batch.worker import FatalWorkError
from ..errors import DeviceError, InputError
from ..evaluation import (
    FEWEST_FRAMES,
    Annotated,
    Evaluation,
    SequenceScore,
    find_annotated,
    report,
)
from ..files import Given, Ledger, check_output_folder, keep_apart
from ..timing import summarise
from ..video import AS_FOUND, MaskRule, prepare_output_folder
from .sequences import MODEL, Scored, SequenceWorker, open_frames

MASKS = "masks.json"  # the list of the masks that were written


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of a model's evaluation.

    data         a data set in DAVIS layout
    sequences    names of sequences; None: all
    limit        score only this many first frames of every sequence, at least 3; None: all
    binary       score all ids above 0 as one object
    rule         how 255 in annotations is read, see `measure_folders`
    out          write the masks as they were scored, with the annotation's ids and without
                 unmatched objects, to OUT/<sequence>/<frame>.png
    json         file that the caller will write; must not be an input
    propagation  whether to score PropagatedMask beside a model that needs a mask; it takes about
                 as long as a small model
    workers      number of processes, or of actors in a cluster, that share the sequences
    retries      how often a sequence is retried after its process died
    ray          the Ray cluster, see BatchOptions; None: this machine

    Other options are those of Segmenter.
    """

    model: str
    data: Path
    weights: str | None = None
    device: str = "auto"
    precision: str = "auto"
    size: int | tuple[int, int] | str | None = None
    memory: str | None = None
    sequences: tuple[str, ...] | None = None
    limit: int | None = None
    binary: bool = False
    rule: MaskRule = AS_FOUND
    out: Path | None = None
    json: Path | None = None
    propagation: bool = True
    workers: int = 1
    retries: int = 2
    ray: str | None = None


@dataclass(frozen=True)
class Progress:
    """Frames processed, their total number, and the sequence of the last one."""

    done: int
    total: int
    sequence: str


@dataclass(frozen=True)
class ModelEvaluation:
    """Scores of a model and of baselines on the same frames.

    baselines     scores by name of the baseline
    settings      options and environment, for the report
    milliseconds  time of every frame but the first of each sequence
    """

    evaluation: Evaluation
    baselines: dict[str, Evaluation]
    settings: dict[str, Any]
    milliseconds: list[float] = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """`report` of the model, with its baselines, settings and times."""
        return {
            **report(self.evaluation),
            "baselines": {name: report(scores) for name, scores in self.baselines.items()},
            **self.settings,
            "timed_frames": len(self.milliseconds),
            **summarise(self.milliseconds),
        }


def evaluate(
    options: EvaluateOptions, progress: Callable[[Progress], None] = lambda progress: None
) -> ModelEvaluation:
    """Run a model over annotated sequences; measure J and F of its masks and of baselines.

    A model that needs a mask is given that of the first frame; objects that first appear in a later
    annotation are not scored. Its baselines are the first mask copied to every frame, warped by
    optical flow, and propagated by features that were not trained for it. Other models are given no
    mask. If such a model finds only one object, it is scored against all annotated objects
    together; otherwise `best_ids` assigns its objects to the annotated ones. Its baseline, a
    centred ellipse, is scored in the same way.

    progress  called after every frame

    Raises  InputError, the errors of Segmenter, and DeviceError for a sequence whose process died
            `retries` + 1 times. An error names the sequence and ends the whole evaluation.
    """
    if options.ray is not None:
        options = _with_absolute_paths(options)
    sequences = _find_sequences(options)
    _check_outputs(options, sequences)
    for sequence in sequences:
        open_frames(sequence).close()
    if options.out is not None:
        prepare_output_folder(options.out)
        Ledger(options.out / MASKS).add(())
    scored = _score_all(options, sequences, progress)
    scores: dict[str, dict[str, SequenceScore]] = {}
    for sequence in sequences:
        for name, score in scored[sequence.name].scores.items():
            scores.setdefault(name, {})[sequence.name] = score
    with_void = tuple(s.name for s in sequences if scored[s.name].with_void)
    return ModelEvaluation(
        evaluation=Evaluation(scores.pop(MODEL), with_void),
        baselines={
            name: Evaluation(by_sequence, with_void) for name, by_sequence in scores.items()
        },
        settings=scored[sequences[-1].name].settings,
        milliseconds=[ms for s in sequences for ms in scored[s.name].milliseconds],
    )


def _score_all(
    options: EvaluateOptions, sequences: list[Annotated], progress: Callable[[Progress], None]
) -> dict[str, Scored]:
    """Score all sequences, here or in other processes; by name. Raises the first error."""
    total, done = sum(len(sequence.frames) for sequence in sequences), 0
    scored: dict[str, Scored] = {}

    def listen(event: Event) -> None:
        nonlocal done
        name = event.job.name
        if event.kind == "frames":
            done += event.value
            progress(Progress(done, total, name))
        elif event.kind == "done":
            scored[name] = event.value
            if options.out is not None:
                Ledger(options.out / MASKS).add(f"{name}/{p.stem}.png" for p in event.job.frames)
        elif event.kind == "failed":
            raise DeviceError(f"{name}: {event.value}")

    if options.workers == 1 and options.ray is None:
        work = SequenceWorker(options)
        for sequence in sequences:
            report = partial(_report_frames, listen, sequence)
            try:
                listen(Event("done", sequence, work(sequence, report, lambda: False)))
            except FatalWorkError as error:
                raise error.error from error.__cause__
        return scored
    pool = open_pool(
        partial(SequenceWorker, options),
        workers=options.workers,
        retries=options.retries,
        ray=options.ray,
        device=options.device,
        listen=listen,
        lock=None if options.out is None else options.out / MASKS,
    )
    pool.work(sequences, lambda: False)
    return scored


def _report_frames(listen: Callable[[Event], None], sequence: Annotated, frames: int) -> None:
    listen(Event("frames", sequence, frames))


def _with_absolute_paths(options: EvaluateOptions) -> EvaluateOptions:
    """With absolute paths, for processes on other machines."""
    weights = options.weights
    if weights is not None and Path(weights).is_file():
        weights = str(Path(weights).absolute())
    out = None if options.out is None else options.out.absolute()
    return replace(options, data=options.data.absolute(), weights=weights, out=out)


def _find_sequences(options: EvaluateOptions) -> list[Annotated]:
    """The sequences, cut to the limit. Raises InputError if one is too short."""
    sequences = []
    for sequence in find_annotated(options.data, options.sequences):
        frames = sequence.frames[: options.limit]
        if len(frames) < FEWEST_FRAMES:
            raise InputError(
                f"{sequence.name}: {len(frames)} frames, wanted at least {FEWEST_FRAMES}; the "
                "first and the last are not scored"
            )
        sequences.append(Annotated(sequence.name, frames, sequence.annotations[: options.limit]))
    return sequences


def _check_outputs(options: EvaluateOptions, sequences: list[Annotated]) -> None:
    """Check that outputs overwrite no input, and no file but masks of an earlier evaluation.

    Raises  OutputError.
    """
    masks = [f"{s.name}/{p.stem}.png" for s in sequences for p in s.frames]
    written = [] if options.json is None else [options.json]
    if options.out is not None:
        check_output_folder(options.out)
        written += [options.out / name for name in (*masks, MASKS)]
    keep_apart(
        [
            *Given.named("the data", options.data / "JPEGImages", tree=True),
            *Given.named("the data", options.data / "Annotations", tree=True),
            *Given.named("the weights", options.weights),
        ],
        written,
    )
    if options.out is not None:
        Ledger(options.out / MASKS).check(masks)
