"""Print the tables of docs/benchmarks.md from the newest CPU results in bench/results/.

python bench/tables.py             tables of speed
python bench/tables.py accuracy    tables of accuracy, with the scores of the weight cards
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vosengine.timing import summarise
from vosengine.zoo.weights import cards

RESULTS = Path(__file__).resolve().parent / "results"


def newest(stem: str) -> dict[str, Any]:
    """The newest result of that kind; the file names begin with the date."""
    path = max(RESULTS.glob(f"*-{stem}-cpu.json"))
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {**results, "file": f"bench/results/{path.name}"}


def where(results: dict[str, Any]) -> str:
    return f"{results['device']}, {results['isa']}; `{results['command']}`, {results['date']}"


def short(number: float) -> str:
    """Format with two digits, or without decimals."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def kernels(results: dict[str, Any]) -> list[str]:
    """One row per op and shape: ours, the reference, and the speed-up."""
    lines = [
        f"**Ops** in {results['dtype']} ({where(results)}).",
        "The last column: against the reference, and against other ways to write it in torch "
        "(`separate`: this library's own op, one call per set of values).",
        "",
        row("op", "shape", "C++ p50 (p95) ms", "reference p50 ms", "times as fast"),
        row("---", "---", "---:", "---:", "---"),
    ]
    for case in results["cases"]:
        reference = case["results"]["reference"]
        backend = case["results"].get("cpu", reference)
        ratios = ", ".join(f"{short(r)} {n}" for n, r in backend["times_as_fast_as"].items())
        time = f"{short(backend['p50_ms'])} ({short(backend['p95_ms'])})"
        time = "none" if backend is reference else time
        lines.append(row(case["op"], case["case"], time, short(reference["p50_ms"]), ratios))
    return lines


def whole_models(results: dict[str, Any]) -> list[str]:
    """One row per model: a step as it was published, eager, and ours."""
    facts = results["environment"]
    height, width = results["models"][0]["points"][0]["size"]
    trained = results["plan"]["weights"] != "random"
    own = "the trained small networks, at their own sizes"
    network = own if trained else "the papers' networks, random weights"
    lines = [
        f"**Whole models**: {network}, frames of {height}x{width}, memory of "
        f"{results['plan']['memory_frames']} frames",
        f"({facts['device']}, {facts['isa']}; `{facts['command']}`, {facts['date']}). Eager is "
        "plain torch; p50 in ms. `Times its FLOP`: over the time of a product of large matrices "
        "with as many.",
        "",
        row(
            *("model", "objects", "published form", "eager fp32", "ours fp32 (p95)", "to eager"),
            *("labels that differ", "torch.compile bf16", "ours bf16 (p95)", "to eager"),
            *("IoU of labels", "to published", "times its FLOP"),
        ),
        row("---", *["---:"] * 12),
    ]
    return [*lines, *(_whole_model(model) for model in results["models"])]


def _whole_model(model: dict[str, Any]) -> str:
    (point,) = model["points"]
    cells = {cell["variant"]: cell for cell in point["cells"]}
    published, eager, ours = (cells[n] for n in ("published fp32", "eager fp32", "ours"))
    exact = cells["ours fp32"] if cells["ours fp32"]["fault"] is None else ours
    separate = published["fault"] is None
    compiled = cells.get("compiled bf16", {"fault": "not asked for"})
    roofline = max(point["roofline"]["compute_ms"], point["roofline"]["traffic_ms"])

    def versus(one: dict[str, Any], other: dict[str, Any]) -> str:
        return f"{one['p50_ms'] / other['p50_ms']:.2f}x"

    def time(cell: dict[str, Any]) -> str:
        return f"{short(cell['p50_ms'])} ({short(cell['p95_ms'])})"

    half = (time(ours), versus(eager, ours), f"{ours['iou']:.4f}")
    return row(
        f"`{model['model']}`",
        point["objects"],
        short(published["p50_ms"]) if separate else "the same",
        short(eager["p50_ms"]),
        time(exact),
        versus(eager, exact),
        f"{100 * exact['differs']:.3f} %",
        short(compiled["p50_ms"]) if compiled["fault"] is None else "",
        *(half if exact is not ours else ("", "", "")),
        versus(published, ours) if separate else "",
        f"{ours['p50_ms'] / roofline:.1f}",
    )


def giel_objects(results: dict[str, Any]) -> list[str]:
    """One row per object count, both variants."""
    lines = [
        f"**GIEL** at 480x854, five support frames ({where(results)}). One pass for all objects;",
        "beside the measured share, what the arithmetic alone gives.",
        "",
        row("variant", "objects", "step p50 (p95) ms", "over 1 object", "by FLOP"),
        row("---", "---:", "---:", "---:", "---:"),
    ]
    for variant in ("full", "fast"):
        for entry in results[variant]:
            step = entry["step"]
            time = f"{step['p50_ms']:.0f} ({step['p95_ms']:.0f})"
            shares = f"{entry['step_over_one_object']:.2f}", f"{entry['gflop_over_one_object']:.2f}"
            lines.append(row(variant, entry["objects"], time, *shares))
    return lines


def dmn_objects(results: dict[str, Any]) -> list[str]:
    """One row per object count; the parts before RefineNet are listed separately."""
    parts = ("encode", "templates", "match", "remember", "move references", "RefineNet")
    lines = [
        "**DMN-AOA** at 480x854, 30 proposals, five memory frames, without the detector",
        f"({where(results)}). p50 in ms; what comes before RefineNet is the first four.",
        "",
        row("objects", *parts, "before RefineNet, over 1 object", "step, over 1 object"),
        row("---:", *("---:" for _ in parts), "---:", "---:"),
    ]
    for entry in results["objects"]:
        times = (f"{entry[part]['p50_ms']:.0f}" for part in parts)
        before = f"{entry['before_refinenet_over_one_object']:.2f}"
        lines.append(row(entry["objects"], *times, before, f"{entry['step_over_one_object']:.2f}"))
    return lines


def exported(results: dict[str, Any]) -> list[str]:
    """One row per model and object count: exports by each kind of operators beside torch."""
    height, width = results["size"]
    kinds = [name for name in ("standard", "contrib", "vosengine") if name in results["ops"]]
    names = ("eager", "fast", *kinds)
    lines = [
        f"**Exported models** in onnxruntime, `{results['weights']}` weights, frames of "
        f"{height}x{width} ({where(results)}).",
        "p50 (p95) of a step in ms, all in turn; exports by `--ops`, and how many times as fast as "
        "eager and as fast they are.",
        "",
        row("model", "objects", *names, "labels that differ, at most", "exported in, at most"),
        row("---", *["---:"] * (3 + len(names))),
    ]
    for model in results["models"]:
        seconds = max(export["seconds"] for export in model["export"].values())
        for point in model["points"]:
            cells = [f"{point[n]['p50_ms']:.0f} ({point[n]['p95_ms']:.0f})" for n in names[:2]]
            for kind in kinds:
                times = point.get(kind)
                if times is None:
                    cells.append("as standard" if kind in model["export"] else "")
                    continue
                cells.append(
                    f"{times['p50_ms']:.0f} ({times['p95_ms']:.0f}) "
                    f"{times['times_as_fast_as_eager']:.2f}x {times['times_as_fast_as_fast']:.2f}x"
                )
            worst = max(point[kind]["differs"] for kind in kinds if kind in point)
            cells += [f"{100 * worst:.3f} %", f"{seconds:.0f} s"]
            lines.append(row(f"`{model['model']}`", point["objects"], *cells))
    return lines


def long_stream(results: dict[str, Any]) -> list[str]:
    """A line about one stream of many frames."""
    facts, (model,) = results["environment"], results["models"]
    stream = model["stream"]
    usage = dict(zip(stream["at"], stream["held_mib"], strict=True))
    last = max(usage)
    early, late = (summarise(stream["milliseconds"][a:b]) for a, b in ((50, 100), (-50, None)))
    return [
        f"**One stream** of {last + 1} frames, `{model['weights']}`, {stream['objects']} objects: "
        f"the process holds {usage[50]:.0f} MiB at frame 50 and {usage[last]:.0f} MiB at the end, "
        f"the engine {stream['state_mib'][0]:.1f} MiB of it, from the first frame on; a step takes "
        f"{early['p50_ms']:.0f} ms (p50) after 50 frames and {late['p50_ms']:.0f} ms over the last "
        f"50 ({facts['device']}, {facts['isa']}; `{facts['command']}`, {facts['date']}).",
    ]


def cache(results: dict[str, Any]) -> list[str]:
    """A line about the time that cached features save."""
    cache = results["cache"]
    return [
        f"**Streaming** `{results['model']}`: a frame whose neighbours' features are held costs "
        f"{cache['streamed_over_clip']:.2f} of its three-frame clip computed from nothing "
        f"({cache['flop_ratio']:.2f} by FLOP; p50 {cache['streamed']['p50_ms']:.0f} against "
        f"{cache['from nothing']['p50_ms']:.0f} ms at {cache['size'][0]}x{cache['size'][1]}; "
        f"{where(results)}).",
    ]


SCORES = {"J": "ten real clips, mean J", "F": "ten real clips, mean F"}  # as the cards name them


def scores_of(model: str) -> dict[str, float]:
    """Mean J and F, 0..1, of a model's demo weights over the ten clips, from their card."""
    card = cards()[f"{model}.demo"]
    return {letter: float(card.scores[name]) for letter, name in SCORES.items()}


def accuracy(group: dict[str, Any]) -> list[str]:
    """Mean J and mean F of models with the same kind of prompt, beside their baselines."""
    columns = {f"`{model}.demo`": scores_of(model) for model in group["models"]}
    columns |= group["baselines"]
    lines = [row("", *columns), row("---", *("---:" for _ in columns))]
    for letter in SCORES:
        lines.append(
            row(f"mean {letter}", *(f"{scores[letter]:.3f}" for scores in columns.values()))
        )
    return [f"Given {group['given']}:", "", *lines]


def main() -> None:
    if sys.argv[1:] == ["accuracy"]:
        parts: tuple[list[str], ...] = tuple(map(accuracy, newest("baselines")["groups"]))
    elif sys.argv[1:]:
        raise SystemExit(f"wanted no argument or accuracy, given {' '.join(sys.argv[1:])}")
    else:
        parts = speed()
    print("\n\n".join("\n".join(part) for part in parts))


def speed() -> tuple[list[str], ...]:
    """All tables of speed."""
    return (
        kernels(newest("kernels-float32")),
        kernels(newest("kernels-bfloat16")),
        whole_models(newest("bench-paper")),
        whole_models(newest("bench-demo")),
        giel_objects(newest("objects-giel")),
        dmn_objects(newest("objects-dmn_aoa")),
        exported(newest("onnx")),
        long_stream(newest("bench-stream")),
        cache(newest("cache-imcnet")),
    )


if __name__ == "__main__":
    main()
