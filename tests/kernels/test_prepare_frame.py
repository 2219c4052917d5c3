"""`prepare_frame` against independent implementations, and properties of its contract."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import op_backends
import pytest
import torch
from PIL import Image

from vosengine.kernels import extension
from vosengine.kernels.cases import Case
from vosengine.kernels.dispatch import UnsupportedBackend, use_backend
from vosengine.kernels.gpu import ELEMENTS
from vosengine.kernels.prepare_frame import prepare_frame
from vosengine.kernels.prepare_frame.cases import CASES, MEAN, STD
from vosengine.kernels.shapes import ShapeError

PLAIN: dict[str, Any] = {"padding": (0, 0, 0, 0), "mean": (0, 0, 0), "std": (1, 1, 1)}
FLOOR = 1e-6  # error allowed in addition to twice that of the reference


@pytest.fixture(params=op_backends.names_of(prepare_frame))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def triangles(outputs: int, cells: int) -> np.ndarray:
    """[outputs, cells]: the hat function around every output's centre, rows of sum 1."""
    step = cells / outputs
    centres = (np.arange(outputs)[:, None] + 0.5) * step
    distance = np.abs(np.arange(cells)[None] + 0.5 - centres) / max(step, 1.0)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def witness(arguments: dict[str, Any]) -> np.ndarray:
    """The contract in NumPy and float64, resizing by two dense matrices."""
    frame = arguments["frame"].numpy()
    image = frame.astype(np.float64) / (255 if frame.dtype == np.uint8 else 1)
    (height, width), (left, right, top, bottom) = arguments["size"], arguments["padding"]
    if (height, width) != frame.shape[:2]:
        rows, columns = triangles(height, frame.shape[0]), triangles(width, frame.shape[1])
        image = np.einsum("yi,ijc,xj->yxc", rows, image, columns, optimize=True)
    image = np.pad(image, ((top, bottom), (left, right), (0, 0)))
    return ((image - arguments["mean"]) / arguments["std"]).transpose(2, 0, 1)


def greatest(difference: np.ndarray) -> float:
    assert np.isfinite(difference).all()
    return float(np.abs(difference).max(initial=0))


@pytest.mark.parametrize("case", [case for case in CASES if not case.bench], ids=lambda c: c.name)
def test_follows_the_contract_in_float64(backend: str, case: Case) -> None:
    arguments = case.arguments()
    exact = witness(arguments)
    own = greatest(prepare_frame.reference(**arguments).numpy() - exact)
    out = prepare_frame(**arguments)
    assert out.dtype == arguments["dtype"]
    memory = out.permute(1, 2, 0) if arguments.get("channels_last") else out
    assert memory.is_contiguous()
    floor = FLOOR if out.dtype == torch.float32 else torch.finfo(out.dtype).eps
    assert greatest(out.numpy() - exact) <= 2 * own + floor


@pytest.mark.parametrize("size", [(7, 9), (50, 31), (33, 90), (100, 120)])
def test_resizes_as_pillow_does(backend: str, size: tuple[int, int]) -> None:
    """Within 1e-5, since torch's own float32 weights are 3e-6 off."""
    frame = torch.randint(0, 256, (41, 53, 3), dtype=torch.uint8)
    out = prepare_frame(frame, size=size, **PLAIN)
    for c in range(3):
        plane = Image.fromarray(frame[..., c].numpy().astype(np.float32))  # mode F: not rounded
        resized = plane.resize(size[::-1], Image.Resampling.BILINEAR)
        assert greatest(out[c].numpy() - np.asarray(resized) / 255) < 1e-5
    rounded = Image.fromarray(frame.numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    assert greatest(255 * out.permute(1, 2, 0).numpy() - np.asarray(rounded)) < 1.1


def test_own_size_leaves_pixels_as_they_are(backend: str) -> None:
    frame = torch.rand(6, 11, 3)
    assert torch.equal(prepare_frame(frame, size=(6, 11), **PLAIN), frame.permute(2, 0, 1))
    coloured = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 3).reshape(16, 16, 3)
    levels = 255 * prepare_frame(coloured, size=(16, 16), **PLAIN)
    assert torch.equal(levels.round().to(torch.uint8), coloured.permute(2, 0, 1))
    assert (levels - levels.round()).abs().max() < 5e-5


def test_even_colour_stays_even(backend: str) -> None:
    frame = torch.tensor([10, 120, 250], dtype=torch.uint8).expand(20, 30, 3)
    for size in ((7, 11), (41, 64)):
        out = 255 * prepare_frame(frame, size=size, **PLAIN)
        assert (out - torch.tensor([10.0, 120.0, 250.0])[:, None, None]).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(6, 8), (9, 5)])
def test_padding_is_black_before_the_normalisation(backend: str, size: tuple[int, int]) -> None:
    frame = torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8)
    bare = prepare_frame(frame, size=size, padding=(0, 0, 0, 0), mean=MEAN, std=STD)
    out = prepare_frame(frame, size=size, padding=(2, 3, 1, 4), mean=MEAN, std=STD)
    assert out.shape == (3, 1 + size[0] + 4, 2 + size[1] + 3)
    inside = torch.zeros(out.shape[1:], dtype=torch.bool)
    inside[1:-4, 2:-3] = True
    assert torch.equal(out[:, inside], bare.flatten(1))
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    torch.testing.assert_close(out[:, ~inside], black[:, None].expand(3, int((~inside).sum())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounds_once_to_the_dtype_asked_for(backend: str, dtype: torch.dtype) -> None:
    arguments = CASES[6].arguments()
    out = prepare_frame(**{**arguments, "dtype": dtype})
    assert out.dtype == dtype
    assert torch.equal(out, prepare_frame(**arguments).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_takes_other_floating_frames(backend: str, dtype: torch.dtype) -> None:
    frame = torch.rand(9, 14, 3).to(dtype)
    wide = prepare_frame(frame.float(), size=(5, 20), **PLAIN)
    assert torch.equal(prepare_frame(frame, size=(5, 20), **PLAIN), wide)


def test_frame_is_only_read(backend: str) -> None:
    frame = torch.randint(0, 256, (9, 14, 3), dtype=torch.uint8)
    before = frame.clone()
    prepare_frame(frame, size=(5, 20), **PLAIN)
    assert torch.equal(frame, before)


@pytest.mark.parametrize("size", [(8, 9), (3, 4), (17, 25)])
def test_reads_nothing_beside_the_frame(backend: str, size: tuple[int, int]) -> None:
    """A crop with NaN around it: a tap beyond the edge shows, even with weight 0."""
    around = torch.full((14, 15, 3), torch.nan)
    frame = around[3:11, 3:12]
    frame.copy_(torch.rand(8, 9, 3))
    out = prepare_frame(frame, size=size, **PLAIN)
    assert torch.equal(out, prepare_frame(frame.clone(), size=size, **PLAIN))
    assert not out.isnan().any()


@pytest.mark.parametrize("size", [(4, 7), (6, 11)])
def test_channels_last_changes_where_numbers_lie_and_nothing_else(
    backend: str, size: tuple[int, int]
) -> None:
    frame = torch.randint(0, 256, (6, 11, 3), dtype=torch.uint8)
    arguments = {"size": size, "padding": (1, 0, 2, 3), "mean": MEAN, "std": STD}
    planar = prepare_frame(frame, dtype=torch.float16, **arguments)
    out = prepare_frame(frame, dtype=torch.float16, channels_last=True, **arguments)
    assert torch.equal(out, planar)
    assert out[None].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", op_backends.CPU)
def test_writes_every_float_and_none_beyond(name: str) -> None:
    """Call the extension directly, on an output poisoned with NaN between two guards."""
    with op_backends.running_on(name):
        for width in range(1, 40):
            frame = torch.randint(0, 256, (5, 20, 3), dtype=torch.uint8)
            count, guard = 3 * 6 * (width + 3), 64
            buffer = torch.full((guard + count + guard,), torch.nan)
            args = (frame.stride(), (5, 20), (4, width), (1, 2, 2, 0), MEAN, STD)
            address = buffer[guard:].data_ptr()
            extension.load().prepare_frame_cpu(frame.data_ptr(), True, *args, address, 2)
            written = torch.zeros(len(buffer), dtype=torch.bool)
            written[guard:-guard] = True
            assert torch.equal(~buffer.isnan(), written)


@pytest.mark.parametrize("element", range(3), ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("resized", [(5, None), (4, None), (1, 3)], ids=["same", "tiles", "pixels"])
@pytest.mark.parametrize("bytes_in", [False, True], ids=["float", "uint8"])
def test_cuda_writes_every_element_and_none_beyond(
    bytes_in: bool, resized: tuple[int, int | None], element: int
) -> None:
    """Call the kernels directly, on frames and outputs with any alignment, between two guards."""
    guard = 64
    dtype = list(ELEMENTS)[element]
    with op_backends.emulated_cuda("shuffled"):
        for width in (*range(1, 18), 40):
            before, channels_last = width % 3, width % 2 == 0
            height, columns = (40, 50) if resized == (1, 3) else (5, width)
            size = (resized[0], resized[1] or width)
            frame = torch.rand(height, columns + 5, 3)[:, before : before + columns]
            if bytes_in:
                frame = (255 * frame).to(torch.uint8)
            shape = (3, size[0] + 2, size[1] + 3)
            start = guard + (0 if width % 8 == 5 else before)
            buffer = torch.full((start + prod(shape) + guard,), torch.nan, dtype=dtype)
            extension.load().prepare_frame_cuda(
                *(frame.data_ptr(), bytes_in, frame.stride(), (height, columns), size),
                *((1, 2, 2, 0), MEAN, STD, buffer[start:].data_ptr(), channels_last),
                *(element, (0, 0)),
            )
            written = torch.zeros(len(buffer), dtype=torch.bool)
            written[start:-guard] = True
            assert torch.equal(~buffer.isnan(), written)
            out = buffer[start:-guard]
            out = out.view(*shape[1:], 3).permute(2, 0, 1) if channels_last else out.view(shape)
            plain = prepare_frame.reference(
                frame, size=size, padding=(1, 2, 2, 0), mean=MEAN, std=STD
            )
            torch.testing.assert_close(
                out, plain.to(dtype), rtol=2e-5 + torch.finfo(dtype).eps, atol=5e-5
            )


def test_cuda_says_what_it_cannot_take() -> None:
    frame = torch.zeros(4, 4, 3)
    with op_backends.emulated_cuda("forwards"):
        wide = prepare_frame.explain(frame, size=(4, 4), dtype=torch.float64, **PLAIN)["cuda"]
        assert wide is not None
        assert "float64" in wide
        assert prepare_frame.explain(frame, size=(4, 4), **PLAIN)["cuda"] is None
        with pytest.raises(ValueError, match="at most 262140 rows"):
            extension.load().prepare_frame_cuda(
                *(frame.data_ptr(), False, frame.stride(), (4, 4), (4, 4), (0, 0, 0, 262140)),
                *(MEAN, STD, 0, False, 0, (0, 0)),
            )


def test_cpp_says_what_it_cannot_take() -> None:
    frame = torch.zeros(4, 4, 3)
    with use_backend("cpu"), pytest.raises(UnsupportedBackend):
        prepare_frame(frame.requires_grad_(), size=(4, 4), **PLAIN)
    reason = prepare_frame.explain(frame.detach(), size=(4, 4), dtype=torch.float64, **PLAIN)["cpu"]
    assert reason is not None
    assert "float64" in reason
    if extension.missing is None:
        assert prepare_frame.explain(frame.detach(), size=(4, 4), **PLAIN)["cpu"] is None


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"frame": torch.zeros(3, 4, 5)}, ShapeError, "frame: wanted \\[H, W, 3\\]"),
        ({"frame": torch.zeros(4, 5)}, ShapeError, "frame"),
        ({"frame": torch.zeros(4, 5, 3, dtype=torch.int16)}, ShapeError, "frame: wanted uint8 or"),
        ({"frame": torch.zeros(0, 5, 3)}, ValueError, "frame: wanted at least one pixel"),
        ({"size": (0, 4)}, ValueError, "size"),
        ({"padding": (0, -1, 0, 0)}, ValueError, "padding"),
        ({"std": (1, 0, 1)}, ValueError, "std > 0"),
        ({"mean": (1, 0)}, ValueError, "mean"),
        ({"dtype": torch.uint8}, ValueError, "dtype: wanted a floating dtype"),
    ],
)
def test_errors_name_the_argument(
    backend: str, change: dict[str, Any], error: type[Exception], names: str
) -> None:
    arguments = {"frame": torch.zeros(4, 5, 3), "size": (4, 5), **PLAIN, **change}
    with pytest.raises(error, match=names):
        prepare_frame(**arguments)
