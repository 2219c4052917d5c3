"""Cost of a step by weights and by the input size of the network.

    python bench/sizes.py giel=old.safetensors,giel=demo,giel=demo@256 [--rounds 10]
        [--device auto] [--folder bench/results]

All streams of a procedural clip of 480x854 with three objects are stepped in turn, so that noise
affects all alike, after enough steps to fill the memories. Without @ the size is that of the
weights. A ratio is the median over rounds of the ratio to the model's first entry. Writes
<date>-sizes-<device>.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from environment import describe, median_ratio, parser_of, write_json
from rich.console import Console
from rich.table import Table

from vosengine import Segmenter, keep_freed_memory
from vosengine.device import choose_device
from vosengine.timing import summarise, timed
from vosengine.training.synthetic import Clip, ClipConfig, make_clip

SIZE, OBJECTS = (480, 854), 3
WARM_UP = 30  # steps: six frames of memory, one in five


def stream(model: str, weights: str, size: str, device: str, clip: Clip) -> Segmenter:
    """Return a stream that has processed the clip's first frame with its masks."""
    options: dict[str, Any] = {"size": int(size)} if size else {}
    segmenter = Segmenter(model, weights=weights, device=device, **options)
    segmenter.step(clip.frames[0], clip.masks[0] if segmenter.method.takes_mask else None)
    return segmenter


def measure(named: list[str], rounds: int, device: str) -> list[dict[str, Any]]:
    """Return a row for each "model=weights" or "model=weights@size"."""
    height, width = SIZE
    config = ClipConfig(frames=8, height=height, width=width, objects=(OBJECTS, OBJECTS))
    clip = make_clip(config, seed=3)
    cases = []
    for spec in named:
        model, _, rest = spec.partition("=")
        weights, _, size = rest.partition("@")
        cases.append((model, weights, size))
    streams = [stream(*case, device, clip) for case in cases]
    times: list[list[float]] = [[] for _ in cases]
    for index in range(WARM_UP + rounds):
        frame = clip.frames[1 + index % (len(clip.frames) - 1)]
        for segmenter, samples in zip(streams, times, strict=True):
            milliseconds = timed(lambda s=segmenter, f=frame: s.step(f), segmenter.device)[1]
            if index >= WARM_UP:
                samples.append(milliseconds)
    first = {model: samples for (model, *_), samples in reversed([*zip(cases, times, strict=True)])}
    return [
        {
            "model": model,
            "weights": Path(weights).name,
            "size": size or "own",
            "precision": segmenter.precision.name,
            "step": summarise(samples),
            "to_first": median_ratio(samples, first[model]),
        }
        for (model, weights, size), segmenter, samples in zip(cases, streams, times, strict=True)
    ]


def main() -> None:
    keep_freed_memory()  # as the command line does
    parser = parser_of(__doc__)
    parser.add_argument("weights", help="model=tag or model=file, @size behind it; with commas")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    rows = measure(options.weights.split(","), options.rounds, options.device)
    table = Table("model", "weights", "size", "p50 ms", "p95 ms", "to the first")
    for row in rows:
        step = row["step"]
        table.add_row(row["model"], row["weights"], row["size"], f"{step['p50_ms']:.0f}",
                      f"{step['p95_ms']:.0f}", f"{row['to_first']:.2f}x")  # fmt: skip
    Console().print(table)
    device = choose_device(options.device)
    results = {**describe(device), "frame": list(SIZE), "objects": OBJECTS, "rows": rows}
    write_json(results, options.folder / f"{results['date']}-sizes-{device.type}.json")


if __name__ == "__main__":
    main()
