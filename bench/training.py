"""Cost of a training step in float32 and bfloat16, with a profile.

    python bench/training.py stm@lite,stm@small [--rounds 5] [--device auto]
        [--folder bench/results]

Repeats one batch of procedural clips, as in the recipe; the precisions alternate step by step, so
that noise affects both alike. A ratio is the median over rounds of fp32 time to bf16 time. The
profile is of one step in bf16: operators by their share of self time. Writes
<date>-training-<device>.json.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from environment import describe, median_ratio, parser_of, write_json
from rich.console import Console
from rich.table import Table
from torch.profiler import profile

from vosengine.commands.train import starting_network
from vosengine.device import choose_device
from vosengine.timing import summarise, timed
from vosengine.training.objectives import objective_for
from vosengine.training.recipe import recipe_for
from vosengine.training.samples import Batch, collate
from vosengine.training.synthetic_source import SyntheticSource
from vosengine.training.trainer import Trainer
from vosengine.zoo.registry import entry
from vosengine.zoo.weights import backbone_file

PRECISIONS = "fp32", "bf16"
WARM_UP = 2  # steps
SHOWN = 12  # operators of a profile


def trainer(model: str, config: str, precision: str, device: torch.device, folder: Path) -> Trainer:
    recipe = replace(recipe_for(model, config), precision=precision)
    own = entry(model).configuration(config)
    init = backbone_file(own.backbone) if config == "lite" else None
    method = starting_network(model, own, recipe, init)
    return Trainer(objective_for(model, method, recipe), recipe, folder, {}, device)


def batch_of(model: str, config: str) -> Batch:
    recipe = recipe_for(model, config)
    labelled = not entry(model).build.needs_mask
    source = SyntheticSource(recipe.frames, recipe.size, recipe.seed, labelled)
    return collate([source.sample(number, 0.5) for number in range(recipe.batch)])


def shares(trained: Trainer, batch: Batch) -> list[dict[str, Any]]:
    """Return the operators with the most self time in a step, each with its share."""
    with profile() as profiler:
        trained.advance(batch)
    averages = profiler.key_averages()
    total = sum(average.self_cpu_time_total for average in averages)
    ranked = sorted(averages, key=lambda average: -average.self_cpu_time_total)[:SHOWN]
    return [
        {"operator": average.key, "share": round(average.self_cpu_time_total / total, 3)}
        for average in ranked
    ]


def measure(model: str, config: str, rounds: int, device: torch.device) -> dict[str, Any]:
    batch, times = batch_of(model, config), {name: [] for name in PRECISIONS}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {p: trainer(model, config, p, device, Path(folder)) for p in PRECISIONS}
        for number in range(WARM_UP + rounds):
            for name, trained in trainers.items():
                milliseconds = timed(lambda t=trained: t.advance(batch), device)[1]
                if number >= WARM_UP:
                    times[name].append(milliseconds)
        profiled = shares(trainers["bf16"], batch)
    return {
        "model": model,
        "config": config,
        "steps": {name: summarise(values) for name, values in times.items()},
        "fp32_to_bf16": median_ratio(times["fp32"], times["bf16"]),
        "profile": profiled,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("runs", help="model@config, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = choose_device(options.device)
    named = [spec.partition("@")[::2] for spec in options.runs.split(",")]
    rows = [measure(model, config, options.rounds, device) for model, config in named]
    table = Table("model", "config", "fp32 ms", "bf16 ms", "fp32 / bf16", "most of bf16's time")
    for row in rows:
        steps = [f"{row['steps'][name]['p50_ms']:.0f}" for name in PRECISIONS]
        most = ", ".join(f"{x['operator']} {x['share']:.0%}" for x in row["profile"][:3])
        table.add_row(row["model"], row["config"], *steps, f"{row['fp32_to_bf16']:.2f}", most)
    Console().print(table)
    report = {**describe(device), "rows": rows}
    write_json(report, options.folder / f"{report['date']}-training-{device.type}.json")


if __name__ == "__main__":
    main()
