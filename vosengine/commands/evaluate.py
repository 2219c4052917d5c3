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

MASKS = "masks.json"  # beside the masks: which they are


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of a model's evaluation.

    data       a data set in DAVIS layout
    sequences  their names; None takes all
    limit      the first frames of every sequence, at least 3; None takes all
    binary     all ids above 0 are one object when J and F are taken
    rule       what 255 is in an annotation, as `measure_folders` has it
    out        keep the masks there as OUT/<sequence>/<frame>.png, as they were scored: with the
               annotation's ids, objects that match none left out
    json       where the caller will put the figures: no file that is read
    workers    processes, or actors of a cluster, that share the sequences out among themselves
    retries    how often a sequence is begun again after its process died
    ray        the cluster, as in BatchOptions; None: this machine
    propagation  whether a model that needs a mask is also held against PropagatedMask, which takes
               about as long as a small model

    The rest is as in Segmenter.
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
    """Frames answered, of how many, and the sequence of the last one."""

    done: int
    total: int
    sequence: str


@dataclass(frozen=True)
class ModelEvaluation:
    """A model beside baselines on the same frames.

    baselines     by name
    note          what to say of random weights; None where they are trained
    settings      what it was run with
    milliseconds  of every frame but the first of each sequence
    """

    evaluation: Evaluation
    baselines: dict[str, Evaluation]
    note: str | None
    settings: dict[str, Any]
    milliseconds: list[float] = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """`report` of the model, with its baselines, settings and times."""
        return {
            **report(self.evaluation),
            "baselines": {name: report(found) for name, found in self.baselines.items()},
            **self.settings,
            "timed_frames": len(self.milliseconds),
            **summarise(self.milliseconds),
        }


def evaluate(
    options: EvaluateOptions, progress: Callable[[Progress], None] = lambda progress: None
) -> ModelEvaluation:
    """Run a model over annotated sequences and take J and F of what it says, and of baselines.

    A model that needs a mask is given that of the first frame and follows the objects in it; those
    that only a later annotation shows are left out of it. Its baselines are that mask copied to
    every frame, carried on by optical flow, and by features that nobody trained for it. A model
    that needs none is given none. Where it can find but one object, that is held against all
    annotated ones together; where it finds more, `match_objects` says which is which. Its
    baseline, a centred ellipse, is treated alike.

    progress  is called after every frame

    Raises  InputError, whatever Segmenter raises, and DeviceError for a sequence whose process
            died again and again; none of the sequences counts then, and the error names it.
    """
    if options.ray is not None:
        options = _anywhere(options)
    found = _find(options)
    _check_outputs(options, found)
    for sequence in found:
        open_frames(sequence).close()
    if options.out is not None:
        prepare_output_folder(options.out)
        Ledger(options.out / MASKS).add(())
    scored = _score_all(options, found, progress)
    scores: dict[str, dict[str, SequenceScore]] = {}
    for sequence in found:
        for name, score in scored[sequence.name].scores.items():
            scores.setdefault(name, {})[sequence.name] = score
    with_void = tuple(s.name for s in found if scored[s.name].with_void)
    last = scored[found[-1].name]
    return ModelEvaluation(
        evaluation=Evaluation(scores.pop(MODEL), with_void),
        baselines={name: Evaluation(each, with_void) for name, each in scores.items()},
        note=last.note,
        settings=last.settings,
        milliseconds=[each for s in found for each in scored[s.name].milliseconds],
    )


def _score_all(
    options: EvaluateOptions, found: list[Annotated], progress: Callable[[Progress], None]
) -> dict[str, Scored]:
    """Every sequence by its name, by this process or by others. Raises the error of one."""
    total, done = sum(len(sequence.frames) for sequence in found), 0
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
        for sequence in found:
            report = partial(_frames, listen, sequence)
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
    pool.work(found, lambda: False)
    return scored


def _frames(listen: Callable[[Event], None], sequence: Annotated, frames: int) -> None:
    listen(Event("frames", sequence, frames))


def _anywhere(options: EvaluateOptions) -> EvaluateOptions:
    """With paths that other machines know."""
    weights = options.weights
    if weights is not None and Path(weights).is_file():
        weights = str(Path(weights).absolute())
    out = None if options.out is None else options.out.absolute()
    return replace(options, data=options.data.absolute(), weights=weights, out=out)


def _find(options: EvaluateOptions) -> list[Annotated]:
    """The sequences, cut to the limit. Raises InputError for one that is too short."""
    found = []
    for sequence in find_annotated(options.data, options.sequences):
        frames = sequence.frames[: options.limit]
        if len(frames) < FEWEST_FRAMES:
            raise InputError(
                f"{sequence.name}: {len(frames)} frames, wanted at least {FEWEST_FRAMES}; the "
                "first and the last are left out"
            )
        found.append(Annotated(sequence.name, frames, sequence.annotations[: options.limit]))
    return found


def _check_outputs(options: EvaluateOptions, found: list[Annotated]) -> None:
    """See that no mask and no figures are written over what is read, or over files that are not
    masks of an earlier evaluation. Raises OutputError."""
    written = [] if options.json is None else [options.json]
    if options.out is not None:
        check_output_folder(options.out)
        written += [options.out / s.name / f"{p.stem}.png" for s in found for p in s.frames]
        written.append(options.out / MASKS)
    keep_apart(
        [
            *Given.named("the data", options.data / "JPEGImages", tree=True),
            *Given.named("the data", options.data / "Annotations", tree=True),
            *Given.named("the weights", options.weights),
        ],
        written,
    )
    if options.out is not None:
        Ledger(options.out / MASKS).check(f"{s.name}/{p.stem}.png" for s in found for p in s.frames)
