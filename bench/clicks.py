"""Masks from a box and clicks, by the click network and by GrabCut, on clips with true masks.

    python bench/clicks.py --data DAVIS [--methods click,grabcut] [--weights FILE]
        [--size PIXELS] [--no-tracking] [--folder bench/results]

DAVIS has clips in DAVIS's layout. Of every clip the first, the middle and the last but one frame,
and in them every object of at least SMALLEST pixels: its exact box is given, then clicks, each in
the middle of what is wrong by then (the pixel farthest from the outline of what is missing or too
much, as RITM does), with the last mask. J after the box and after 1, 3, 5 and 10 clicks; the time
is that of `mask_from`, the box's not counted. Methods take turns at every object.

Tracking: giel.demo over the first frames of every clip, from the mask after 5 clicks in the first
frame and from the true one; J over the frames that follow. Writes <date>-clicks-cpu.json.
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
from environment import RESULTS, describe, write_json
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

CLICKS = (0, 1, 3, 5, 10)  # after which J is taken; 0: the box alone
SMALLEST = 25  # pixels of an object that is marked
TRACKED = 15  # frames, the first among them
START = 5  # clicks before tracking
CPU = torch.device("cpu")

Maker = Callable[..., np.ndarray]  # mask_from, its method chosen


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
    """Of the first, the middle and the last but one frame."""
    last = len(clip.annotations) - 1
    for index in sorted({0, last // 2, max(0, last - 1)}):
        labels = read(clip.annotations[index], cv2.IMREAD_UNCHANGED)
        frame = read_frame(clip.frames[index])
        for each in np.unique(labels)[1:]:
            truth = labels == each
            if truth.sum() >= SMALLEST:
                yield Marked(clip.name, index, frame, truth)


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    joined = np.count_nonzero((mask > 0) | truth)
    return np.count_nonzero((mask > 0) & truth) / joined if joined else 1.0


def clicked(make: Maker, marked: Marked, most: int) -> tuple[list[float], list[float], np.ndarray]:
    """J after 0 to `most` clicks, the milliseconds of every click, and the last mask."""
    box = box_of(marked.truth.astype(np.uint8))
    mask = make(marked.frame, box=box)
    scores, times = [overlap(mask, marked.truth)], []
    points: list[tuple[int, int, bool]] = []
    for _ in range(most):
        wrong = next_click(mask > 0, marked.truth, made=points)
        if wrong is not None:  # a person who has nothing to correct does not click
            points.append(wrong)
            again = partial(make, marked.frame, box=box, points=tuple(points), previous=mask)
            mask, taken = timed(again, CPU)
            times.append(taken)
        scores.append(overlap(mask, marked.truth))
    return scores, times, mask


def tracked(clip: Annotated, mask: np.ndarray) -> float:
    """Mean J of giel.demo over the frames after the first, from that mask [H, W] 0 or 1."""
    segmenter = Segmenter("giel", weights="demo")
    scores = []
    for index in range(min(TRACKED, len(clip.frames))):
        result = segmenter.step(read_frame(clip.frames[index]), mask if index == 0 else None)
        if index and result is not None:
            truth = read(clip.annotations[index], cv2.IMREAD_UNCHANGED) > 0
            scores.append(overlap(result.numpy(), truth))
    return float(np.mean(scores))


def makers(given: argparse.Namespace) -> dict[str, Maker]:
    """By name of the method; "click" by other weights or at another size where they are given."""
    found: dict[str, Maker] = {}
    for name in given.methods.split(","):
        found[name] = partial(mask_from, method=name)
    if given.weights is not None:
        model = ClickModel(load_click(given.weights, size=given.size)[0])

        def make(frame: np.ndarray, **marks: Any) -> np.ndarray:
            given_marks = {"box": None, "points": (), "scribbles": None, "previous": None} | marks
            return model.mask(frame, check_hints(frame, **given_marks))

        found["click"] = make
    return found


def measure(made: dict[str, Maker], clips: list[Annotated], track: bool) -> dict[str, Any]:
    """Everything that is found, by method."""
    scores: dict[str, list[list[float]]] = {name: [] for name in made}
    times: dict[str, list[float]] = {name: [] for name in made}
    rows = []
    for marked in (each for clip in clips for each in objects(clip)):
        row: dict[str, Any] = {"clip": marked.clip, "frame": marked.number}
        for name, make in made.items():
            js, taken, _ = clicked(make, marked, CLICKS[-1])
            scores[name].append(js)
            times[name] += taken
            row[name] = [round(js[count], 3) for count in CLICKS]
        rows.append(row)
    found: dict[str, Any] = {"objects": len(rows), "clicks": list(CLICKS), "rows": rows}
    for name in made:
        means = np.mean(scores[name], axis=0)
        found[name] = {
            "J": {str(count): round(float(means[count]), 3) for count in CLICKS},
            "click": summarise(times[name]),
        }
    if track:
        found["tracking"] = tracking(made, clips)
    return found


def tracking(made: dict[str, Maker], clips: list[Annotated]) -> dict[str, Any]:
    """J by clip from the true mask, and from that after START clicks by each method."""
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


def show(found: dict[str, Any], made: dict[str, Maker]) -> None:
    table = Table("method", *(f"J, {n} clicks" for n in CLICKS), "p50 ms", "p95 ms", "tracking J")
    for name in made:
        own = found[name]
        follow = found.get("tracking", {"J": {}})["J"].get(name)
        values = [f"{own['J'][str(n)]:.3f}" for n in CLICKS]
        speed = [f"{own['click'][p]:.0f}" for p in ("p50_ms", "p95_ms")]
        table.add_row(name, *values, *speed, "" if follow is None else f"{follow:.3f}")
    Console().print(table)
    if "tracking" in found:
        print(f"tracking from the true mask: {found['tracking']['J']['true mask']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Masks from a box and clicks.")
    parser.add_argument("--data", type=Path, required=True, help="clips in DAVIS's layout")
    parser.add_argument("--methods", default="click,grabcut")
    parser.add_argument("--weights", type=Path, help="of a click network, in place of click.demo")
    parser.add_argument("--size", type=int, help="with --weights: side that the network sees")
    parser.add_argument("--no-tracking", action="store_true")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args()
    made = makers(given)
    clips = find_annotated(given.data)
    found = {**describe(CPU), **measure(made, clips, not given.no_tracking)}
    show(found, made)
    write_json(found, given.folder / f"{found['date']}-clicks-cpu.json")


if __name__ == "__main__":
    main()
