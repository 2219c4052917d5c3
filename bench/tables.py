"""Prints the README's tables from the newest CPU results in bench/results/.

python bench/tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def newest(stem: str) -> dict[str, Any]:
    """The newest result of that kind; the file names begin with the date."""
    path = max(RESULTS.glob(f"*-{stem}-cpu.json"))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {**found, "file": f"bench/results/{path.name}"}


def where(found: dict[str, Any]) -> str:
    return f"{found['device']}, {found['isa']}; `{found['command']}`, {found['date']}"


def short(number: float) -> str:
    """Two digits, or all before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def kernels(found: dict[str, Any]) -> list[str]:
    """One row per op and shape: ours, the reference, and how many times as fast ours is."""
    lines = [
        f"**Ops** ({where(found)}). The last column: against the reference, and against other ways",
        "to write it in torch (`separate`: this library's own op, one call per set of values).",
        "",
        row("op", "shape", "C++ p50 (p95) ms", "reference p50 ms", "times as fast"),
        row("---", "---", "---:", "---:", "---"),
    ]
    for case in found["cases"]:
        reference = case["results"]["reference"]
        ours = case["results"].get("cpu", reference)
        ratios = ", ".join(f"{short(r)} {n}" for n, r in ours["times_as_fast_as"].items())
        time = f"{short(ours['p50_ms'])} ({short(ours['p95_ms'])})"
        time = "none" if ours is reference else time
        lines.append(row(case["op"], case["case"], time, short(reference["p50_ms"]), ratios))
    return lines


def models(found: dict[str, Any]) -> list[str]:
    """One row per object count."""
    lines = [
        f"**A whole step** of `{found['model']}` at 480x854, five frames in memory",
        f"({where(found)}). The decoder's skip branches are computed once for all objects; the",
        "published form computes them for each.",
        "",
        row(
            "objects",
            "step p50 (p95) ms",
            "step, over 1 object",
            "decoder, over 1 object",
            "published decoder, over ours",
        ),
        row("---:", "---:", "---:", "---:", "---:"),
    ]
    for entry in found["sweep"]:
        step = entry["step"]
        lines.append(
            row(
                entry["objects"],
                f"{step['p50_ms']:.0f} ({step['p95_ms']:.0f})",
                f"{entry['step_over_one_object']:.2f}",
                f"{entry['decode_over_one_object']:.2f}",
                f"{entry['published_over_ours_decode']:.2f}",
            )
        )
    return lines


def giel_objects(found: dict[str, Any]) -> list[str]:
    """One row per object count, both variants."""
    lines = [
        f"**GIEL** at 480x854, five support frames ({where(found)}). One pass for all objects;",
        "beside the measured share, what the arithmetic alone gives.",
        "",
        row("variant", "objects", "step p50 (p95) ms", "over 1 object", "by FLOP"),
        row("---", "---:", "---:", "---:", "---:"),
    ]
    for variant in ("full", "fast"):
        for entry in found[variant]:
            step = entry["step"]
            time = f"{step['p50_ms']:.0f} ({step['p95_ms']:.0f})"
            shares = f"{entry['step_over_one_object']:.2f}", f"{entry['gflop_over_one_object']:.2f}"
            lines.append(row(variant, entry["objects"], time, *shares))
    return lines


def dmn_objects(found: dict[str, Any]) -> list[str]:
    """One row per object count, with what comes before RefineNet by itself."""
    parts = ("encode", "templates", "match", "remember", "move references", "RefineNet")
    lines = [
        "**DMN-AOA** at 480x854, 30 proposals, five memory frames, without the detector",
        f"({where(found)}). p50 in ms; what comes before RefineNet is the first four.",
        "",
        row("objects", *parts, "before RefineNet, over 1 object", "step, over 1 object"),
        row("---:", *("---:" for _ in parts), "---:", "---:"),
    ]
    for entry in found["objects"]:
        times = (f"{entry[part]['p50_ms']:.0f}" for part in parts)
        before = f"{entry['before_refinenet_over_one_object']:.2f}"
        lines.append(row(entry["objects"], *times, before, f"{entry['step_over_one_object']:.2f}"))
    return lines


def endless_memory(found: dict[str, Any]) -> list[str]:
    """A line about the long clip."""
    endless = found["endless"]
    resident = endless["resident_mib"]
    first, last = "50", max(resident, key=int)
    return [
        f"**Memory** of `{found['model']}` over a clip of {endless['frames']} frames with a bank "
        f"of {endless['max_frames']} frames per object: the process holds "
        f"{resident[first]:.0f} MiB at frame {first} and {resident[last]:.0f} MiB at frame {last}; "
        f"a step takes "
        f"{endless['frames_50_to_100']['p50_ms']:.0f} ms (p50) after 50 frames and "
        f"{endless['last_50_frames']['p50_ms']:.0f} ms over the last 50 ({where(found)}).",
    ]


def cache(found: dict[str, Any]) -> list[str]:
    """A line about what a held backbone saves."""
    cache = found["cache"]
    return [
        f"**Streaming** `{found['model']}`: a frame whose neighbours' features are held costs "
        f"{cache['streamed_over_clip']:.2f} of its three-frame clip computed from nothing "
        f"({cache['flop_ratio']:.2f} by FLOP; p50 {cache['streamed']['p50_ms']:.0f} against "
        f"{cache['from nothing']['p50_ms']:.0f} ms at {cache['size'][0]}x{cache['size'][1]}; "
        f"{where(found)}).",
    ]


def main() -> None:
    parts = (
        kernels(newest("kernels-float32")),
        models(newest("sweep-stm")),
        giel_objects(newest("objects-giel")),
        dmn_objects(newest("objects-dmn_aoa")),
        endless_memory(newest("endless-stm")),
        cache(newest("cache-imcnet")),
    )
    print("\n\n".join("\n".join(part) for part in parts))


if __name__ == "__main__":
    main()
