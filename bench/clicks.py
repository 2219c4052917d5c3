"""Benchmark of masks from a box and clicks: click network and GrabCut, on annotated clips.

    python bench/clicks.py --data DAVIS [--methods click,grabcut] [--weights FILE]
        [--size PIXELS] [--no-tracking] [--folder bench/results]

DAVIS is a folder of clips in the layout of DAVIS. Every object of at least SMALLEST pixels in the
first, middle and last but one frame of every clip is marked with its exact box, then with clicks.
As in RITM, a click is at the centre of the largest error region (the pixel farthest from its
outline), with the previous mask as input. Reports J after the box and after 1, 3, 5 and 10 clicks,
and the time of `mask_from` per click, without the box. Methods are interleaved per object.

Tracking: giel.demo on the first frames of every clip, from the mask after 5 clicks in the first
frame and from the true one; J over the following frames. Writes <date>-clicks-cpu.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from environment import describe, parser_of, write_json
from rich.console import Console
from rich.table import Table

from vosengine import Segmenter
from vosengine.evaluation.layout import Annotated, find_annotated
from vosengine.prompts import mask_from
from vosengine.prompts.click import ClickModel
from vosengine.prompts.crop import box_of
from vosengine.prompts.hints import check_hints
from vosengine.prompts.weights import load_click
from vosengine.timing import summarise, timed
from vosengine.training.clicks.simulation import next_click

CLICKS = (0, 1, 3, 5, 10)  # numbers of clicks after which J is measured; 0: only the box
SMALLEST = 25  # minimum pixels of a marked object
TRACKED = 15  # frames, including the first
START = 5  # clicks before tracking
CPU = torch.device("cpu")

Maker = Callable[..., np.ndarray]  # mask_from with a fixed method


class Marked(NamedTuple):
    """One object of one frame."""

    clip: str
    number: int  # of the frame
    frame: np.ndarray  # [H, W, 3]
    truth: np.ndarray  # bool [H, W]


def read(path: Path, how: int) -> np.ndarray:
    image = cv2.imread(str(path), how)
    assert image is not None, path
    return image


def read_frame(path: Path) -> np.ndarray:
    return read(path, cv2.IMREAD_COLOR_RGB)


def objects(clip: Annotated) -> Iterator[Marked]:
    """Yield the objects of the first, the middle and the last but one frame."""
    last = len(clip.annotations) - 1
    for index in sorted({0, last // 2, max(0, last - 1)}):
        labels = read(clip.annotations[index], cv2.IMREAD_UNCHANGED)
        frame = read_frame(clip.frames[index])
        for object_id in np.unique(labels)[1:]:
            truth = labels == object_id
            if truth.sum() >= SMALLEST:
                yield Marked(clip.name, index, frame, truth)


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    joined = np.count_nonzero((mask > 0) | truth)
    return np.count_nonzero((mask > 0) & truth) / joined if joined else 1.0


def clicked(make: Maker, marked: Marked, most: int) -> tuple[list[float], list[float], np.ndarray]:
    """Return J after 0 to `most` clicks, the milliseconds of every click, and the last mask."""
    box = box_of(marked.truth.astype(np.uint8))
    mask = make(marked.frame, box=box)
    scores, times = [overlap(mask, marked.truth)], []
    points: list[tuple[int, int, bool]] = []
    for _ in range(most):
        wrong = next_click(mask > 0, marked.truth, made=points)
        if wrong is not None:  # no click if nothing is wrong
            points.append(wrong)
            again = partial(make, marked.frame, box=box, points=tuple(points), previous=mask)
            mask, milliseconds = timed(again, CPU)
            times.append(milliseconds)
        scores.append(overlap(mask, marked.truth))
    return scores, times, mask


def tracked(clip: Annotated, mask: np.ndarray) -> float:
    """Return the mean J of giel.demo over the frames after the first, from a binary mask [H, W]."""
    segmenter = Segmenter("giel", weights="demo")
    scores = []
    for index in range(min(TRACKED, len(clip.frames))):
        result = segmenter.step(read_frame(clip.frames[index]), mask if index == 0 else None)
        if index and result is not None:
            truth = read(clip.annotations[index], cv2.IMREAD_UNCHANGED) > 0
            scores.append(overlap(result.numpy(), truth))
    return float(np.mean(scores))


def makers(options: argparse.Namespace) -> dict[str, Maker]:
    """Return mask functions by method; "click" with the weights and size of the options."""
    functions: dict[str, Maker] = {}
    for name in options.methods.split(","):
        functions[name] = partial(mask_from, method=name)
    if options.weights is not None:
        model = ClickModel(load_click(options.weights, size=options.size)[0])

        def make(frame: np.ndarray, **marks: Any) -> np.ndarray:
            given_marks = {"box": None, "points": (), "scribbles": None, "previous": None} | marks
            return model.mask(frame, check_hints(frame, **given_marks))

        functions["click"] = make
    return functions


def measure(made: dict[str, Maker], clips: list[Annotated], track: bool) -> dict[str, Any]:
    """Return all results by method."""
    scores: dict[str, list[list[float]]] = {name: [] for name in made}
    times: dict[str, list[float]] = {name: [] for name in made}
    rows = []
    for marked in (item for clip in clips for item in objects(clip)):
        row: dict[str, Any] = {"clip": marked.clip, "frame": marked.number}
        for name, make in made.items():
            js, milliseconds, _ = clicked(make, marked, CLICKS[-1])
            scores[name].append(js)
            times[name] += milliseconds
            row[name] = [round(js[count], 3) for count in CLICKS]
        rows.append(row)
    results: dict[str, Any] = {"objects": len(rows), "clicks": list(CLICKS), "rows": rows}
    for name in made:
        means = np.mean(scores[name], axis=0)
        results[name] = {
            "J": {str(count): round(float(means[count]), 3) for count in CLICKS},
            "click": summarise(times[name]),
        }
    if track:
        results["tracking"] = tracking(made, clips)
    return results


def tracking(made: dict[str, Maker], clips: list[Annotated]) -> dict[str, Any]:
    """Return J by clip, tracked from the true mask and from the mask after START clicks."""
    rows: dict[str, dict[str, float]] = {}
    for clip in clips:
        first = read(clip.annotations[0], cv2.IMREAD_UNCHANGED) > 0
        marked = Marked(clip.name, 0, read_frame(clip.frames[0]), first)
        starts = {"true mask": first.astype(np.uint8)}
        starts |= {name: clicked(make, marked, START)[2] for name, make in made.items()}
        rows[clip.name] = {name: round(tracked(clip, mask), 3) for name, mask in starts.items()}
    names = ("true mask", *made)
    means = {name: round(float(np.mean([r[name] for r in rows.values()])), 3) for name in names}
    return {"frames": TRACKED, "clicks": START, "J": means, "rows": rows}


def show(results: dict[str, Any], made: dict[str, Maker]) -> None:
    table = Table("method", *(f"J, {n} clicks" for n in CLICKS), "p50 ms", "p95 ms", "tracking J")
    for name in made:
        own = results[name]
        follow = results.get("tracking", {"J": {}})["J"].get(name)
        values = [f"{own['J'][str(n)]:.3f}" for n in CLICKS]
        speed = [f"{own['click'][p]:.0f}" for p in ("p50_ms", "p95_ms")]
        table.add_row(name, *values, *speed, "" if follow is None else f"{follow:.3f}")
    Console().print(table)
    if "tracking" in results:
        print(f"tracking from the true mask: {results['tracking']['J']['true mask']:.3f}")


def main() -> None:
    parser = parser_of(__doc__, device=False)
    parser.add_argument("--data", type=Path, required=True, help="clips in DAVIS's layout")
    parser.add_argument("--methods", default="click,grabcut")
    parser.add_argument("--weights", type=Path, help="of a click network, in place of click.demo")
    parser.add_argument("--size", type=int, help="with --weights: side that the network sees")
    parser.add_argument("--no-tracking", action="store_true")
    options = parser.parse_args()
    made = makers(options)
    clips = find_annotated(options.data)
    results = {**describe(CPU), **measure(made, clips, not options.no_tracking)}
    show(results, made)
    write_json(results, options.folder / f"{results['date']}-clicks-cpu.json")


if __name__ == "__main__":
    main()
