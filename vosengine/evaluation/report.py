"""Evaluations as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ..files import write_whole
from .measure import Evaluation, Score


def report(evaluation: Evaluation) -> dict[str, Any]:
    """Convert an evaluation to JSON content: `sequences: {name: {J, F, objects: {id: {J, F}}}},
    mean: {J, F, JF}, mean_over_objects: {J, F, JF}, with_void: [name]`. Scores are 0 to 1. `mean`
    is over sequences; `mean_over_objects` is DAVIS-2017's global figure."""
    return {
        "sequences": {
            name: {
                "J": sequence.mean.j,
                "F": sequence.mean.f,
                "objects": {
                    str(object_id): {"J": score.j, "F": score.f}
                    for object_id, score in sequence.objects.items()
                },
            }
            for name, sequence in evaluation.sequences.items()
        },
        "mean": _three(evaluation.mean),
        "mean_over_objects": _three(evaluation.mean_over_objects),
        "with_void": list(evaluation.with_void),
    }


def comparison(columns: Mapping[str, Evaluation]) -> Table:
    """Table of J and F by sequence, and their mean over sequences, for several evaluations.

    columns  evaluations by name; the name is the heading of the J column
    """
    table = Table(box=box.SIMPLE, padding=0)  # four evaluations fit into 80 columns
    table.add_column("sequence", vertical="bottom", no_wrap=True)
    for name in columns:
        table.add_column(f"{name}\nJ".lstrip(), justify="right", vertical="bottom")
        table.add_column("F", justify="right", vertical="bottom")
    for sequence in next(iter(columns.values())).sequences:
        _add_row(table, sequence, [e.sequences[sequence].mean for e in columns.values()])
    table.add_section()
    _add_row(table, "mean", [evaluation.mean for evaluation in columns.values()])
    return table


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON. Raises OutputError if the file cannot be written."""
    write_whole(path, json.dumps(content, indent=1) + "\n")


def _add_row(table: Table, name: str, scores: list[Score]) -> None:
    cells = [f"{value:.3f}" for score in scores for value in (score.j, score.f)]
    table.add_row(name, *cells)


def _three(score: Score) -> dict[str, float]:
    return {"J": score.j, "F": score.f, "JF": score.jf}
