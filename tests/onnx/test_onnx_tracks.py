"""target_aware's graphs: discovery, augmentation, fitting, and whole streams."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from exported import Export, answers, both, differing, draw_clip, weights_of
from quick_streams import stream_state
from torch import nn

from vosengine import DNetSource, OnnxSegmenter
from vosengine.kernels import fit_target, group_centres
from vosengine.models.target_aware.appearance import to_grid
from vosengine.models.target_aware.augment import augment, move
from vosengine.onnx.discovery import Discovery, nearest
from vosengine.onnx.export import centres, fitting
from vosengine.onnx.export.ops import TRANSLATIONS
from vosengine.onnx.tracks import overlaps
from vosengine.onnx.tracks_memory import draw_placements
from vosengine.policies.placement import BLUR_CHANCE, placement
from vosengine.training.synthetic import Clip

MOST = 1e-3  # of the labels may differ
SIZE = 128, 160


@pytest.fixture(scope="module")
def folder(export: Export) -> Path:
    return export("target_aware")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return draw_clip(SIZE, 2, 8)


@pytest.fixture(scope="module")
def frames(clip: Clip) -> list[np.ndarray]:
    return list(clip.frames)


def session_of(module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path) -> Any:
    """A module as a graph in onnxruntime; the first axis of four inputs is free where there are
    more."""
    samples = torch.export.Dim("samples", min=1, max=64)
    free = [{0: samples}] * 4 + [None] * (len(inputs) - 4) if len(inputs) == 5 else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=20,
            dynamic_shapes=None if free is None else (tuple(free),),
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*tensors: torch.Tensor) -> list[torch.Tensor]:
        feeds = {name: x.numpy() for name, x in zip(names, tensors, strict=True)}
        return [torch.from_numpy(x) for x in session.run(None, feeds)]

    return run


# D-Net


class Grouped(nn.Module):
    def forward(self, *maps: torch.Tensor) -> torch.Tensor:
        labels: torch.Tensor = centres.group_centres(*maps, threshold=0.1, window=7, limit=5)[0]
        return labels


def test_grouping_is_the_op(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    heat = torch.rand(30, 40, generator=generator)
    offset = 8 * torch.randn(2, 30, 40, generator=generator)
    foreground = heat > 0.3
    maps = heat[None], offset[None], foreground[None]
    run = session_of(Grouped(), maps, tmp_path / "group.onnx")
    plateau = torch.zeros(30, 40)
    plateau[5:9, 5:9] = plateau[0, 30:] = plateau[20:, 0] = 0.5
    odd = heat.clone()
    odd[::3] = torch.nan
    odd[1, 1], odd[7, 30] = torch.inf, -torch.inf
    cases = (
        (heat, foreground),
        (plateau, foreground),
        (odd, foreground),
        (0 * heat, foreground),  # no centre: one group
        (heat, heat > 2),  # no foreground
    )
    for heat, foreground in cases:
        maps = heat[None], offset[None], foreground[None]
        (labels,) = run(*maps)
        wanted, _, _ = group_centres(*maps, threshold=0.1, window=7, limit=5)
        assert torch.equal(labels, wanted)


def test_discoveries_are_dnets(folder: Path, clip: Clip) -> None:
    engine = OnnxSegmenter(folder, providers=["CPUExecutionProvider"], threads=1)
    detector = Discovery(engine.manifest, engine.sessions)
    reference = DNetSource(
        weights=weights_of(folder, "target_aware"), device="cpu", embed=False, engine="eager"
    )
    for index, frame in enumerate([*clip.frames[:4], clip.frames[0]]):
        if index == 4:  # guided by nothing, as at first
            detector.reset()
        proposals, wanted = detector(frame), reference(frame, index if index < 4 else 0)
        assert len(proposals) == len(wanted) > 0
        assert np.mean(proposals.masks != wanted.masks.numpy()) <= MOST
        assert np.abs(proposals.boxes - wanted.boxes.numpy()).max() <= 1
        assert np.abs(proposals.scores - wanted.scores.numpy()).max() < 1e-3
    small = detector(clip.frames[0][:64, :80])  # of another size: guided by nothing
    assert small.masks.shape[1:] == (64, 80)


def test_nearest_pixels_are_torchs() -> None:
    for there, wanted in ((480, 256), (854, 455), (130, 347), (7, 20), (33, 33)):
        line = torch.arange(there, dtype=torch.float32)[None, None]
        expected = nn.functional.interpolate(line, wanted, mode="nearest-exact")[0, 0]
        assert np.array_equal(nearest(there, wanted), expected.numpy())


# Tracks


class Fitted(nn.Module):
    def __init__(self, *iterations: int) -> None:
        super().__init__()
        self.iterations = iterations

    def forward(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        inputs = tensors if len(tensors) == 6 else (*tensors, None)
        fitted: list[torch.Tensor] = fitting.fit_track(*inputs, self.iterations, (1e-4, 1e-2))
        return fitted


def problem(samples: int) -> tuple[torch.Tensor, ...]:
    """features, bands, targets, weight, kernel of a track on a grid of 6 x 5 cells."""
    generator = torch.Generator().manual_seed(samples)
    labels = (torch.rand(samples, 48, 40, generator=generator) > 0.6).float()
    grid = to_grid(labels, 0.1, (6, 5))
    features = torch.randn(samples, 4, 6, 5, generator=generator)
    weight = torch.rand(samples, generator=generator)
    return features, *grid, weight, torch.randn(4, 3, 3, generator=generator)


def test_fits_are_the_ops(tmp_path: Path) -> None:
    run = session_of(Fitted(4, 3), problem(3), tmp_path / "fit.onnx")
    for arguments in (problem(3), problem(7), (*problem(2)[:3], torch.zeros(2), problem(2)[4])):
        wide = (tensor[None].double() for tensor in arguments)
        wanted, _ = fit_target(*wide, iterations=(4, 3), ridge=(1e-4, 1e-2))
        torch.testing.assert_close(run(*arguments)[0], wanted[0].float(), rtol=1e-5, atol=1e-6)
    projection = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))
    arguments = (*problem(3)[:4], problem(3)[4][:3], projection)
    both_of = session_of(Fitted(3, 2), arguments, tmp_path / "both.onnx")
    wide = (tensor[None].double() for tensor in arguments)
    wanted = fit_target(*wide, iterations=(3, 2), ridge=(1e-4, 1e-2))
    for output, expected in zip(both_of(*arguments), wanted, strict=True):
        assert expected is not None
        torch.testing.assert_close(output, expected[0].float(), rtol=1e-5, atol=1e-6)


def test_placements_are_drawn_as_torch_draws_them() -> None:
    blurred = 0
    for frame, slot in ((0, 0), (0, 3), (17, 1), (90000, 254)):
        generator = torch.Generator("cpu").manual_seed(256 * frame + slot)
        draws = torch.rand(4, 7, generator=generator).tolist()
        places, blurs = draw_placements(frame, slot, 4, 256, 5)
        assert np.array_equal(places, np.array([placement(draw[:5]) for draw in draws], np.float32))
        for draw, weights in zip(draws, blurs, strict=True):
            assert weights.sum() == pytest.approx(1)
            assert (weights[5] < 1) == (draw[5] < BLUR_CHANCE)
            blurred += weights[5] < 1
    assert 0 < blurred < 16


def test_a_track_begins_with_the_samples_of_torch(folder: Path, clip: Clip) -> None:
    """Including augmentation: the labels of the first samples are those of `augment`."""
    segmenter, reference = both(folder)
    mask = np.where(clip.masks[0] == 1, 7, 0).astype(np.uint8)
    for engine in (segmenter, reference):
        engine.step(clip.frames[0], mask)
    bank: Any = stream_state(reference).tracks.samples
    policy: Any = segmenter.policy
    for slot, track in enumerate(policy.tracks):
        assert track.filled == bank.filled[slot] == 3
        for values, wanted in zip(
            track.banks, (bank.features, bank.bands, bank.targets), strict=True
        ):
            wanted = wanted[slot].numpy()
            assert np.abs(values - wanted).mean() < 2e-3 * np.abs(wanted).mean()


def test_overlaps_of_tracks_and_proposals() -> None:
    owners = np.zeros((4, 4), np.uint8)
    owners[:2], owners[2] = 1, 2
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :, :2] = True
    ious = overlaps(owners, masks, 3)
    assert ious == pytest.approx(np.array([[4 / 12, 0], [2 / 10, 0], [0, 0]]))


def test_moved_objects_are_augments() -> None:
    """`augment` by its parts, placed as the graph `begin` is told."""
    generator = torch.Generator("cpu").manual_seed(3)
    frame = torch.rand(1, 3, 40, 40, generator=generator)
    label = torch.zeros(40, 40, dtype=torch.bool)
    label[10:20, 12:25] = True
    _, labels = augment(frame, label, 3, torch.Generator("cpu").manual_seed(256 * 5 + 2))
    places, _ = draw_placements(5, 2, 3, 40, 1)
    _, moved, _ = move(frame, label, torch.from_numpy(places))
    assert torch.equal(moved, labels)


# The stream


def test_the_stream_is_torchs(folder: Path, frames: list[np.ndarray]) -> None:
    segmenter, reference = both(folder)
    labels, wanted = (answers(engine, frames, {}) for engine in (segmenter, reference))
    assert segmenter.ids == reference.ids
    assert len(segmenter.ids) > 1
    assert differing(labels, wanted) <= MOST


def test_masks_begin_correct_and_end_tracks(
    folder: Path, clip: Clip, frames: list[np.ndarray]
) -> None:
    """Prompted at the start; later one object is added, one corrected, one removed."""
    segmenter, reference = both(folder)
    first = np.where(clip.masks[0] == 1, 40, 0).astype(np.uint8)
    later = np.select([clip.masks[4] == 1, clip.masks[4] == 2], [40, 9], 0).astype(np.uint8)
    outputs = []
    for engine in (segmenter, reference):
        labels = answers(engine, frames[:6], {0: first, 4: later})
        assert np.array_equal(labels[4] == 9, later == 9)
        engine.remove(40)
        outputs.append(labels + answers(engine, frames[6:], {}))
    assert 9 in segmenter.ids
    assert 40 not in segmenter.ids
    assert segmenter.ids == reference.ids
    assert differing(*outputs) <= MOST
    tracks, state = segmenter.policy.tracks, stream_state(reference)  # type: ignore[attr-defined]
    assert [track.born for track in tracks] == state.born
    assert [track.filled for track in tracks] == state.tracks.samples.filled[: len(tracks)]
    for track, embedding in zip(tracks, state.first_embedding, strict=False):
        assert track.embedding @ embedding.numpy() > 0.999


def test_frames_without_objects_and_a_new_stream(folder: Path, frames: list[np.ndarray]) -> None:
    """D-Net is also updated with a frame in which no object is large enough."""
    segmenter, reference = both(folder)
    policy: Any = segmenter.policy
    network: Any = reference.method
    usual, config = policy.discovery.smallest, network.dnet.config
    none = 10**6
    policy.discovery.smallest = none
    network.dnet.config = replace(config, smallest_proposal=none)
    labels = [answers(engine, frames[:2], {}) for engine in (segmenter, reference)]
    assert not np.any(labels)
    policy.discovery.smallest, network.dnet.config = usual, config
    labels = [answers(engine, frames[2:5], {}) for engine in (segmenter, reference)]
    assert np.any(labels[0])
    assert differing(*labels) <= MOST
    segmenter.reset()
    once = answers(segmenter, frames[:3], {})
    segmenter.reset()
    assert differing(answers(segmenter, frames[:3], {}), once) == 0


def test_what_lies_under_a_prompt_is_not_discovered(folder: Path, clip: Clip) -> None:
    segmenter = OnnxSegmenter(folder, providers=["CPUExecutionProvider"], threads=1)
    segmenter.step(clip.frames[0], np.where(clip.masks[0] > 0, 5, 0).astype(np.uint8))
    reference = both(folder)[1]
    reference.step(clip.frames[0], np.where(clip.masks[0] > 0, 5, 0).astype(np.uint8))
    assert segmenter.ids == reference.ids


def test_reserved_ids_are_not_discovered(folder: Path, clip: Clip) -> None:
    segmenter = OnnxSegmenter(folder)
    first = segmenter.step(clip.frames[0])
    segmenter.reset()
    segmenter.reserve([1, 3])
    again = segmenter.step(clip.frames[0])
    assert first is not None and again is not None and len(first.ids) > 0
    wanted = [i for i in range(1, 99) if i not in (1, 3)]
    assert again.ids == tuple(wanted[: len(first.ids)])
