"""GIEL: against its transcription, and with many objects and long streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import follow, make, tiny_config
from giel_transcription import support_set, transcribe
from torch import Tensor, nn

import vosengine.models.giel.network as giel_module
from vosengine.config import GIELConfig
from vosengine.models.giel.network import GIEL, label_planes, product
from vosengine.models.giel.support import Encoded, Support
from vosengine.policies.support import choose_support
from vosengine.training.synthetic import Clip
from vosengine.types import Geometry, Masks
from vosengine.zoo.registry import build

SIZE = 48, 64
GEOMETRY = Geometry.fit(SIZE, size=None, multiple=16)
CELLS = 12


def tiny(**changes: Any) -> GIEL:
    """A tiny network whose norms are not the identity, and whose temporal attention chooses."""
    method = build("giel", tiny_config("giel", **changes))
    assert isinstance(method, GIEL)
    method.attention.mix2.bias += 1
    method.attention.weigh.weight *= 1000
    generator = torch.Generator().manual_seed(1)
    for layer in method.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(0.1 * torch.randn(layer.num_features, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=generator))
    return method


def frames_of(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, *SIZE, generator=generator).to(dtype) for _ in range(count)]


def masks_of(objects: int, seed: int, aux: Any = None) -> Masks:
    """Blobs of every object and of the background; all prompted if there is no aux."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1 + objects, 1, 6, 8, generator=generator)
    planes = nn.functional.interpolate(coarse, SIZE, mode="bilinear")[:, 0]
    prompted = () if aux is not None else tuple(range(objects))
    return Masks((8 * planes).softmax(dim=0), prompted, aux)


class Story(list[Any]):
    """The network's inputs for the transcription: labels and union masks by frame."""

    def __init__(self, method: GIEL, frames: list[Tensor], objects: int) -> None:
        super().__init__()
        self.state = method.start(GEOMETRY, objects + 1)
        self.labels: list[np.ndarray] = []
        self.unions: list[np.ndarray] = []
        for index, frame in enumerate(frames):
            seen = [method.encode(frame)]
            aux = method.segment(seen, self.state).aux if index else None
            masks = masks_of(objects, index, aux)
            labels = masks.probabilities.argmax(dim=0)
            union = labels > 0
            if aux is not None and method.config.support_mask == "global":
                union = (
                    nn.functional.interpolate(
                        aux.saliency[:, None], scale_factor=4, mode="bilinear"
                    )[0, 0].sigmoid()
                    > 0.5
                )
            method.remember(seen, masks, self.state)
            self.labels.append(labels.numpy())
            self.unions.append(union.numpy())


VARIANTS: list[dict[str, Any]] = [
    {},
    {"variant": "fast"},
    {"temporal": "premul"},
    {"temporal": "postmul"},
    {"temporal": "none"},
    {"heads": "separate", "decoders": "shared"},
    {"product": False},
    {"scaled": False, "label_output": "sigmoid", "variant": "fast"},
    {"support_mask": "instances", "sampling": "literal"},
    {"backbone": "resnet50", "width": 4},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ", ".join(map(str, c.values())) or "-")
@torch.no_grad()
@pytest.mark.slow
def test_giel_is_its_transcription(changes: dict[str, Any]) -> None:
    """After nine frames, when support is sampled: F_g, and the logits of every object."""
    method = tiny(**changes).double()
    config = method.config
    frames = frames_of(10, torch.float64)
    story = Story(method, frames[:9], 3)
    result = method.segment([method.encode(frames[9])], story.state)
    wanted, parts = transcribe(
        method.state_dict(),
        frames,
        story.labels,
        story.unions,
        support_set(9, config.support, literal=config.sampling == "literal"),
        variant=config.variant,
        temporal=config.temporal,
        scale=None if config.scaled else 1.0,
        product=config.product,
        label_activation=config.label_output,
    )
    assert wanted.std() > 0.05
    assert parts.frame_weights.std() > 0.01 or config.temporal == "none"
    torch.testing.assert_close(result.aux.saliency[0], parts.global_map, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.logits, wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_an_object_added_later_is_nowhere_in_the_frames_before() -> None:
    method = tiny().double()
    frames = frames_of(7, torch.float64)
    story = Story(method, frames[:5], 2)
    seen = [method.encode(frames[5])]
    aux = method.segment(seen, story.state).aux
    masks = Masks(masks_of(3, 5).probabilities, (2,), aux)  # the third is given in frame 5
    method.remember(seen, masks, story.state)
    logits = method.segment([method.encode(frames[6])], story.state).logits
    labels = masks.probabilities.argmax(dim=0).numpy()
    assert labels.max() == 3
    chosen = sorted(frame for frame, _ in story.state.plan.places)
    wanted, _ = transcribe(
        method.state_dict(),
        frames,
        [*story.labels, labels],
        [*story.unions, labels > 0],  # what the caller gave counts, not what was predicted
        chosen,
    )
    assert 5 in chosen
    torch.testing.assert_close(logits, wanted, rtol=1e-9, atol=1e-9)


# Many objects in one pass


@pytest.mark.parametrize("variant", ["full", "fast"])
@pytest.mark.parametrize("objects", [7, 13])
@torch.no_grad()
def test_how_many_are_decoded_at_a_time_does_not_matter(objects: int, variant: str) -> None:
    logits = []
    for group in (1, 6, 100):
        method = tiny(group=group, variant=variant)
        frames = frames_of(3)
        story = Story(method, frames[:2], objects)
        logits.append(method.segment([method.encode(frames[2])], story.state).logits)
    assert logits[0].shape == (objects, *GEOMETRY.cells(4))
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objects", [1, 7, 13])
@torch.no_grad()
def test_what_all_objects_share_is_computed_once(
    objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One affinity, one pass of each encoder, one global decoder and skips once a frame."""
    method, frames = tiny(), frames_of(4)
    calls: dict[str, int] = {}

    def count(name: str) -> None:
        calls[name] = calls.get(name, 0) + 1

    parts = ("query_encoder", "support_encoder", "global_decoder", "instance_decoder.skip2")
    for name in parts:
        module = method.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: count(name))
    real = giel_module.read_memory

    def spy(*args: Tensor, **options: Any) -> Tensor:
        count("affinity")
        assert args[2].shape[1] == 1 + objects
        return real(*args, **options)

    monkeypatch.setattr(giel_module, "read_memory", spy)
    state = method.start(GEOMETRY, objects)
    aux = None
    for index, frame in enumerate(frames):
        seen = [method.encode(frame)]
        if index:
            aux = method.segment(seen, state).aux
        method.remember(seen, masks_of(objects, index, aux), state)
    assert calls == {
        "query_encoder": 4,
        "support_encoder": 4,
        "instance_decoder.skip2": 4,
        "global_decoder": 3,
        "affinity": 3,
    }


def test_the_three_planes_of_a_label_image() -> None:
    labels = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8)
    planes = label_planes(labels, torch.tensor((1, 2)))
    assert planes.int().tolist() == [
        [[[0, 0], [1, 0]], [[0, 1], [0, 1]], [[1, 0], [0, 0]]],
        [[[0, 0], [0, 1]], [[0, 1], [1, 0]], [[1, 0], [0, 0]]],
    ]


def test_the_product_of_two_probabilities_as_a_logit() -> None:
    a = torch.tensor([[[-3.0, 0.0, 2.0, 80.0, -80.0, 80.0]]])
    b = torch.tensor([[[1.0, 0.0, 2.0, 80.0, 80.0, -80.0]]])
    p = a.double().sigmoid() * b.double().sigmoid()
    result = product(a, b).double()
    torch.testing.assert_close(result.sigmoid(), p, rtol=1e-6, atol=1e-12)
    assert result.isfinite().all()
    assert (product(a.half(), b.half()).isfinite()).all()


# The support


def test_the_support_is_the_papers_while_all_frames_are_stored() -> None:
    for now in range(1, 60):
        for size in (3, 5, 7):
            for literal in (False, True):
                support = choose_support(list(range(now)), now, size, literal=literal)
                assert support == support_set(now, size, literal)


def test_corrected_frames_take_the_place_of_centres() -> None:
    assert choose_support(list(range(40)), 40, 5) == [0, 7, 20, 32, 39]
    assert choose_support(list(range(40)), 40, 5, prompted=(12, 30)) == [0, 12, 20, 30, 39]


def test_a_centre_that_is_gone_is_the_nearest_that_is_left() -> None:
    assert choose_support([0, 4, 8, 16, 24, 32, 39], 40, 5) == [0, 8, 16, 32, 39]


class CountedValues:
    """Stub of the label encoder that counts its calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, value: Tensor, labels: Tensor, slots: range) -> Tensor:
        self.asked.append(tuple(slots))
        share = torch.stack([(labels == 1 + slot).float().mean() for slot in slots])
        return value * share[:, None, None]


def started(**changes: Any) -> tuple[Support, CountedValues]:
    config = tiny_config("giel", **changes)
    assert isinstance(config, GIELConfig)
    values = CountedValues()
    return Support(config, (3, 4), SIZE, 4, torch.empty(0), values), values


def encoded(number: int, labels: int = 1) -> Encoded:
    """A unique frame, with object `labels` in its upper half."""
    image = torch.zeros(SIZE, dtype=torch.uint8)
    image[:24] = labels
    return Encoded(
        torch.full((CELLS, 8), float(number)),
        torch.full((CELLS, 16), float(number)),
        image,
        torch.full((8,), float(number)),
    )


@pytest.mark.usefixtures("poisoned_memory")
def test_the_store_is_bounded_however_long_the_stream_is() -> None:
    state, values = started(stored_frames=12)
    nbytes = state.nbytes
    for number in range(500):
        state.write(encoded(number), 1, prompted=number in (0, 7, 201, 333))
        reading = state.read()
        assert len(state.plan.rows) <= 12
        assert reading.keys.shape[0] == min(5, number + 1)
        numbers = sorted(reading.keys[:, 0, 0].int().tolist())
        assert numbers[0] == 0
        assert numbers[-1] == number
        assert len(set(numbers)) == len(numbers)
        assert reading.keys[0, 0, 0] == 0
        assert torch.equal(reading.values[0, :, 0, 0], reading.keys[:, 0, 0])
        assert torch.equal(reading.values[1], 0.5 * reading.values[0])
        assert torch.equal(reading.summaries[:, 0], reading.keys[:, 0, 0])
        for corrected in [n for n in (7, 201, 333) if n <= number][-2:]:
            assert corrected in state.plan.rows
            assert corrected in numbers
    assert state.nbytes == nbytes
    stored = sorted(set(state.plan.rows) - {0, 201, 333, 499})
    gaps = np.diff(stored)
    assert gaps.min() == gaps.max()  # what is left is spread evenly
    assert len(values.asked) < 1.5 * 500  # the frame before, and now and then a centre


def test_what_stays_in_its_place_is_not_computed_anew() -> None:
    state, values = started()
    for number in range(6):
        state.write(encoded(number), 2, prompted=number == 0)
    before = len(values.asked)
    state.write(encoded(6), 2, prompted=False)  # frames 0, 1, 3, 4, 5 -> 0, 1, 3, 5, 6
    assert sorted(frame for frame, _ in state.plan.places) == [0, 1, 3, 5, 6]
    assert values.asked[before:] == [(0, 1)]
    state.write(encoded(7), 3, prompted=True)  # one object more, and 0, 2, 4, 6, 7
    assert values.asked[before + 1 :].count((2,)) == 2
    assert values.asked[before + 1 :].count((0, 1, 2)) == 3


@torch.no_grad()
def test_a_forgotten_object_is_background_in_all_that_was_seen() -> None:
    """It remains only in the support encoder's union of all objects."""
    method, frames = tiny().double(), frames_of(8, torch.float64)
    for gone, left in ((0, [2, 1]), (2, [0, 1])):
        story = Story(method, frames[:7], 3)
        story.state.forget(gone)
        logits = method.segment([method.encode(frames[7])], story.state).logits
        table = np.zeros(4, np.uint8)
        table[[1 + slot for slot in left]] = [1, 2]
        labels = [table[image] for image in story.labels]
        support = support_set(7)
        wanted, _ = transcribe(method.state_dict(), frames, labels, story.unions, support)
        torch.testing.assert_close(logits, wanted, rtol=1e-9, atol=1e-9)


def test_when_the_last_object_is_removed_the_next_mask_begins_anew(clip: Clip) -> None:
    used, fresh = make("giel"), make("giel")
    follow(used, clip.frames[:4], clip.masks[0])
    for object_id in (1, 2):
        used.remove(object_id)
    assert used.step(clip.frames[4]).ids == ()
    for segmenter in (used, fresh):
        segmenter.step(clip.frames[5], clip.masks[5])
        segmenter.step(clip.frames[6])
    one, other = (segmenter.step(clip.frames[7]).probabilities for segmenter in (used, fresh))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_an_object_that_was_long_gone_is_still_known_from_its_first_frame() -> None:
    """After forty frames without it, the frame that showed it is read, with its label."""
    state, _ = started(stored_frames=12)
    state.write(encoded(0, labels=2), 2, prompted=True)
    for number in range(1, 41):
        state.write(encoded(number, labels=1), 2, prompted=False)
    reading = state.read()
    assert reading.values[2, 0].eq(0).all()  # frame 0 has the value 0: see below
    state.store.value[state.plan.rows[0]] = 7.0
    state.forget(0)  # everything is encoded anew; object 2 takes slot 0
    reading = state.read()
    assert torch.equal(reading.values[1, 0], torch.full((CELLS, 16), 3.5))
    assert reading.values[1, 1:].eq(0).all()
