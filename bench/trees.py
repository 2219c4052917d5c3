"""One stream in this tree and in another checkout of the project, steps in turn.

    python bench/trees.py OTHER_PYTHON [--models stm:3,imcnet:1] [--weights random] [--steps 12]
        [--precision fp32] [--folder bench/results]

OTHER_PYTHON is an interpreter that imports the other checkout's vosengine: its .venv/bin/python.
Each tree steps in a process of its own; the two take turns, and who goes first alternates, so noise
affects both alike. Frames are procedural, 480x854; `model:objects`. --weights is "random" (the
papers' networks), or a folder with a MODEL.safetensors for each model, which both trees must be
able to read. A ratio is the median over pairs of steps of the other tree's time to this one's:
above 1 this tree is faster. Also shown: how many frames have the same labels in both, to the bit.
Writes <date>-trees-random-cpu.json or <date>-trees-trained-cpu.json.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

SIZE = (480, 854)
WARM_UP = 6  # steps; every model's memory is full or has its shape by then
MODELS = "stm:3,munet:3,giel:3,dmn_aoa:3,target_aware:3,imcnet:1"


def serve(model: str, objects: int, weights: str, precision: str) -> None:
    """Step once per line of stdin; print the time in ms and a digest of the labels.

    Uses only what both trees have: nothing here may name a part that one of them lacks.
    """
    import torch

    import vosengine
    from vosengine.benchmark.scenes import GivenProposals, drawn_scene
    from vosengine.timing import timed

    if hasattr(vosengine, "keep_freed_memory"):
        vosengine.keep_freed_memory()
    scene, device = drawn_scene(SIZE), torch.device("cpu")
    prompt = scene.prompt(objects)
    options: dict[str, Any] = {"device": "cpu", "precision": precision, "weights": weights}
    if model == "dmn_aoa":
        options["proposals"] = GivenProposals(prompt, device)
    segmenter = vosengine.Segmenter(model, **options)
    print(Path(vosengine.__file__).parent, flush=True)
    for index, _ in enumerate(sys.stdin):
        mask = prompt if index == 0 and segmenter.method.takes_mask else None
        frame = scene.frame(index)
        result, milliseconds = timed(lambda f=frame, m=mask: segmenter.step(f, m), device)
        labels = b"" if result is None else result.labels.numpy().tobytes()
        print(milliseconds, hashlib.sha256(labels).hexdigest(), flush=True)


class Tree:
    """A process that steps one stream with the vosengine of an interpreter (in `package`)."""

    def __init__(self, python: str, *words: str) -> None:
        self._process = subprocess.Popen(
            [python, __file__, "--serve", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )
        self.package = self._answer()

    def step(self) -> tuple[float, str]:
        """Return the time of the next step in ms, and the digest of its labels."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        milliseconds, digest = self._answer().split()
        return float(milliseconds), digest

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"{self._process.args[0]}: stopped; its error is above")
        return line


def compare(other_python: str, model: str, words: list[str], steps: int) -> dict[str, Any]:
    """Step both trees in turn and return percentiles, the ratio, and the frames that are equal."""
    import numpy as np
    from environment import median_ratio

    from vosengine.timing import summarise

    times = np.zeros((WARM_UP + steps, 2))
    same = 0
    with (
        closing(Tree(other_python, model, *words)) as other,
        closing(Tree(sys.executable, model, *words)) as this,
    ):
        if other.package == this.package:
            raise SystemExit(f"{other_python}: wanted another checkout, has {this.package} too")
        for index in range(WARM_UP + steps):
            digests = ["", ""]
            for side in (0, 1) if index % 2 else (1, 0):
                times[index, side], digests[side] = (other, this)[side].step()
            same += digests[0] == digests[1]
    timed = times[WARM_UP:]
    return {
        "model": model,
        "other": summarise(timed[:, 0].tolist()),
        "this": summarise(timed[:, 1].tolist()),
        "other_over_this": median_ratio(timed[:, 0].tolist(), timed[:, 1].tolist()),
        "frames": WARM_UP + steps,
        "frames_with_equal_labels": int(same),
    }


def options() -> argparse.Namespace:
    from environment import parser_of

    parser = parser_of(__doc__, device=False)
    parser.add_argument("python", metavar="OTHER_PYTHON")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--precision", default="fp32")
    return parser.parse_args()


def main() -> None:
    import torch
    from environment import describe, write_json

    settings = options()
    about = describe(torch.device("cpu"))
    about["command"] = (
        f"python bench/trees.py OTHER_PYTHON --models {settings.models} --steps {settings.steps}"
        f" --precision {settings.precision}"
    )
    rows = []
    for name in settings.models.split(","):
        model, objects = name.split(":")
        weights = settings.weights
        if weights != "random":
            weights = str(Path(weights, f"{model}.safetensors").resolve())
        words = [objects, weights, settings.precision]
        row = compare(settings.python, model, words, settings.steps)
        print(
            f"{model:14s} other {row['other']['p50_ms']:8.1f} this {row['this']['p50_ms']:8.1f} ms"
            f" {row['other_over_this']:.3f}; equal labels in {row['frames_with_equal_labels']}"
            f" of {row['frames']} frames",
            flush=True,
        )
        rows.append(row)
    trained = {"weights": "random" if settings.weights == "random" else "trained"}
    name = f"{about['date']}-trees-{trained['weights']}-cpu.json"
    write_json({**about, **trained, "rows": rows}, settings.folder / name)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        chosen, how_many, which, narrowed = sys.argv[2:]
        serve(chosen, int(how_many), which, narrowed)
    else:
        main()
