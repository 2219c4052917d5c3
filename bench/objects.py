"""Cost of additional objects for the two models that process objects jointly, GIEL and DMN-AOA.

    python bench/objects.py [giel] [dmn_aoa] [--device auto] [--rounds 5] [--folder bench/results]

`giel` times a step at 480p with five support frames for 1, 2, 3 and 6 objects, both variants, with
the ratio of FLOPs for comparison. `dmn_aoa` times the parts before and after RefineNet for 1, 3 and
5 objects and 30 proposals. Every round times every count, so that noise affects all alike; a ratio
is the median over rounds of the ratio within a round. Writes <date>-objects-<model>-<device>.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from environment import describe, median_ratio, parser_of, write_json
from rich.console import Console
from rich.table import Table

from vosengine.commands.info import cost
from vosengine.config import DMNAOAConfig, GIELConfig, MemoryConfig
from vosengine.device import choose_device
from vosengine.models.dmn_aoa.network import DMNAOA
from vosengine.models.giel.network import GIEL
from vosengine.proposals import Proposals, boxes_of
from vosengine.timing import summarise, timed
from vosengine.types import Geometry, Masks
from vosengine.zoo.registry import build

MODELS = ("giel", "dmn_aoa")
SIZE = (480, 854)
SUPPORT = 5  # frames that GIEL reads
MEMORY_FRAMES = 5  # of DMN-AOA
PROPOSALS = 30
GIEL_COUNTS, DMN_COUNTS = (1, 2, 3, 6), (1, 3, 5)

Times = dict[tuple[int, str], list[float]]
Parts = dict[str, Callable[[], Any]]


def masks_of(count: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return masks [1 + O, H, W]: the background, and rectangles of a tenth of each side."""
    planes = torch.zeros(1 + count, height, width, device=device)
    for slot in range(count):
        top, left = height * (1 + 3 * (slot // 3)) // 8, width * (1 + 2 * (slot % 3)) // 8
        planes[1 + slot, top : top + height // 8, left : left + width // 8] = 1
    planes[0] = 1 - planes[1:].sum(dim=0)
    return planes


def proposals_of(height: int, width: int, device: torch.device) -> Proposals:
    """Return 30 different boxes of 40 to 400 pixels."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(PROPOSALS, height, width, dtype=torch.bool)
    for mask in masks:
        sides = torch.randint(40, 400, (2,), generator=generator).tolist()
        top = int(torch.randint(0, height - 40, (1,), generator=generator))
        left = int(torch.randint(0, width - 40, (1,), generator=generator))
        mask[top : top + sides[0], left : left + sides[1]] = True
    scores = torch.linspace(1, 0.1, PROPOSALS)
    return Proposals(boxes_of(masks).to(device), masks.to(device), scores.to(device))


def measure(
    parts_of: Callable[[int], Parts], counts: tuple[int, ...], rounds: int, device: torch.device
) -> Times:
    """Return milliseconds of every part for every count and round, after a warm-up round."""
    by_count = {count: parts_of(count) for count in counts}
    times: Times = {}
    for index in range(rounds + 1):
        for count, parts in by_count.items():
            for name, call in parts.items():
                milliseconds = timed(call, device)[1]
                if index:
                    times.setdefault((count, name), []).append(milliseconds)
    return times


def together(what: str, times: Times, count: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Return times of several parts in a row, and their ratio to those of one object."""
    whole, one = (
        [sum(parts) for parts in zip(*(times[n, name] for name in names), strict=True)]
        for n in (count, 1)
    )
    return {what: summarise(whole), f"{what}_over_one_object": median_ratio(whole, one)}


def giel(variant: str, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    config = GIELConfig(variant=variant, support=SUPPORT)
    method = build("giel", config).to(device)
    assert isinstance(method, GIEL)
    geometry = Geometry.fit(SIZE, size=None, multiple=16)
    height, width = geometry.network
    frame = torch.rand(1, 3, height, width, device=device)

    def parts_of(count: int) -> Parts:
        state = method.start(geometry, count)
        features = method.encode(frame)
        planes = masks_of(count, height, width, device)
        masks = Masks(planes, tuple(range(count)))
        for _ in range(SUPPORT + 3):  # until the support is full
            method.remember([features], masks, state)
        aux = method.segment([features], state).aux
        return {
            "encode": lambda: method.encode(frame),
            "segment": lambda: method.segment([features], state),
            "remember": lambda: method.remember([features], Masks(planes, (), aux), state),
        }

    times = measure(parts_of, GIEL_COUNTS, rounds, device)
    verbs = ("encode", "segment", "remember")
    gflop = {c: _gflop("giel", config, c) for c in GIEL_COUNTS}
    return [
        {
            "objects": count,
            **together("step", times, count, verbs),
            "gflop": round(gflop[count], 1),
            "gflop_over_one_object": round(gflop[count] / gflop[1], 3),
            **{verb: summarise(times[count, verb]) for verb in verbs},
        }
        for count in GIEL_COUNTS
    ]


def _gflop(model: str, config: GIELConfig | DMNAOAConfig, objects: int) -> float:
    estimate = cost(model, SIZE, objects, memory_frames=SUPPORT, max_objects=objects, config=config)
    return sum(estimate.gflop.values())


def dmn_aoa(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    config = DMNAOAConfig(memory=MemoryConfig(policy="all", max_frames=MEMORY_FRAMES))
    method = build("dmn_aoa", config).to(device)
    assert isinstance(method, DMNAOA)
    geometry = Geometry.fit(SIZE, size=None, multiple=16)
    height, width = geometry.network
    frame = torch.rand(1, 3, height, width, device=device)
    proposals = proposals_of(height, width, device)

    def parts_of(count: int) -> Parts:
        state = method.start(geometry, count)
        features = method.encode(frame, [proposals])
        masks = Masks(masks_of(count, height, width, device))
        for _ in range(MEMORY_FRAMES):
            method.remember([features], masks, state)
        query = features.key[0]
        templates = method.templates(features, state)
        matching = method.match(templates, features.candidates[0], state)
        moved = state.references.move(query, config.sharpness)
        return {
            "encode": lambda: method.encode(frame, [proposals]),
            "templates": lambda: method.templates(features, state),
            "match": lambda: method.match(templates, features.candidates[0], state),
            "remember": lambda: method.remember([features], masks, state),
            "move references": lambda: state.references.move(query, config.sharpness),
            "RefineNet": lambda: method.refine(features.base, moved, matching.coarse),
        }

    times = measure(parts_of, DMN_COUNTS, rounds, device)
    before = ("encode", "templates", "match", "remember")
    every = (*before, "move references", "RefineNet")
    return [
        {
            "objects": count,
            **together("before_refinenet", times, count, before),
            **together("step", times, count, every),
            "gflop": round(_gflop("dmn_aoa", config, count), 1),
            **{name: summarise(times[count, name]) for name in every},
        }
        for count in DMN_COUNTS
    ]


def show(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    names = [name for name, value in rows[0].items() if isinstance(value, (int, float))]
    parts = [name for name, value in rows[0].items() if isinstance(value, dict)]
    table = Table(*names, *(f"{name} p50 ms" for name in parts), title=title)
    for row in rows:
        table.add_row(
            *(str(row[name]) for name in names), *(f"{row[name]['p50_ms']:.0f}" for name in parts)
        )
    console.print(table)


@torch.no_grad()
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("model", nargs="*", help=f"of {', '.join(MODELS)}; all if none is given")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if unknown := set(options.model) - set(MODELS):
        parser.error(f"model: wanted {', '.join(MODELS)}, given {', '.join(sorted(unknown))}")
    device = choose_device(options.device)
    console = Console(width=160)
    for model in options.model or MODELS:
        report = {**describe(device), "model": model, "size": list(SIZE)}
        if model == "giel":
            report["full"] = giel("full", device, options.rounds)
            report["fast"] = giel("fast", device, options.rounds)
            for variant in ("full", "fast"):
                show(f"giel, {variant}", report[variant], console)
        else:
            report["objects"] = dmn_aoa(device, options.rounds)
            show("dmn_aoa", report["objects"], console)
        write_json(report, options.folder / f"{report['date']}-objects-{model}-{device.type}.json")


if __name__ == "__main__":
    main()
