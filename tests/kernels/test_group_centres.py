"""`group_centres` on every backend and instruction set, against brute force in loops."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import op_backends
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vosengine.kernels import (
    Op,
    group_centres,
    use_backend,
)
from vosengine.kernels.extension import missing
from vosengine.kernels.group_centres.cases import CASES, UNDECIDED, undecided
from vosengine.kernels.parity import check_parity, widened
from vosengine.training.synthetic import ClipConfig, make_clip

Arguments = dict[str, Any]
Groups = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

needs_extension = pytest.mark.skipif(missing is not None, reason=str(missing))
needs_emulation = pytest.mark.skipif(
    "cuda forwards" not in op_backends.names_of(group_centres), reason="needs CUDA on the CPU"
)


@pytest.fixture(params=op_backends.names_of(group_centres))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def maps(heat: Any, offset: Any = 0.0, foreground: Any = True) -> Arguments:
    """Return arguments for one image: heat [H, W]; offsets and foreground are broadcast."""
    heatmap = torch.as_tensor(heat, dtype=torch.float32)[None]
    shape = heatmap.shape[1:]
    return {
        "heatmap": heatmap,
        "offset": torch.as_tensor(offset, dtype=torch.float32).expand(1, 2, *shape).clone(),
        "foreground": torch.as_tensor(foreground).expand(1, *shape).clone(),
    }


def draw(height: int, width: int, seed: int = 0) -> Arguments:
    """Random heat, offsets in eighths of a pixel, so that float32 makes no error."""
    generator = torch.Generator().manual_seed(seed)
    heat = torch.rand(height, width, generator=generator)
    offset = torch.randint(-40, 41, (2, height, width), generator=generator) / 8
    return maps(heat, offset, torch.rand(height, width, generator=generator) < 0.6)


def positions_of(centres: torch.Tensor) -> list[tuple[int, int]]:
    """Return the centres of the first image, without empty entries."""
    return [(y, x) for y, x in centres[0].tolist() if y >= 0]


def peaks_by_hand(
    heat: np.ndarray, threshold: float, window: int
) -> list[tuple[float, tuple[int, int]]]:
    """(heat, (y, x)) of every peak of [H, W], in reading order: the definition, cell by cell."""
    height, width = heat.shape
    radius, peaks = window // 2, []
    for y, x in np.ndindex(height, width):
        here = heat[y, x]
        if not np.isfinite(here) or here <= threshold:
            continue
        leads = True
        for v in range(max(0, y - radius), min(height, y + radius + 1)):
            for u in range(max(0, x - radius), min(width, x + radius + 1)):
                there = heat[v, u]
                if np.isfinite(there) and (there > here or (there == here and (v, u) < (y, x))):
                    leads = False
        if leads:
            peaks.append((float(here), (y, x)))
    return peaks


def by_hand(
    heatmap: torch.Tensor,
    offset: torch.Tensor,
    foreground: torch.Tensor,
    *,
    threshold: float = 0.1,
    window: int = 7,
    limit: int = 20,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, centres, scores and a mask of undecided labels, by float64 loops."""
    batch, height, width = heatmap.shape
    labels = np.zeros((batch, height, width), np.uint8)
    centres, scores = np.full((batch, limit, 2), -1), np.zeros((batch, limit))
    close = np.zeros(labels.shape, bool)
    for b in range(batch):
        peaks = peaks_by_hand(heatmap[b].double().numpy(), threshold, window)
        best = sorted(peaks, key=lambda peak: -peak[0])[:limit]  # a stable sort
        for index, (heat, place) in enumerate(best):
            scores[b, index], centres[b, index] = heat, place
        if not best:
            labels[b] = foreground[b].numpy()
            continue
        places, offsets = centres[b, : len(best)], offset[b].double().numpy()
        for y, x in np.argwhere(foreground[b].numpy()):
            squares = (((y, x) + offsets[:, y, x] - places) ** 2).sum(axis=1)
            labels[b, y, x] = 1 + squares.argmin()  # the first of equal ones
            least, second = np.sort(squares)[[0, min(1, len(best) - 1)]]
            close[b, y, x] = 0 < second - least < UNDECIDED * second
    return labels, centres, scores, close


def assert_by_hand(arguments: Arguments) -> Groups:
    labels, centres, scores = group_centres(**arguments)
    wanted_labels, wanted_centres, wanted_scores, close = by_hand(**arguments)
    assert labels.dtype == torch.uint8 and centres.dtype == torch.int32
    assert scores.dtype == arguments["heatmap"].dtype
    assert np.array_equal(centres.numpy(), wanted_centres)
    assert np.array_equal(scores.double().numpy(), wanted_scores)
    assert not ((labels.numpy() != wanted_labels) & ~close).any()
    return labels, centres, scores


@pytest.mark.parametrize("window", [1, 3, 7, 31])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (37, 1), (9, 16), (13, 35)], ids=str)
def test_follows_the_definition(backend: str, shape: tuple[int, int], window: int) -> None:
    assert_by_hand(draw(*shape) | {"window": window})


HARD = ("several images", "limit 1", "limit 255", "few levels", "many levels",
        "two levels, every cell", "zeros of either sign", "heat at the threshold",
        "negative threshold", "blobs", "crops", "transposed")  # fmt: skip


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in HARD], ids=lambda c: c.name
)
def test_follows_the_definition_in_the_cases(backend: str, case: Any) -> None:
    assert_by_hand(case.arguments())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in HARD], ids=lambda c: c.name
)
def test_reference_follows_the_definition_in_every_dtype(case: Any, dtype: torch.dtype) -> None:
    assert_by_hand(case.arguments(dtype=dtype))


@settings(max_examples=60, deadline=None)
@given(
    heat=st.integers(1, 9).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(-1, 3), min_size=width, max_size=width), min_size=1, max_size=9
        )
    ),
    window=st.sampled_from((1, 3, 5)),
    limit=st.integers(1, 6),
    threshold=st.sampled_from((-2.0, -1.0, 0.0, 1.5)),
    shift=st.tuples(st.integers(-4, 4), st.integers(-4, 4)),
)
@pytest.mark.slow
def test_ties_everywhere(
    heat: list[list[int]], window: int, limit: int, threshold: float, shift: tuple[int, int]
) -> None:
    arguments = maps(heat, torch.tensor(shift)[:, None, None])
    arguments |= {"window": window, "limit": limit, "threshold": threshold}
    expected = group_centres.reference(**arguments)
    assert_by_hand(arguments)
    for got, wanted in zip(group_centres(**arguments), expected, strict=True):
        assert torch.equal(got, wanted)


def test_a_plateau_has_one_centre(backend: str) -> None:
    heat = torch.zeros(12, 20)
    heat[2:5, 3:7] = 1
    heat[8:10, 12:19] = 0.5  # as wide as the window: its first cell sees all of it
    _, centres, scores = assert_by_hand(maps(heat))
    assert positions_of(centres) == [(2, 3), (8, 12)]
    assert scores[0, :3].tolist() == [1, 0.5, 0]
    # One that is longer than the window: each later cell is behind another that its window shows.
    assert positions_of(group_centres(**maps(torch.ones(1, 50)), window=3)[1]) == [(0, 0)]


def test_equal_peaks_come_in_reading_order(backend: str) -> None:
    heat = torch.zeros(9, 30)
    for y, x in ((7, 2), (1, 25), (1, 5), (7, 20)):
        heat[y, x] = 0.5
    heat[4, 14] = 0.75
    labels, centres, _ = assert_by_hand(maps(heat, foreground=heat > 0))
    assert positions_of(centres) == [(4, 14), (1, 5), (1, 25), (7, 2), (7, 20)]
    assert [int(labels[0, y, x]) for y, x in positions_of(centres)] == [1, 2, 3, 4, 5]
    assert positions_of(group_centres(**maps(heat), limit=3)[1]) == [(4, 14), (1, 5), (1, 25)]


@pytest.mark.parametrize("corner", [(0, 0), (0, 17), (10, 0), (10, 17), (0, 8), (5, 17)], ids=str)
def test_a_centre_may_lie_on_the_border(backend: str, corner: tuple[int, int]) -> None:
    heat = torch.full((11, 18), -3.0)  # beyond the frame is lower still
    heat[corner] = -1
    labels, centres, _ = assert_by_hand(maps(heat) | {"threshold": -2.0})
    assert positions_of(centres) == [corner]
    assert (labels == 1).all()


def test_the_highest_twenty_of_fifty(backend: str) -> None:
    heat = torch.zeros(50, 100)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3)).tolist()
    places = [(10 * (i // 10) + 4, 10 * (i % 10) + 5) for i in range(50)]
    for rank, index in enumerate(order):
        heat[places[index]] = 1 - rank / 100
    labels, centres, scores = assert_by_hand(maps(heat, foreground=heat > 0))
    assert positions_of(centres) == [places[index] for index in order[:20]]
    torch.testing.assert_close(scores[0], 1 - torch.arange(20) / 100)
    assert (labels > 0).sum() == 50 and labels.max() == 20


def test_foreground_without_a_centre_is_one_group(backend: str) -> None:
    """Per image: the other image has a centre."""
    one, other = draw(9, 21, seed=1), draw(9, 21, seed=2)
    both = {name: torch.cat((one[name], other[name])) for name in one}
    both["heatmap"][0] = 0.05
    labels, centres, scores = assert_by_hand(both)
    assert torch.equal(labels[0] == 1, both["foreground"][0])
    assert (centres[0] == -1).all() and (scores[0] == 0).all()
    assert labels[1].max() > 1
    labels, centres, _ = assert_by_hand(both | {"threshold": 2.0})
    assert torch.equal(labels == 1, both["foreground"]) and (centres == -1).all()


def test_without_foreground_there_are_centres_and_no_labels(backend: str) -> None:
    labels, centres, _ = group_centres(**draw(9, 21) | {"foreground": torch.zeros(1, 9, 21) > 0})
    assert not labels.any() and positions_of(centres)


def test_the_threshold_is_compared_exactly(backend: str) -> None:
    """float32's 0.1 is greater than 0.1, and the float before it is not."""
    above = np.float32(0.1)
    below = np.nextafter(above, np.float32(0))
    assert positions_of(group_centres(**maps([[above]]))[1]) == [(0, 0)]
    assert positions_of(group_centres(**maps([[below]]))[1]) == []
    assert positions_of(group_centres(**maps([[0.5]]), threshold=0.5)[1]) == []
    for threshold, count in ((1e300, 0), (np.inf, 0), (-1e300, 1), (-np.inf, 1)):
        assert len(positions_of(group_centres(**maps([[0.5]]), threshold=threshold)[1])) == count


def test_heat_that_is_not_finite_neither_is_a_centre_nor_hides_one(backend: str) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        for beside in ((4, 9), (4, 11), (3, 10), (5, 10), (1, 7), (7, 13)):
            heat = torch.zeros(9, 21)
            heat[4, 10], heat[beside] = 0.5, value
            assert positions_of(group_centres(**maps(heat))[1]) == [(4, 10)]
    everything = maps(torch.full((9, 21), torch.nan)) | {"threshold": -1.0}
    assert positions_of(group_centres(**everything)[1]) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
@pytest.mark.parametrize("axis", [0, 1])
def test_an_offset_that_leads_nowhere_means_the_first_centre(
    backend: str, axis: int, value: float
) -> None:
    heat = torch.zeros(9, 40)
    heat[4, 30], heat[4, 5] = 0.9, 0.6
    arguments = maps(heat)
    arguments["offset"][0, axis, 2, 3] = value
    labels, _, _ = group_centres(**arguments)
    wanted, _, _ = group_centres(**maps(heat))
    assert wanted[0, 2, 3] == 2
    assert labels[0, 2, 3] == 1
    labels[0, 2, 3] = 2
    assert torch.equal(labels, wanted)


def test_an_equal_distance_goes_to_the_lower_index(backend: str) -> None:
    heat = torch.zeros(3, 11)
    heat[1, 0], heat[1, 10] = 0.5, 0.9
    labels, _, _ = assert_by_hand(maps(heat))
    assert labels[0, 0].tolist() == [2] * 5 + [1] * 6  # the middle one is 5 from either


def test_offsets_are_y_then_x(backend: str) -> None:
    heat = torch.zeros(30, 30)
    heat[25, 4], heat[4, 25] = 0.9, 0.8
    pixel = torch.zeros(30, 30, dtype=torch.bool)
    pixel[4, 4] = True
    down = torch.tensor([20.0, 0.0])[:, None, None]
    assert group_centres(**maps(heat, down, pixel))[0][0, 4, 4] == 1
    assert group_centres(**maps(heat, down.flip(0), pixel))[0][0, 4, 4] == 2


def test_exact_offsets_give_the_masks_back(backend: str) -> None:
    clip = make_clip(ClipConfig(frames=3, height=65, width=99, objects=(4, 4)), seed=5)
    y, x = torch.meshgrid(torch.arange(65.0), torch.arange(99.0), indexing="ij")
    for mask in torch.from_numpy(clip.masks):
        heat, offset = torch.zeros(65, 99), torch.zeros(2, 65, 99)
        ids = [i for i in range(1, 5) if (mask == i).any()]
        assert len(ids) >= 3
        for i in ids:
            centroid = torch.stack((y[mask == i].mean(), x[mask == i].mean()))
            away = centroid[:, None, None] - torch.stack((y, x))
            heat = torch.maximum(heat, torch.exp(-away.square().sum(dim=0) / 200))
            offset = torch.where(mask == i, away, offset)
        labels, centres, _ = group_centres(**maps(heat, offset, mask > 0))
        assert len(positions_of(centres)) == len(ids)
        names = {i: set(labels[0][mask == i].tolist()) for i in (0, *ids)}
        assert names[0] == {0}
        assert sorted(map(list, names.values())) == [[n] for n in range(len(ids) + 1)]


def test_strides_do_not_matter_and_results_are_contiguous(backend: str) -> None:
    wide = {name: torch.cat([draw(40, 30, seed=s)[name] for s in (1, 2)]) for name in draw(1, 1)}
    views = {name: tensor.transpose(-1, -2)[..., 2:-3, 1::2] for name, tensor in wide.items()}
    copies = {name: tensor.contiguous() for name, tensor in views.items()}
    for got, wanted in zip(group_centres(**views), group_centres(**copies), strict=True):
        assert got.is_contiguous() and torch.equal(got, wanted)


def test_parity_leaves_open_what_rounding_may_decide_and_nothing_else() -> None:
    """A tie's label may be the other one; any other label and every centre must agree."""
    case = next(case for case in CASES if case.name == "few levels")
    arguments = case.arguments()
    exact = group_centres.reference(**widened(arguments))
    open_labels, *decided = undecided(arguments, exact)
    assert decided == [None, None]
    tied = tuple(open_labels.nonzero()[0])
    clear = tuple((arguments["foreground"] & ~open_labels).nonzero()[0])

    def verdict(output: int, place: tuple[Any, ...]) -> str | None:
        changed = [x.clone() for x in group_centres.reference(**arguments)]
        changed[output][place] += 1
        stand_in = SimpleNamespace(unsupported=lambda **_: None, run=lambda **_: tuple(changed))
        posing = Op(group_centres.reference, group_centres.contract, cpu=stand_in)
        return check_parity(posing, case, "cpu").fault

    assert verdict(0, tied) is None
    assert verdict(0, clear) == f"output 0: 1 of {2 * 13 * 21} integers differ"
    assert verdict(1, (0, 0, 1)) == "output 1: 1 of 80 integers differ"
    assert "output 2: error" in str(verdict(2, (0, 0)))


@needs_extension
def test_the_number_of_threads_changes_nothing() -> None:
    arguments = next(case for case in CASES if case.bench).arguments()
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(group_centres(**arguments))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@needs_emulation
def test_the_order_of_threads_changes_nothing() -> None:
    """Also if there are more peaks than are ranked at a time."""
    for name in ("limit 255", "several parts", "rising heat, limit 255"):
        arguments = next(case for case in CASES if case.name == name).arguments()
        results = []
        for order in (*op_backends.ORDERS, "forwards"):
            with op_backends.emulated_cuda(order), use_backend("cuda"):
                results.append(group_centres(**arguments))
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
