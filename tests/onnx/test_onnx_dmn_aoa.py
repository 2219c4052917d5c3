"""DMN-AOA's graphs: regions, matching, and streams with given proposals or D-Net's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from exported import SHORT_SIDE, STATIC, Export, answers, differing, draw_clip
from torch import nn
from torch.export import Dim

from vosengine import DNetSource, OnnxSegmenter, Segmenter
from vosengine.errors import ConfigError, InputError
from vosengine.kernels import align_object, match_proposals, pool_regions
from vosengine.onnx import proposals as host
from vosengine.onnx.discovery import boxes_of
from vosengine.onnx.export import regions
from vosengine.onnx.policies import Policy
from vosengine.onnx.proposals import FrameProposals
from vosengine.proposals import Proposals, best_of, clean, to_network
from vosengine.types import Geometry

MOST = 1e-3  # of the labels may differ
CPU = ["CPUExecutionProvider"]
SIZE = 96, 130


@pytest.fixture(scope="session")
def dynamic(export: Export) -> Path:
    return export("dmn_aoa")


@pytest.fixture(scope="session")
def static(export: Export) -> Path:
    return export("dmn_aoa", **STATIC)


# The ops


class Pooled(nn.Module):
    def forward(
        self, fine: torch.Tensor, coarse: torch.Tensor, planes: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor:
        return regions.pool_regions((fine, coarse), boxes, strides=(4, 8), planes=planes, size=5)


class Matched(nn.Module):
    def __init__(self, steps: int, inner: int, most: bool) -> None:
        super().__init__()
        self.options = steps, inner, 0.1, most

    def forward(
        self, similarity: torch.Tensor, alive: torch.Tensor, there: torch.Tensor
    ) -> torch.Tensor:
        output: torch.Tensor = regions.match_proposals(similarity, alive, there, *self.options)
        return output


def in_onnxruntime(
    module: nn.Module, arguments: tuple[torch.Tensor, ...], shapes: Any, path: Path
) -> Callable[..., np.ndarray]:
    program = torch.onnx.export(
        module.eval(),
        arguments,
        dynamo=True,
        opset_version=20,
        dynamic_shapes=shapes,
        custom_translation_table=regions.TRANSLATIONS,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=CPU)
    names = [node.name for node in session.get_inputs()]

    def run(*tensors: torch.Tensor) -> np.ndarray:
        feeds = {n: x.numpy() for n, x in zip(names, tensors, strict=True)}
        output: np.ndarray = session.run(None, feeds)[0]
        return output

    return run


@pytest.mark.filterwarnings("ignore")
def test_regions_are_the_ops(tmp_path: Path) -> None:
    """Boxes inside and across the border, without area, reversed, and far away."""
    generator = torch.Generator().manual_seed(0)
    fine, coarse = (torch.randn(1, 3, *s, generator=generator) for s in ((12, 20), (6, 10)))
    corners = torch.rand(60, 2, generator=generator) * torch.tensor([100.0, 70.0]) - 10
    odd = [[0, 0, 0, 0], [0, 0, 80, 48], [10, 10, 10, 40], [-500, -500, -400, -400], [30, 9, 8, 2]]
    sides = torch.rand(60, 2, generator=generator) * 40
    boxes = torch.cat((torch.tensor(odd).float(), torch.cat((corners, corners + sides), dim=1)))
    planes = torch.rand(len(boxes), 48, 80, generator=generator)
    rows = {0: Dim("regions")}
    run = in_onnxruntime(
        Pooled(), (fine, coarse, planes[:3], boxes[:3]), ({}, {}, rows, rows), tmp_path / "a"
    )
    truth = pool_regions.reference((fine, coarse), boxes, strides=(4, 8), planes=planes, size=5)
    np.testing.assert_allclose(run(fine, coarse, planes, boxes), truth.numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("steps", "inner", "answer"), [(10, 3, "final"), (7, 5, "dmm")])
def test_matching_is_the_ops(tmp_path: Path, steps: int, inner: int, answer: str) -> None:
    """Of the objects that are alive and the proposals that are there; ties, and more objects than
    proposals among them."""
    rows, columns = {0: Dim("objects")}, {0: Dim("proposals")}
    example = torch.rand(3, 5), torch.ones(3, dtype=torch.bool), torch.ones(5, dtype=torch.bool)
    both = {0: rows[0], 1: columns[0]}
    module = Matched(steps, inner, answer == "dmm")
    run = in_onnxruntime(module, example, (both, rows, columns), tmp_path / "a")
    random = np.random.default_rng(0)
    for trial in range(60):
        objects, proposals = int(random.integers(1, 6)), int(random.integers(1, 9))
        alive, there = int(random.integers(1, objects + 1)), int(random.integers(1, proposals + 1))
        similarity = torch.from_numpy(random.uniform(-1, 1, (objects, proposals))).float()
        if trial % 4 == 0:
            similarity = similarity.round()
        truth = np.zeros((objects, proposals), np.float32)
        truth[:alive, :there] = match_proposals.reference(
            similarity[:alive, :there], steps=steps, inner=inner, answer=answer
        )
        output = run(similarity, torch.arange(objects) < alive, torch.arange(proposals) < there)
        np.testing.assert_allclose(output, truth, atol=1e-5)


@pytest.mark.parametrize("score", ["mean", "flat"])
def test_alignment_is_the_ops(score: str) -> None:
    generator = torch.Generator().manual_seed(0)
    template, proposal = (torch.randn(n, 9, 4, generator=generator) for n in (3, 5))
    template[0, 0] = 0
    output = regions.align_object(template, proposal, alpha=30, score=score)
    truth, _ = align_object.reference(template, proposal, alpha=30, score=score)
    torch.testing.assert_close(output, truth, rtol=1e-5, atol=1e-5)


# Proposals without torch


def proposed(size: tuple[int, int], count: int, seed: int) -> Proposals:
    """Rectangles, and empty masks, boxes outside the frame and equal scores."""
    random = np.random.default_rng(seed)
    masks = np.zeros((count, *size), dtype=bool)
    boxes = np.zeros((count, 4), dtype=np.float32)
    for index in range(count):
        top, left = random.integers(0, size[0] - 8), random.integers(0, size[1] - 8)
        bottom, right = top + random.integers(4, 40), left + random.integers(4, 50)
        masks[index, top:bottom, left:right] = index % 5 != 4
        boxes[index] = np.array((left, top, right, bottom)) + random.uniform(-3, 3)
    boxes[::7] += 500
    scores = random.integers(0, 6, count).astype(np.float32) / 6
    return Proposals(*(torch.from_numpy(array) for array in (boxes, masks, scores)))


def in_numpy(proposals: Proposals) -> FrameProposals:
    return FrameProposals(
        proposals.boxes.numpy(), proposals.masks.numpy(), proposals.scores.numpy()
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [0, 1, 40])
def test_the_best_are_torchs(count: int, seed: int) -> None:
    size = (61 + 7 * seed, 97)
    proposals = proposed(size, count, seed)
    geometry = Geometry.fit(size, size=(48, 33, 120, 96)[seed], multiple=16)
    truth = clean(to_network(proposals, geometry, torch.device("cpu")))
    truth = best_of(truth, overlap=0.4, limit=9)
    chosen = host.chosen(host.to_network(in_numpy(proposals), geometry), overlap=0.4, limit=9)
    assert count < 40 or 0 < len(chosen) <= 9
    np.testing.assert_array_equal(chosen.boxes, truth.boxes.numpy())
    np.testing.assert_array_equal(chosen.masks, truth.masks.numpy())
    np.testing.assert_array_equal(chosen.scores, truth.scores.numpy())


# The stream


def given_to(masks: np.ndarray) -> list[Proposals]:
    """A detector's answers for a clip: its objects, somewhat off, and a few that are not there; in
    the third frame none at all."""
    proposals = []
    for index, labels in enumerate(masks):
        extra = proposed(labels.shape, 3, seed=index)
        own = np.stack([np.roll(labels == k, (k, index), (0, 1)) for k in (1, 2, 3)])
        every = torch.cat((torch.from_numpy(own), extra.masks))
        if index == 2:
            every = every[:0]
        boxes = torch.from_numpy(boxes_of(every.numpy()))
        proposals.append(Proposals(boxes, every, torch.linspace(1, 0.5, len(every))))
    return proposals


def engines(folder: Path, proposals: list[Proposals], **options: Any) -> tuple[Any, Any]:
    """A stream of the export and an eager torch stream, with the same proposals."""
    segmenter = OnnxSegmenter(
        folder, providers=CPU, threads=1, proposals=lambda _, index: in_numpy(proposals[index])
    )
    reference = Segmenter(
        "dmn_aoa",
        weights="demo",
        device="cpu",
        precision="fp32",
        engine="eager",
        proposals=lambda _, index: proposals[index],
        **options,
    )
    return segmenter, reference


@pytest.mark.parametrize("objects", [1, 3])
@pytest.mark.parametrize("size", [None, (96, 144)])
def test_the_stream_is_torchs(
    request: pytest.FixtureRequest, size: tuple[int, int] | None, objects: int
) -> None:
    """Including a frame without proposals."""
    folder = request.getfixturevalue("static" if size else "dynamic")
    clip = draw_clip(SIZE, objects)
    segmenter, reference = engines(folder, given_to(np.stack(clip.masks)), size=size or SHORT_SIDE)
    labels = [answers(engine, clip.frames, {0: clip.masks[0]}) for engine in (segmenter, reference)]
    assert differing(*labels) < MOST
    assert np.unique(labels[0][-1]).tolist() == list(range(1 + objects))


@pytest.mark.parametrize("size", [None, (96, 144)])
def test_objects_come_and_go(request: pytest.FixtureRequest, size: tuple[int, int] | None) -> None:
    """First frames are shared, dropped and moved; a correction; an id that is used again."""
    folder = request.getfixturevalue("static" if size else "dynamic")
    clip = draw_clip(SIZE, 3, frames=8)
    segmenter, reference = engines(folder, given_to(np.stack(clip.masks)), size=size or SHORT_SIDE)

    def only(index: int, *ids: int) -> np.ndarray:
        return np.where(np.isin(clip.masks[index], ids), clip.masks[index], 0).astype(np.uint8)

    prompts = {0: only(0, 1), 1: only(1, 2, 3), 3: only(3, 2), 6: only(6, 1)}
    removed = {2: 1, 5: 3}
    labels: list[list[np.ndarray]] = [[], []]
    for engine, outputs in zip((segmenter, reference), labels, strict=True):
        for index, frame in enumerate(clip.frames):
            if index in removed:
                engine.remove(removed[index])
            outputs.append(engine.step(frame, prompts.get(index)).numpy())
        assert engine.ids == (1, 2)
    assert differing(*labels) < MOST
    assert segmenter.policy.first.rows == [0, 1]


def test_bad_proposals_leave_the_stream_as_it_was(dynamic: Path) -> None:
    clip = draw_clip(SIZE, 3, frames=4)
    good = given_to(np.stack(clip.masks))
    answer: list[Any] = []
    segmenter = OnnxSegmenter(
        dynamic,
        providers=CPU,
        threads=1,
        proposals=lambda _, index: answer.pop() if answer else in_numpy(good[index]),
    )
    one = in_numpy(good[0])
    bad = {
        "wanted FrameProposals, given NoneType": None,
        "wanted FrameProposals, given Proposals": good[0],
        "boxes: wanted a numpy array, given Tensor": FrameProposals(
            good[0].boxes,
            one.masks,
            one.scores,  # type: ignore[arg-type]
        ),
        "boxes: wanted \\[6, 4\\], given \\[2, 4\\]": FrameProposals(
            one.boxes[:2], one.masks, one.scores
        ),
        "masks: wanted \\[6, 96, 130\\]": FrameProposals(one.boxes, one.masks[:, 1:], one.scores),
        "scores: wanted float32, given float64": FrameProposals(
            one.boxes, one.masks, one.scores.astype(np.float64)
        ),
        "boxes: wanted left <= right": FrameProposals(
            one.boxes[:, ::-1] + np.arange(4, dtype=np.float32), one.masks, one.scores
        ),
        "scores: wanted finite numbers, given nan \\(number 0\\)": FrameProposals(
            one.boxes, one.masks, one.scores * np.float32(np.nan)
        ),
    }
    for message, wrong in bad.items():
        answer.append(wrong)
        with pytest.raises(InputError, match=message):
            segmenter.step(clip.frames[0], clip.masks[0])
        assert segmenter.geometry is None and segmenter.frame_count == 0
    segmenter.step(clip.frames[0], clip.masks[0])
    answer.append(None)
    with pytest.raises(InputError, match="proposals"):
        segmenter.step(clip.frames[1])
    later = [segmenter.step(frame) for frame in clip.frames[1:]]
    fresh, _ = engines(dynamic, good)
    truth = answers(fresh, clip.frames, {0: clip.masks[0]})
    assert differing([result.numpy() for result in later if result is not None], truth[1:]) == 0


def test_a_model_that_takes_no_proposals_says_so() -> None:
    policy: Any = SimpleNamespace(manifest=SimpleNamespace(model="munet"))
    with pytest.raises(ConfigError, match="proposals: an export of munet takes none"):
        Policy.ask(policy, lambda *_: None)


# Proposals of D-Net


@pytest.mark.parametrize("size", [None, (96, 144)])
def test_proposals_come_from_dnet(
    request: pytest.FixtureRequest, size: tuple[int, int] | None
) -> None:
    folder = request.getfixturevalue("static" if size else "dynamic")
    clip = draw_clip((96, 144), 2)
    segmenter = OnnxSegmenter(folder, providers=CPU, threads=1)
    source = DNetSource(device="cpu", embed=False, engine="eager")
    reference = Segmenter(
        "dmn_aoa",
        weights="demo",
        device="cpu",
        precision="fp32",
        engine="eager",
        proposals=source,
        size=size or SHORT_SIDE,
    )
    labels = [answers(engine, clip.frames, {0: clip.masks[0]}) for engine in (segmenter, reference)]
    assert differing(*labels) < MOST
    segmenter.reset()
    assert differing(answers(segmenter, clip.frames, {0: clip.masks[0]}), labels[0]) == 0
