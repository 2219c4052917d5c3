"""Whether DMN-AOA picks the right proposals: template, alignment, matching and coarse mask, with
exact proposals and base features that tell objects apart; RefineNet stands aside."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make
from quick_streams import stream_state
from stored_memory import positions
from torch import Tensor, nn

from vosengine.detectors.file import FileSource, write_proposals
from vosengine.engine.segmenter import Segmenter
from vosengine.models.dmn_aoa.network import Matching
from vosengine.models.dmn_aoa.refinement import Base
from vosengine.proposals import Proposals, boxes_of
from vosengine.training.synthetic import Clip, ClipConfig, make_clip

FOLLOWED = 3  # objects 1..3 are prompted; the clip's others are proposed too: distractors
SMALLEST = 60  # pixels; of fewer the detector says nothing
CONFIG = ClipConfig(
    frames=10,
    height=144,
    width=240,
    objects=(5, 5),
    size=(0.02, 0.06),
    distractors=(0, 1),
    occluders=(0, 0),
    leaving=0.0,
)
# Wide enough for signatures; of exact proposals none says the same as another.
CHANGES: dict[str, Any] = {
    "width": 16,
    "base_channels": (16, 16, 32),
    "key_channels": 32,
    "projected_channels": 64,
    "region_size": 14,
    "proposal_overlap": 1.0,
}


def exact_proposals(masks: np.ndarray, seed: int) -> tuple[list[Proposals], list[list[int]]]:
    """Per frame, every object's exact mask in an order of its own, and whose it is.

    masks [T, H, W] object ids -> proposals by falling score, and the ids in that order
    """
    random = np.random.default_rng(seed)
    frames, owners = [], []
    for mask in masks:
        ids = [i for i in np.unique(mask) if i > 0 and (mask == i).sum() >= SMALLEST]
        ids = random.permutation(ids).tolist()
        planes = torch.from_numpy(np.stack([mask == i for i in ids]))
        scores = torch.linspace(0.9, 0.5, len(ids))
        frames.append(Proposals(boxes_of(planes), planes, scores))
        owners.append(ids)
    return frames, owners


class Signatures(nn.Module):
    """Base features that tell objects apart: in every level a vector for each of them and for the
    background, all orthogonal, well above the noise and above the positional embedding."""

    def __init__(self, masks: np.ndarray, channels: tuple[int, ...], seed: int) -> None:
        super().__init__()
        self.masks = torch.from_numpy(masks)
        self.generator = torch.Generator().manual_seed(seed)
        self.codes = [self._codes(c) for c in channels]
        self.next = 0

    def _codes(self, channels: int) -> Tensor:
        """[1 + objects, channels]: orthogonal, of root mean square 4."""
        codes = torch.empty(1 + int(self.masks.max()), channels)
        return nn.init.orthogonal_(codes, gain=4 * channels**0.5, generator=self.generator)

    def forward(self, frames: Tensor) -> tuple[Base, tuple[Tensor, ...]]:
        mask = self.masks[self.next]
        self.next += 1
        levels = []
        for code, stride in zip(self.codes, (4, 8, 16), strict=True):
            planes = code[mask.long()].permute(2, 0, 1)[None]
            level = nn.functional.avg_pool2d(planes, stride)
            noise = torch.randn(level.shape, generator=self.generator)
            levels.append(level + 0.3 * noise)
        return Base(*levels), tuple(levels)


def stand_aside(segmenter: Segmenter) -> list[Matching]:
    """RefineNet returns the coarse mask; matches are recorded frame by frame."""
    noted: list[Matching] = []
    real = segmenter.method.match

    def match(*args: Any) -> Matching:
        noted.append(real(*args))
        return noted[-1]

    segmenter.method.match = match
    segmenter.method.refine.forward = lambda base, moved, coarse: 20 * (coarse - 0.5)
    return noted


def hits(clip: Clip, source: FileSource, owners: list[list[int]], exact: bool) -> list[bool]:
    """For every followed object and later frame that proposes it, whether it was picked."""
    segmenter = make("dmn_aoa", changes=CHANGES, proposals=source)
    if exact:
        channels = segmenter.method.config.base_channels
        segmenter.method.base = Signatures(clip.masks, channels, clip.seed)
    noted = stand_aside(segmenter)
    first = np.where(clip.masks[0] <= FOLLOWED, clip.masks[0], 0)
    correct = []
    for index, frame in enumerate(clip.frames):
        result = segmenter.step(frame, None if index else first)
        assert result is not None
        if index == 0:
            continue
        rows = noted[-1].assignment
        for slot, object_id in enumerate(result.ids):
            if object_id in owners[index]:
                picked = owners[index][int(rows[slot].argmax())]
                correct.append(picked == object_id)
                if exact and picked == object_id:  # and the coarse mask is that proposal's
                    mask, own = clip.masks[index] == object_id, result.numpy() == object_id
                    assert (mask & own).sum() > 0.6 * (mask | own).sum()
    return correct


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.slow
def test_the_right_proposal_for_every_object_in_every_frame(seed: int, tmp_path: Path) -> None:
    """Of a clip with five objects, two of them distractors, proposed in another order each frame;
    beside it, printed (pytest -s), what the random network picks by its own features."""
    clip = make_clip(CONFIG, seed)
    proposals, owners = exact_proposals(clip.masks, seed)
    write_proposals(tmp_path / "exact.json", proposals)
    source = FileSource(tmp_path / "exact.json")
    assert len({tuple(ids) for ids in owners}) > 5  # the order does change
    exact = hits(clip, source, owners, exact=True)
    chance = hits(clip, source, owners, exact=False)
    print(
        f"clip {seed}: {sum(exact)} of {len(exact)} with exact features, "
        f"{sum(chance)} of {len(chance)} with the random network's"
    )
    assert len(exact) >= 20
    assert all(exact)


@pytest.mark.slow
def test_an_object_that_vanishes_keeps_its_memory_and_is_found_again() -> None:
    """Object 2 is absent in frames 3 to 6 and reappears elsewhere."""
    apart = dataclasses.replace(CONFIG, height=192, width=320, size=(0.01, 0.02))
    clip = make_clip(apart, 3)
    masks = np.where(clip.masks <= FOLLOWED, clip.masks, 0)
    masks[3:7][masks[3:7] == 2] = 0
    clip = Clip(clip.frames, masks, 3)
    proposals, owners = exact_proposals(masks, 3)
    assert [2 in ids for ids in owners] == [index not in range(3, 7) for index in range(10)]
    segmenter = make(
        "dmn_aoa", changes=CHANGES, proposals=lambda frame, frame_index: proposals[frame_index]
    )
    segmenter.method.base = Signatures(masks, segmenter.method.config.base_channels, 3)
    noted = stand_aside(segmenter)
    history: list[tuple[int, Tensor, Tensor]] = []
    for index, frame in enumerate(clip.frames):
        result = segmenter.step(frame, None if index else masks[0])
        state = stream_state(segmenter)
        length = int(state.memory.length[1])
        kept = positions(state.memory.read(2), 1)[0].clone()
        history.append((length, kept, state.boxes[1].clone()))
        label_ids = set(np.unique(result.numpy())) - {0}
        assert label_ids == set(owners[index])
        if index >= 7:
            picked = [owners[index][int(row.argmax())] for row in noted[-1].assignment]
            assert picked == [1, 2, 3]
    for index in range(3, 7):
        assert history[index][0] == history[2][0]
        assert torch.equal(history[index][1], history[2][1])
        assert torch.equal(history[index][2], history[2][2])
    assert not torch.equal(history[7][2], history[2][2])
