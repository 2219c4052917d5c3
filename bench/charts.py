"""Draw the charts of speed and accuracy from bench/results/ and the weight cards.

python bench/charts.py    writes docs/pictures/speed.svg and docs/pictures/accuracy.svg

Each is an SVG with its own background, light or dark as the reader's system prefers. The same
results give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from tables import newest, scores_of, short

from vosengine.zoo.registry import entry

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
WIDTH, MARGIN, LABEL = 800, 16, 172  # pixels: the chart, its border, the names on the left
BAR, GAP, GROUP = 11, 2, 10  # pixels: a bar, between bars, between groups
ROOM = 150  # pixels to the right of the longest bar, for its text
STYLE = """
  .ground{fill:#fff} text{font:12px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;
  fill:#1f2328} .title{font-size:15px;font-weight:600} .note{fill:#59636e;font-size:11px}
  .figure{font-size:10.5px;fill:#59636e} .a{fill:#c8d1da} .b{fill:#95a3b3} .c{fill:#54aeff}
  .d{fill:#0969da} .spread{stroke:#59636e;stroke-width:1}
  @media (prefers-color-scheme:dark){ .ground{fill:#0d1117} text{fill:#e6edf3}
  .note,.figure{fill:#9198a1} .a{fill:#3d444d} .b{fill:#656c76} .c{fill:#1f6feb} .d{fill:#79c0ff}
  .spread{stroke:#9198a1} }
"""


@dataclass(frozen=True)
class Bar:
    """One bar.

    colour  CSS class
    value   length of the bar, in the chart's unit
    figure  text beside the bar
    spread  end of a thin line from the bar (a percentile), in the chart's unit; None: no line
    """

    colour: str
    value: float
    figure: str
    spread: float | None = None


def chart(
    title: str,
    groups: Sequence[tuple[str, Sequence[Bar]]],
    legend: Sequence[tuple[str, str]],
    notes: Sequence[str],
    longest: float,
) -> str:
    """Horizontal bars in named groups, as SVG.

    legend   (CSS class, meaning)
    notes    lines of text below the bars
    longest  value at the right end
    """
    scale = (WIDTH - 2 * MARGIN - LABEL - ROOM) / longest
    top, left = MARGIN + 18, MARGIN + LABEL
    parts = [f'<text class="title" x="{MARGIN}" y="{MARGIN + 12}">{escape(title)}</text>']
    if legend:
        top += 26
        x = MARGIN
        for colour, name in legend:
            parts.append(f'<rect class="{colour}" x="{x}" y="{top - 16}" width="11" height="11"/>')
            parts.append(f'<text class="note" x="{x + 16}" y="{top - 7}">{escape(name)}</text>')
            x += 16 + round(6.1 * len(name)) + 18
    top += 12
    for name, bars in groups:
        height = len(bars) * (BAR + GAP) - GAP
        middle = top + height / 2 + 4
        parts.append(f'<text x="{left - 8}" y="{middle:g}" text-anchor="end">{escape(name)}</text>')
        for bar in bars:
            parts += _bar(bar, left, top, scale)
            top += BAR + GAP
        top += GROUP - GAP
    for note in notes:
        top += 15
        parts.append(f'<text class="note" x="{MARGIN}" y="{top}">{escape(note)}</text>')
    height = top + MARGIN
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>',
            *parts,
            "</svg>\n",
        )
    )


def _bar(bar: Bar, left: int, top: int, scale: float) -> list[str]:
    length = max(1.0, bar.value * scale)
    size = f'width="{length:.1f}" height="{BAR}"'
    parts = [f'<rect class="{bar.colour}" x="{left}" y="{top}" {size}/>']
    end = left + length
    if bar.spread is not None:
        far, middle = left + bar.spread * scale, top + BAR / 2
        line = f"M{end:.1f} {middle:g}H{far:.1f}M{far:.1f} {top + 2}v{BAR - 4}"
        parts.append(f'<path class="spread" d="{line}"/>')
        end = max(end, far)
    at = f'x="{end + 6:.1f}" y="{top + 9}"'
    parts.append(f'<text class="figure" {at}>{escape(bar.figure)}</text>')
    return parts


VARIANTS = (
    ("a", "eager fp32", "plain torch, fp32"),
    ("b", "eager bf16", "plain torch, bf16"),
    ("c", "ours fp32", "vosengine, fp32"),
    ("d", "ours", "vosengine, bf16"),
)


def speed() -> str:
    """Chart of the time of a step of the papers' networks, ours and plain torch, fp32 and bf16."""
    results = newest("bench-paper")
    facts = results["environment"]
    groups, left, longest = [], [], 0.0  # left: models that stay in fp32
    for model in results["models"]:
        (point,) = model["points"]
        cells = {cell["variant"]: cell for cell in point["cells"]}
        if (
            cells["ours fp32"]["fault"] is not None
        ):  # `ours` is in fp32 then: "auto" does not choose bf16
            cells["ours fp32"] = cells.pop("ours")
            cells.pop("eager bf16")
            left.append(model["model"])
        eager = cells["eager fp32"]["p50_ms"]
        bars = []
        for colour, variant, _ in VARIANTS:
            if variant in cells:
                p50, p95 = cells[variant]["p50_ms"], cells[variant]["p95_ms"]
                ratio = f", {eager / p50:.1f}x" if variant != "eager fp32" else ""
                bars.append(Bar(colour, p50, f"{short(p50)} ms ({short(p95)}){ratio}", p95))
                longest = max(longest, p95)
        objects = point["objects"]
        groups.append((f"{model['model']}, {objects} object{'s' * (objects > 1)}", bars))
    height, width = results["models"][0]["points"][0]["size"]
    return chart(
        f"Time of a step at {height}x{width}: the papers' networks, p50 (p95)",
        groups,
        [(colour, name) for colour, _, name in VARIANTS],
        (
            f"{facts['device']}, {facts['isa']}, {facts['date']}; random weights, memory of "
            f"{results['plan']['memory_frames']} frames. Line: p95. x: to plain torch in fp32.",
            *_in_fp32([model["model"] for model in results["models"]], left),
            facts["command"],
        ),
        longest,
    )


def _in_fp32(models: Sequence[str], left: Sequence[str]) -> list[str]:
    """Notes on the models that "auto" kept in fp32 in the run, and on those that it keeps now."""
    since = [name for name in models if not entry(name).build.bf16_safe and name not in left]
    lines = [f"bf16 changes the labels of {', '.join(left)}: fp32 alone."] if left else []
    return lines + (
        [f"Since this run {', '.join(since)} stays in fp32 by default."] if since else []
    )


def accuracy() -> str:
    """Chart of the mean J of the demo weights over the ten clips, beside untrained baselines."""
    results = newest("baselines")
    groups = []
    for group in results["groups"]:
        rows = [("d", f"{name}.demo", scores_of(name)["J"]) for name in group["models"]]
        rows += [("b", name, figures["J"]) for name, figures in group["baselines"].items()]
        rows.sort(key=lambda row: -row[2])
        groups += [(name, [Bar(colour, j, f"{j:.3f}")]) for colour, name, j in rows]
    return chart(
        "Mean J over ten real clips that nothing was trained on",
        groups,
        [("d", "trained networks that ship"), ("b", "no training")],
        (
            "DAVIS 2016 validation, 480p; first and last frame left out.",
            "imcnet, target_aware and the ellipse are given no mask, the others the first.",
            results["command"],
        ),
        1.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder")
    folder = parser.parse_args().out
    for name, draw in (("speed", speed), ("accuracy", accuracy)):
        (folder / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
