"""An export used by another program: only model.json, numpy and onnxruntime, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from exported import FOREGROUND, STATIC, Export, answers, both, differing, draw_clip

from vosengine.onnx.library import LIBRARY


class Service:
    """The protocol of docs/onnx.md, for the policy "memory" and a dynamic export."""

    def __init__(self, folder: Path) -> None:
        self.model = json.loads((folder / "model.json").read_text())
        self.graphs = {
            name: onnxruntime.InferenceSession(
                str(folder / graph["file"]), providers=["CPUExecutionProvider"]
            )
            for name, graph in self.model["graphs"].items()
        }
        self.frame_index = 0

    def run(self, verb: str, values: dict[str, Any]) -> dict[str, Any]:
        """Run a graph on the values of its inputs' sources."""
        graph = self.model["graphs"][verb]
        names = {node.name for node in self.graphs[verb].get_inputs()}
        feeds = {p["name"]: values[p["source"]] for p in graph["inputs"] if p["name"] in names}
        outputs = self.graphs[verb].run(None, feeds)
        return dict(zip((p["name"] for p in graph["outputs"]), outputs, strict=True))

    def begin(self, size: tuple[int, int], objects: int) -> None:
        """The frame's place in the network's input, and an empty memory."""
        short, multiple = self.model["size"], self.model["multiple"]
        scale = 1 if short is None else short / min(size)
        self.resized = [max(1, round(side * scale)) for side in size]
        (top, bottom), (left, right) = (
            (-side % multiple // 2, -side % multiple - -side % multiple // 2)
            for side in self.resized
        )
        self.padding = left, right, top, bottom
        self.size, self.objects = size, objects
        cells = {
            "h": (self.resized[0] + top + bottom) // multiple,
            "w": (self.resized[1] + left + right) // multiple,
            "objects": objects,
            "frames": min(3, self.model["settings"]["frames"]),  # all that six frames want
        }
        self.state = {}
        for port in self.model["state"]:
            shape = [eval(str(axis), {}, cells) for axis in port["shape"]]
            self.state["state." + port["name"]] = np.zeros(shape, port["dtype"])

    def step(self, frame: np.ndarray, prompt: np.ndarray | None) -> np.ndarray:
        """Labels of a frame; a prompt shows objects 1..objects, in the first frame all of them."""
        values = dict(self.state)
        values["caller.frame"] = frame
        values["caller.resized"] = np.array(self.resized)
        values["caller.padding"] = np.array(self.padding)
        values["caller.frame_index"] = np.array(self.frame_index)
        for verb in ("prepare", "encode"):
            outputs = self.run(verb, values)
            values.update({f"{verb}.{name}": value for name, value in outputs.items()})
        before = self.features if self.frame_index else values
        values.update({f"{n}@-1": v for n, v in before.items() if n.startswith("encode.")})
        started = self.frame_index > 0
        values["caller.alive"] = np.full(self.objects, started)
        named = [prompt is not None and (prompt == k + 1).any() for k in range(self.objects)]
        values["caller.prompted"] = np.array(named)
        values["caller.prompt"] = np.zeros(self.size, np.uint8) if prompt is None else prompt
        values["segment.logits"] = np.zeros((self.objects, 1, 1), np.float32)
        if started:
            values["segment.logits"] = self.run("segment", values)["logits"]
        stride = self.model["settings"]["stride"]
        left, _, top, _ = self.padding
        values["caller.region"] = np.array([top, left, *self.resized]) / stride
        values["caller.size"] = np.array(self.resized)
        values["finish.masks"] = self.run("finish", values)["masks"]
        values["caller.size"] = np.array(self.size)
        labels: np.ndarray = self.run("finish", values)["labels"]
        outputs = self.run("remember", values)
        for port in self.model["graphs"]["remember"]["outputs"]:
            self.state[port["source"]] = outputs[port["name"]]
        self.features, self.frame_index = values, self.frame_index + 1
        return labels


@pytest.mark.parametrize("objects", [1, 2])
def test_a_foreign_service(export: Export, objects: int) -> None:
    clip = draw_clip((200, 300), objects, frames=6)
    folder = export("munet")
    service = Service(folder)
    service.begin((200, 300), objects)
    labels = [
        service.step(frame, None if i else clip.masks[0]) for i, frame in enumerate(clip.frames)
    ]
    segmenter, reference = both(folder)
    assert differing(labels, answers(segmenter, clip.frames, {0: clip.masks[0]})) == 0
    assert differing(labels, answers(reference, clip.frames, {0: clip.masks[0]})) < 1e-3


ALONE = """
    import sys
    from importlib.abc import MetaPathFinder

    class Wall(MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            allowed = {"numpy", "onnxruntime", "cv2", "vosengine", *sys.stdlib_module_names}
            if name.split(".")[0] not in allowed:
                raise ModuleNotFoundError(f"there is no {name} here", name=name)
            return None

    sys.meta_path.insert(0, Wall())
    import numpy as np
    from vosengine.onnx import OnnxSegmenter
    from vosengine import OnnxSegmenter as also
    assert also is OnnxSegmenter

    clip = np.load(sys.argv[2])
    segmenter = OnnxSegmenter(sys.argv[1], providers=["CPUExecutionProvider"])
    found = []
    for index, frame in enumerate(clip["frames"]):
        mask = clip["mask"] if index == 0 and segmenter.manifest.needs_mask else None
        result = segmenter.step(frame, mask)
        if result is not None:
            found.append(result.numpy())
            assert result.probabilities.shape[0] == 1 + len(result.ids)
    found += [result.numpy() for result in segmenter.flush()]
    np.save(sys.argv[3], np.stack(found))
    assert not {"torch", "onnx", "onnxscript", "scipy", "PIL"} & set(sys.modules)
"""


BY_OURS = [
    pytest.param(
        model,
        {"ops": "vosengine", **sizes},
        id=f"{model}-vosengine",
        marks=pytest.mark.skipif(not LIBRARY.is_file(), reason="there is no library of operators"),
    )
    for model, sizes in (("munet", {}), ("imcnet", FOREGROUND), ("dmn_aoa", STATIC))
]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        *((model, {}) for model in ("munet", "giel", "dmn_aoa", "imcnet", "target_aware")),
        *BY_OURS,
    ],
)
def test_without_torch(export: Export, tmp_path: Path, model: str, options: dict[str, Any]) -> None:
    """With numpy, onnxruntime and OpenCV alone, and the library of operators where the export has
    such, the same labels."""
    clip = draw_clip((96, 130), 2, frames=3)
    folder = export(model, **options)
    np.savez(tmp_path / "clip.npz", frames=np.stack(clip.frames), mask=clip.masks[0])
    script = [sys.executable, "-c", textwrap.dedent(ALONE)]
    arguments = [str(folder), str(tmp_path / "clip.npz"), str(tmp_path / "found.npy")]
    ran = subprocess.run([*script, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    segmenter, _ = both(folder)
    prompts = {0: clip.masks[0]} if segmenter.manifest.needs_mask else {}
    labels = list(np.load(tmp_path / "found.npy"))
    assert differing(labels, answers(segmenter, clip.frames, prompts)) == 0
