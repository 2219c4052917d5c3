"""`pool_regions` on every backend and instruction set, against loops and ONNX's RoiAlign."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import product
from math import floor, isfinite
from typing import Any

import numpy as np
import onnx
import onnxruntime
import op_backends
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vosengine.kernels import pool_regions
from vosengine.kernels.cases import Case
from vosengine.kernels.extension import missing
from vosengine.kernels.pool_regions.cases import CASES, draw_boxes

Arguments = dict[str, Any]

needs_extension = pytest.mark.skipif(missing is not None, reason=str(missing))
needs_emulation = pytest.mark.skipif(
    "cuda forwards" not in op_backends.names_of(pool_regions), reason="needs CUDA on the CPU"
)
either_alignment = pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "not aligned"])


@pytest.fixture(params=op_backends.names_of(pool_regions))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_level(maps: torch.Tensor, *boxes: tuple[float, ...], **options: Any) -> Arguments:
    return {"levels": (maps,), "boxes": torch.tensor(boxes), "strides": (1,), **options}


def whole() -> Arguments:
    """Return a call with all arguments."""
    return {
        "levels": (draw(2, 5, 15, 23, seed=1), draw(2, 3, 8, 12, seed=2)),
        "boxes": draw_boxes(torch.Generator().manual_seed(3), 6, 60, 92, (4, 90)),
        "strides": (4, 8),
        "frame": torch.tensor([0, 1, 1, 0, 0, 1], dtype=torch.int32),
        "planes": draw(6, 30, 46, seed=4),
        "plane_stride": 2,
    }


def samples(
    start: float, end: float, stride: int, count: int, aligned: bool, cells: int
) -> Iterator[tuple[int, int, int, float]]:
    """Yield index, both cells and the weight of the second, for every valid sample of one axis.

    Positions are exact fractions.
    """
    first, extent = Fraction(start) / stride, (Fraction(end) - Fraction(start)) / stride
    if aligned:
        first -= Fraction(1, 2)
    else:
        extent = max(extent, Fraction(1))
    for k in range(count):
        position = first + extent * Fraction(2 * k + 1, 2 * count)
        if -1 <= position <= cells:
            position = min(max(position, Fraction(0)), Fraction(cells - 1))
            low = floor(position)
            yield k, low, min(low + 1, cells - 1), float(position - low)


def by_hand(
    levels: tuple[torch.Tensor, ...],
    boxes: torch.Tensor,
    *,
    strides: tuple[int, ...],
    frame: torch.Tensor | None = None,
    planes: torch.Tensor | None = None,
    plane_stride: int = 1,
    size: int = 14,
    sampling: int = 2,
    aligned: bool = True,
) -> torch.Tensor:
    """The docstring sample by sample, in float64, the positions exact."""
    channels = sum(level.shape[1] for level in levels) + (planes is not None)
    out = np.zeros((len(boxes), channels, size, size))
    for r, box in enumerate(boxes.tolist()):
        image = 0 if frame is None else min(max(int(frame[r]), 0), len(levels[0]) - 1)
        sources = [(lv[image], s) for lv, s in zip(levels, strides, strict=True)]
        if planes is not None:
            sources.append((planes[r : r + 1], plane_stride))
        done = 0
        for maps, stride in sources:
            into = out[r, done : done + len(maps)]
            done += len(maps)
            if not all(isfinite(side) for side in box):
                continue
            cells = maps.double().numpy()
            count, shape = size * sampling, cells.shape[1:]
            ys = list(samples(box[1], box[3], stride, count, aligned, shape[0]))
            xs = list(samples(box[0], box[2], stride, count, aligned, shape[1]))
            for (k, top, below, down), (m, left, beside, right) in product(ys, xs):
                upper = (1 - right) * cells[:, top, left] + right * cells[:, top, beside]
                lower = (1 - right) * cells[:, below, left] + right * cells[:, below, beside]
                value = (1 - down) * upper + down * lower
                into[:, k // sampling, m // sampling] += value / sampling**2
    return torch.from_numpy(out)


@cache
def case_by_hand(name: str) -> torch.Tensor:
    """Return the result of a case, computed once for all backends."""
    return by_hand(**next(case for case in CASES if case.name == name).arguments())


def by_onnxruntime(
    level: torch.Tensor,
    boxes: torch.Tensor,
    frame: torch.Tensor,
    *,
    stride: int,
    size: int,
    sampling: int,
    aligned: bool,
) -> torch.Tensor:
    """ONNX's RoiAlign-16 in float64."""
    double, whole = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64
    node = onnx.helper.make_node(
        "RoiAlign",
        ["maps", "boxes", "frame"],
        ["out"],
        mode="avg",
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        output_height=size,
        output_width=size,
        sampling_ratio=sampling,
        spatial_scale=1 / stride,
    )
    inputs = [
        onnx.helper.make_tensor_value_info(name, dtype, None)
        for name, dtype in (("maps", double), ("boxes", double), ("frame", whole))
    ]
    output = onnx.helper.make_tensor_value_info("out", double, None)
    graph = onnx.helper.make_graph([node], "roi_align", inputs, [output])
    opset = onnx.helper.make_opsetid("", 16)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {
        "maps": level.double().numpy(),
        "boxes": boxes.double().numpy(),
        "frame": frame.long().numpy(),
    }
    return torch.from_numpy(session.run(None, feeds)[0])


def assert_matches(arguments: Arguments, truth: torch.Tensor) -> None:
    plain = pool_regions.reference(**arguments)
    op_backends.assert_near(pool_regions(**arguments), plain, truth)


@pytest.mark.parametrize("case", [c for c in CASES if not c.bench], ids=lambda case: case.name)
def test_follows_the_definition(backend: str, case: Case) -> None:
    assert_matches(case.arguments(), case_by_hand(case.name))


@either_alignment
@pytest.mark.parametrize("sampling", [1, 2, 3])
@pytest.mark.parametrize(("size", "stride"), [(7, 4), (14, 8), (3, 16)])
def test_is_onnxs_roi_align(
    backend: str, size: int, stride: int, sampling: int, aligned: bool
) -> None:
    generator = torch.Generator().manual_seed(size + sampling)
    level = draw(2, 4, 13, 21)
    boxes = draw_boxes(generator, 8, 13 * stride, 21 * stride, (0.5 * stride, 30 * stride))
    frame = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.int32)
    options = {"size": size, "sampling": sampling, "aligned": aligned}
    truth = by_onnxruntime(level, boxes, frame, stride=stride, **options)
    assert_matches(
        {"levels": (level,), "boxes": boxes, "strides": (stride,), "frame": frame, **options}, truth
    )


SIDES = st.integers(-60, 200).map(lambda eighths: eighths / 8)  # on a map of 9 x 11 pixels or cells
BOXES = st.tuples(SIDES, SIDES, SIDES, SIDES)
ODD_BOXES = st.tuples(*(st.floats(allow_subnormal=False, width=32) for _ in range(4)))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    boxes=st.lists(BOXES | ODD_BOXES, min_size=1, max_size=4),
    stride=st.sampled_from([1, 2, 4]),
    size=st.integers(1, 9),
    sampling=st.integers(1, 3),
    aligned=st.booleans(),
)
@pytest.mark.slow
def test_any_box(
    backend: str,
    boxes: list[tuple[float, ...]],
    stride: int,
    size: int,
    sampling: int,
    aligned: bool,
) -> None:
    """Inside, outside, empty, reversed, huge, not finite; sides in eighths meet every border."""
    options = {"size": size, "sampling": sampling, "aligned": aligned}
    arguments = one_level(draw(1, 2, 9, 11), *boxes, **options)
    arguments |= {"strides": (stride,), "planes": draw(len(boxes), 12, 7), "plane_stride": 2}
    assert_matches(arguments, by_hand(**arguments))


def test_a_constant_map_gives_the_constant(backend: str) -> None:
    maps = torch.tensor([2.5, -3.0]).view(1, 2, 1, 1).expand(1, 2, 12, 16)
    boxes = [(1.0, 2.0, 15.0, 11.0), (0.0, 0.0, 16.0, 12.0), (3.0, 3.0, 3.5, 9.0)]
    out = pool_regions(**one_level(maps, *boxes))
    torch.testing.assert_close(out[:, 0], torch.full((3, 14, 14), 2.5))
    torch.testing.assert_close(out[:, 1], torch.full((3, 14, 14), -3.0))


@pytest.mark.parametrize("stride", [1, 4, 5])
def test_a_ramp_gives_the_centres_of_the_bins(backend: str, stride: int) -> None:
    """A map of the pixel coordinates of its cell centres gives those of the bin centres."""
    y, x = torch.meshgrid(
        (torch.arange(20.0) + 0.5) * stride, (torch.arange(30.0) + 0.5) * stride, indexing="ij"
    )
    left, top, right, bottom = (stride * side for side in (3.25, 2.5, 27.0, 18.75))
    arguments = one_level(torch.stack((x, y))[None], (left, top, right, bottom), strides=(stride,))
    centres = (torch.arange(14) + 0.5) / 14
    out = pool_regions(**arguments)[0]
    across = left + (right - left) * centres
    torch.testing.assert_close(out[0], across.expand(14, 14), rtol=1e-6, atol=1e-4)
    down = top + (bottom - top) * centres
    torch.testing.assert_close(out[1], down[:, None].expand(14, 14), rtol=1e-6, atol=1e-4)
    arguments["aligned"] = False  # cell (0, 0) at pixel (0, 0): everything half a stride further
    out = pool_regions(**arguments)[0]
    torch.testing.assert_close(out[0], (across + stride / 2).expand(14, 14), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
def test_a_sample_counts_as_far_as_one_cell_beyond_the_border(backend: str, side: str) -> None:
    """A box without area is one point; -1 and H are the last valid ones, of the border's value."""
    maps = 1 + torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(1))
    edges = {
        "top": (3.0, -1.0, 0, 3, -1),
        "bottom": (3.0, 6.0, 5, 3, 1),
        "left": (-1.0, 3.0, 3, 0, -1),
        "right": (8.0, 3.0, 3, 7, 1),
    }
    x, y, row, column, outwards = edges[side]
    for step, counts in ((0.0, True), (2.0**-18, False)):
        dx, dy = (outwards * step, 0) if side in ("left", "right") else (0, outwards * step)
        box = (x + 0.5 + dx, y + 0.5 + dy) * 2
        out = pool_regions(**one_level(maps, box, size=1, sampling=1))
        assert out.item() == (maps[0, 0, row, column].item() if counts else 0)


def test_levels_and_planes_are_pooled_each_by_itself(backend: str) -> None:
    arguments = whole()
    out = pool_regions(**arguments)
    assert out.shape == (6, 9, 14, 14)
    boxes, frame = arguments["boxes"], arguments["frame"]
    for level, stride, channels in (
        (arguments["levels"][0], 4, slice(0, 5)),
        (arguments["levels"][1], 8, slice(5, 8)),
    ):
        alone = pool_regions((level,), boxes, strides=(stride,), frame=frame)
        torch.testing.assert_close(out[:, channels], alone)
    for r, plane in enumerate(arguments["planes"]):
        alone = pool_regions((plane[None, None],), boxes[r : r + 1], strides=(2,))
        torch.testing.assert_close(out[r, 8:], alone[0])


def test_every_region_is_read_in_its_own_frame(backend: str) -> None:
    level = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    frame = torch.tensor([2, 0, 1, -5, 99], dtype=torch.int32)
    boxes = [(1.0, 1.0, 6.0, 7.0)] * 5
    out = pool_regions(**one_level(level, *boxes, frame=frame))
    assert out[:, 0, 3, 3].tolist() == pytest.approx([2, 0, 1, 0, 2])  # the nearest, if outside


def test_a_reversed_box_is_read_backwards(backend: str) -> None:
    maps, box = draw(1, 3, 12, 16), (2.0, 3.0, 13.0, 11.0)
    straight = pool_regions(**one_level(maps, box))
    backwards = pool_regions(**one_level(maps, (13.0, 11.0, 2.0, 3.0)))
    torch.testing.assert_close(backwards, straight.flip(2, 3))
    one_cell = pool_regions(**one_level(maps, (5.0, 6.0, 6.0, 7.0), aligned=False))
    backwards = pool_regions(**one_level(maps, (5.0, 6.0, 2.0, 3.0), aligned=False))
    torch.testing.assert_close(backwards, one_cell)


@either_alignment
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_a_box_that_is_not_finite_gives_zeros(backend: str, number: float, aligned: bool) -> None:
    boxes = torch.tensor([[2.0, 3.0, 13.0, 11.0]]).repeat(5, 1)
    boxes[range(4), range(4)] = number
    arguments = {"levels": (1 + draw(1, 3, 12, 16).abs(),), "strides": (1,), "aligned": aligned}
    out = pool_regions(boxes=boxes, planes=torch.ones(5, 9, 9), plane_stride=2, **arguments)
    assert torch.equal(out[:4], torch.zeros(4, 4, 14, 14))
    assert (out[4, :3] > 0.5).all()


def test_only_what_a_region_reads_can_spoil_it(backend: str) -> None:
    maps = draw(1, 2, 20, 30)
    maps[0, 0, 15, 25] = torch.nan
    boxes = [(2.0, 2.0, 24.0, 14.0), (20.0, 10.0, 29.0, 19.0), (60.0, 5.0, 90.0, 15.0)]
    out = pool_regions(**one_level(maps, *boxes))
    assert out[0].isfinite().all()
    assert out[1, 0].isnan().any() and out[1, 1].isfinite().all()
    assert torch.equal(out[2], torch.zeros(2, 14, 14))


def test_strides_do_not_matter_and_inputs_stay(backend: str) -> None:
    arguments = whole()
    views = {
        **arguments,
        "levels": (
            arguments["levels"][0].contiguous(memory_format=torch.channels_last),
            torch.nn.functional.pad(arguments["levels"][1], (3, 2, 1, 4))[..., 1:-4, 3:-2],
        ),
        "boxes": arguments["boxes"].T.contiguous().T,
        "frame": arguments["frame"].repeat_interleave(2)[::2],
        "planes": arguments["planes"].mT.contiguous().mT,
    }
    before = [level.clone() for level in views["levels"]]
    out = pool_regions(**views)
    assert out.is_contiguous()
    torch.testing.assert_close(out, pool_regions(**arguments), rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, views["levels"], strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_boxes_may_have_another_dtype(backend: str, dtype: torch.dtype) -> None:
    arguments = whole()
    arguments["boxes"] = arguments["boxes"].half()  # exact in each
    expected = pool_regions(**arguments)
    arguments["boxes"] = arguments["boxes"].to(dtype)
    torch.testing.assert_close(pool_regions(**arguments), expected, rtol=0, atol=0)


def test_as_many_levels_as_a_launch_takes(backend: str) -> None:
    levels = tuple(draw(1, 1 + i % 3, 5 + i, 9, seed=i) for i in range(16))
    boxes = torch.tensor([[1.0, 1.0, 8.0, 7.0]])
    out = pool_regions(levels, boxes, strides=(1,) * 16, size=3)
    alone = [pool_regions((level,), boxes, strides=(1,), size=3) for level in levels]
    torch.testing.assert_close(out, torch.cat(alone, dim=1))


def test_the_reference_has_a_gradient() -> None:
    level = draw(1, 1, 5, 6).double().requires_grad_()
    boxes = torch.tensor([[0.7, 0.9, 4.6, 3.8]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda maps, sides: pool_regions((maps,), sides, strides=(1,), size=2), (level, boxes)
    )


def test_no_regions_in_no_images(backend: str) -> None:
    for frame in (None, torch.zeros(0, dtype=torch.int32)):
        out = pool_regions(
            (torch.zeros(0, 3, 4, 5),), torch.zeros(0, 4), strides=(8,), frame=frame, size=7
        )
        assert out.shape == (0, 3, 7, 7)
