"""Plot of a training log."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import ConfigError, InputError, OutputError
from ..files import Given, keep_apart, whole

SMOOTHING = 0.98  # decay of the running mean of a loss


def plot_log(log: Path, picture: Path) -> None:
    """Plot losses and the held-out score over the steps to a PNG file.

    Raises  InputError if the log is missing or empty; OutputError if the picture cannot be written,
            is not named .png, or is the log itself; ConfigError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            'plot: matplotlib is not installed; pip install "vosengine[train]"'
        ) from error
    if picture.suffix.lower() != ".png":
        raise OutputError(f"{picture}: wanted a name that ends in .png")
    keep_apart(Given.named("the log", log), [picture])
    if not log.is_file():
        raise InputError(f"{log}: no such log; wanted the log.jsonl of a training run")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if not lines:
        raise InputError(f"{log}: empty; train a step first")
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(name for line in lines for name in line["losses"]):
        steps = [line["step"] for line in lines if name in line["losses"]]
        values = [line["losses"][name] for line in lines if name in line["losses"]]
        axes.plot(steps, running_mean(values), label=name)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(loc="upper left")
    scored = [line for line in lines if line.get("score") is not None]
    if scored:
        other = axes.twinx()
        other.plot([line["step"] for line in scored], [line["score"] for line in scored], "k.--")
        other.set(ylabel="held-out score (black)", ylim=(0, 1))
    with whole(picture) as scratch:
        figure.savefig(scratch, format="png")


def running_mean(values: list[float]) -> list[float]:
    """Exponential running mean, bias-corrected for the start."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        means.append(total / weight)
    return means
