"""`deform_conv` on every backend and instruction set, against independent implementations."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import op_backends
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch.nn import functional

from vosengine.kernels import ShapeError, UnsupportedBackend, deform_conv, gpu, use_backend
from vosengine.kernels.cases import map_tensors
from vosengine.kernels.deform_conv.cases import CASES
from vosengine.kernels.deform_conv.reference import as_pair, output_size
from vosengine.kernels.extension import missing
from vosengine.kernels.parity import widened

Arguments = dict[str, Any]

KERNELS = ((1, 1), (3, 3), (5, 5), (3, 1), (1, 5))

needs_extension = pytest.mark.skipif(missing is not None, reason=str(missing))
needs_onnxruntime = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="onnxruntime for Python 3.10 has no DeformConv"
)


@pytest.fixture(params=op_backends.names_of(deform_conv))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def call(
    shape: tuple[int, ...] = (1, 4, 6, 7),
    outputs: int = 4,
    kernel: tuple[int, int] = (3, 3),
    offset_groups: int = 1,
    *,
    modulated: bool = False,
    **options: Any,
) -> Arguments:
    """Return arguments of normal tensors; with `modulated` a mask and a bias as well."""
    x, weight = draw(*shape), draw(outputs, shape[1] // options.get("groups", 1), *kernel, seed=2)
    steps = [options.get(name, least) for name, least in LEAST.items()]
    size = output_size(x, weight, *steps)
    taps = offset_groups * kernel[0] * kernel[1]
    offset = 2 * draw(shape[0], 2 * taps, *size, seed=3)
    made = {"x": x, "offset": offset, "weight": weight, **options}
    if modulated:
        made |= {"mask": draw(shape[0], taps, *size, seed=4), "bias": draw(outputs, seed=5)}
    return made


LEAST = {"stride": 1, "padding": 0, "dilation": 1}


def onnx_model(arguments: Arguments) -> onnx.ModelProto:
    """ONNX's DeformConv-19 with the options of this call, in float64."""
    names = ["x", "weight", "offset", "bias", "mask"]
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None)
        for name in names
        if name in arguments
    ]
    pads = as_pair(arguments.get("padding", 0))
    taps = arguments["weight"].shape[2:].numel()
    node = onnx.helper.make_node(
        "DeformConv",
        [name if name in arguments else "" for name in names],
        ["y"],
        kernel_shape=arguments["weight"].shape[2:],
        strides=as_pair(arguments.get("stride", 1)),
        dilations=as_pair(arguments.get("dilation", 1)),
        pads=(*pads, *pads),
        group=arguments.get("groups", 1),
        offset_group=arguments["offset"].shape[1] // (2 * taps),
    )
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, None)
    graph = onnx.helper.make_graph([node], "deform_conv", inputs, [output])
    opset = onnx.helper.make_opsetid("", 19)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)


def inputs_of(arguments: Arguments) -> dict[str, np.ndarray]:
    tensors = {n: v for n, v in arguments.items() if isinstance(v, torch.Tensor)}
    return {name: tensor.double().contiguous().numpy() for name, tensor in tensors.items()}


def by_onnxruntime(arguments: Arguments) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx_model(arguments).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, inputs_of(arguments))[0])


def formula(arguments: Arguments) -> torch.Tensor:
    """The docstring's two lines as numpy loops in float64."""
    inputs = inputs_of(arguments)
    x, offset, weight = inputs["x"], inputs["offset"], inputs["weight"]
    steps, margins, spreads = (as_pair(arguments.get(n, least)) for n, least in LEAST.items())
    (batch, channels), (outputs, per_group, *kernel) = x.shape[:2], weight.shape
    size = offset.shape[2:]
    shifts = offset.reshape(batch, -1, *kernel, 2, *size)
    masks = inputs["mask"].reshape(batch, -1, *kernel, *size) if "mask" in inputs else None
    out = np.zeros((batch, outputs, *size))
    out += inputs.get("bias", np.zeros(outputs))[:, None, None]
    outputs_per_group = outputs // (channels // per_group)
    for b, o, i, j, c, y, z in np.ndindex(batch, outputs, *kernel, per_group, *size):
        channel = o // outputs_per_group * per_group + c
        g = channel // (channels // shifts.shape[1])
        tap, pixel = np.array((i, j)), np.array((y, z))
        at = pixel * steps - margins + tap * spreads + shifts[b, g, i, j, :, y, z]
        strength = 1.0 if masks is None else masks[b, g, i, j, y, z]
        out[b, o, y, z] += weight[o, c, i, j] * strength * bilinear(x[b, channel], at)
    return torch.from_numpy(out)


def bilinear(image: np.ndarray, at: np.ndarray) -> float:
    total = 0.0
    for corner in np.floor(at) + list(np.ndindex(2, 2)):
        if ((corner >= 0) & (corner < image.shape)).all():
            total += np.prod(1 - abs(at - corner)) * image[tuple(corner.astype(int))]
    return total


def assert_matches(arguments: Arguments, truth: torch.Tensor) -> None:
    """Assert the parity rule against independent results: it alone accepts a wrong reference."""
    exact = deform_conv.reference(**widened(arguments))
    torch.testing.assert_close(exact, truth, rtol=1e-9, atol=1e-9)
    plain = deform_conv.reference(**arguments)
    op_backends.assert_near(deform_conv(**arguments), plain, truth)


@needs_onnxruntime
@pytest.mark.parametrize(
    "case", [c for c in CASES if not c.bench and c.name != "no images"], ids=lambda case: case.name
)
def test_is_onnxs_deform_conv(backend: str, case: Any) -> None:
    arguments = case.arguments()
    assert_matches(arguments, by_onnxruntime(arguments))


@needs_onnxruntime
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.slow
def test_options_are_onnxs(backend: str, kernel: tuple[int, int], modulated: bool) -> None:
    calls = [
        call(shape, outputs, kernel, offset_groups, modulated=modulated,
            groups=groups, stride=stride, padding=padding, dilation=dilation)
        for shape, outputs, groups, offset_groups in (
            ((1, 3, 14, 15), 2, 1, 1),
            ((2, 8, 13, 17), 6, 2, 4),
            ((1, 6, 19, 13), 6, 6, 2),
        )
        for stride, padding, dilation in ((1, 2, 1), (2, 0, (1, 2)), ((1, 3), (2, 1), 3))
    ]  # fmt: skip
    if gpu.INTERPRETED:  # minutes otherwise: one call a test, together every combination
        turn = 2 * KERNELS.index(kernel) + modulated
        calls = [calls[turn % len(calls)]]
    for arguments in calls:
        assert_matches(arguments, by_onnxruntime(arguments))


@pytest.mark.slow
def test_follows_the_formula(backend: str) -> None:
    for arguments in (
        call((2, 4, 4, 5), 2, offset_groups=2, padding=1, modulated=True),
        call((1, 4, 5, 4), 4, (3, 1), groups=2, stride=(1, 2), dilation=(2, 1)),
        call((1, 3, 3, 3), 1, (2, 2), offset_groups=3),
    ):
        assert_matches(arguments, formula(arguments))


def test_the_witnesses_agree() -> None:
    """ONNX's own evaluator, which samples in float32, and the formula."""
    arguments = call((1, 2, 3, 4), 1, offset_groups=2, padding=1, modulated=True)
    (evaluated,) = ReferenceEvaluator(onnx_model(arguments)).run(None, inputs_of(arguments))
    np.testing.assert_allclose(formula(arguments).numpy(), evaluated, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_without_offsets_it_is_a_convolution(backend: str, groups: int) -> None:
    for options in (
        {"padding": 1},
        {"stride": 2, "dilation": 2},
        {"stride": (1, 2), "padding": (0, 3), "dilation": (2, 1)},
    ):
        arguments = call((1, 8, 7, 8), 4, offset_groups=2, groups=groups, **options)
        arguments["offset"] = torch.zeros_like(arguments["offset"])
        x, weight = arguments["x"].double(), arguments["weight"].double()
        assert_matches(arguments, functional.conv2d(x, weight, groups=groups, **options))


@pytest.mark.parametrize("shift", [(0, 1), (-2, 0), (3, -4), (0, 7), (-9, 9)], ids=str)
def test_whole_offsets_shift_the_image(backend: str, shift: tuple[int, int]) -> None:
    """The second offset group is moved the other way."""
    arguments = call((1, 4, 6, 7), offset_groups=2, padding=1)
    move = torch.tensor(shift, dtype=torch.float32).repeat(9)
    arguments["offset"] = torch.cat((move, -move))[None, :, None, None].expand(1, -1, 6, 7)
    padded = functional.pad(arguments["x"].double(), (10,) * 4)
    dy, dx = shift
    moved = torch.cat(
        [padded.roll((-s * dy, -s * dx), (2, 3))[:, c : c + 2] for s, c in ((1, 0), (-1, 2))], dim=1
    )
    truth = functional.conv2d(moved, arguments["weight"].double(), padding=1)[..., 10:-10, 10:-10]
    assert_matches(arguments, truth)


def test_the_mask_weighs_every_sample(backend: str) -> None:
    arguments = call(offset_groups=2, modulated=True)
    ones = arguments | {"mask": torch.ones_like(arguments["mask"])}
    plain = {name: value for name, value in ones.items() if name != "mask"}
    assert torch.equal(deform_conv(**ones), deform_conv(**plain))
    hushed = deform_conv(**arguments | {"mask": torch.zeros_like(arguments["mask"])})
    assert torch.equal(hushed, arguments["bias"][:, None, None].expand_as(hushed[0])[None])


@pytest.mark.parametrize("far", [50.0, 1e6, -1e6, 1e30, -3e38])
def test_far_samples_are_zero(backend: str, far: float) -> None:
    arguments = call(offset_groups=2, modulated=True, padding=1)
    for part in (slice(None, None, 2), slice(1, None, 2)):  # y, then x
        moved = arguments["offset"].clone()
        moved[:, part] = far
        out = deform_conv(**arguments | {"offset": moved})
        assert torch.equal(out, arguments["bias"][:, None, None].expand_as(out[0])[None])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("channel", [18, 21, 35])
def test_an_offset_that_is_no_number_shows(backend: str, value: float, channel: int) -> None:
    """An offset of the second group affects its pixel in the outputs that read the group."""
    for groups in (1, 2):
        arguments = call(offset_groups=2, groups=groups, padding=1)
        clean = deform_conv(**arguments)
        arguments["offset"][0, channel, 2, 3] = value
        out = deform_conv(**arguments)
        spoilt = torch.zeros(1, 4, 6, 7, dtype=torch.bool)
        spoilt[:, 4 - 4 // groups :, 2, 3] = True
        assert torch.equal(out.isnan(), spoilt)
        assert torch.equal(out[~spoilt], clean[~spoilt])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_floats_keep_to_their_pixel(backend: str, dtype: torch.dtype) -> None:
    """NaN in one offset, and in channels after the last of another group."""
    plain = call((1, 10, 6, 7), offset_groups=2, groups=2, padding=1, modulated=True)
    arguments = map_tensors(lambda tensor: tensor.to(dtype), plain)
    clean = deform_conv(**arguments)
    arguments["offset"][0, 21, 2, 3] = torch.inf
    arguments["x"][:, 5:] = torch.nan
    out = deform_conv(**arguments)
    assert torch.equal(out[:, :2], clean[:, :2])
    assert out[:, 2:, 2, 3].isnan().all()
    arguments["offset"][:, 18:] = -40.0
    assert torch.equal(
        deform_conv(**arguments)[:, 2:], arguments["bias"][2:, None, None].expand(1, 2, 6, 7)
    )


def test_a_nan_of_the_image_stays_where_it_is_seen(backend: str) -> None:
    """Also a NaN on the border, which positions beyond the image must not read."""
    for y, x in ((2, 3), (0, 0), (5, 6)):
        arguments = call(padding=1)
        arguments["offset"] = torch.full_like(arguments["offset"], 0.5)
        arguments["x"][0, 1, y, x] = torch.nan
        seen = torch.zeros(6, 7, dtype=torch.bool)
        seen[max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = True
        assert torch.equal(deform_conv(**arguments).isnan(), seen.expand(1, 4, 6, 7))
        arguments["offset"] = torch.full_like(arguments["offset"], -40.0)
        assert not deform_conv(**arguments).isnan().any()


def test_strides_do_not_matter_and_inputs_stay(backend: str) -> None:
    copies = call((2, 6, 8, 9), offset_groups=3, modulated=True, padding=1)
    views = dict(copies)
    for name, value in copies.items():
        if isinstance(value, torch.Tensor):
            wide = value.repeat_interleave(3, dim=-1)
            views[name] = wide.mT.contiguous().mT[..., 1::3] if value.ndim > 1 else wide[1::3]
            assert not views[name].is_contiguous()
    out = deform_conv(**views)
    assert out.is_contiguous()
    assert torch.equal(out, deform_conv(**copies))
    assert all(torch.equal(views[n], copies[n]) for n in ("x", "offset", "weight", "mask", "bias"))


def test_an_empty_batch_gives_one(backend: str) -> None:
    assert deform_conv(**call((0, 4, 6, 7), 3, offset_groups=2, stride=2)).shape == (0, 3, 2, 3)


@needs_extension
def test_threads_and_repetition_change_no_bit() -> None:
    arguments = call((2, 16, 20, 21), 12, offset_groups=2, modulated=True, padding=1)
    before = torch.get_num_threads()
    try:
        outputs = []
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            with use_backend("cpu"):
                outputs.append(deform_conv(**arguments))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.slow
def test_gradients_are_right() -> None:
    arguments = widened(call((1, 2, 2, 3), 1, (2, 1), 2, padding=1, modulated=True))
    names = ("x", "offset", "weight", "bias", "mask")
    tensors = tuple(arguments.pop(name).requires_grad_() for name in names)

    def function(*values: torch.Tensor) -> torch.Tensor:
        return deform_conv(**dict(zip(names, values, strict=True)), **arguments)

    assert torch.autograd.gradcheck(function, tensors)


@needs_extension
def test_the_compiled_backend_says_what_it_does_not_take() -> None:
    arguments = call(modulated=True)
    assert deform_conv.explain(**arguments)["cpu"] is None
    wide = widened(arguments)
    assert (
        deform_conv.explain(**wide)["cpu"]
        == "wants float32, bfloat16 or float16, given torch.float64"
    )
    with use_backend("cpu"), pytest.raises(UnsupportedBackend, match="wants float32"):
        deform_conv(**wide)
    for name in ("x", "offset", "weight", "bias", "mask"):
        learned = arguments | {name: arguments[name].clone().requires_grad_()}
        assert "has no gradient" in str(deform_conv.explain(**learned)["cpu"])
    large = call((1, 1, 1, 1), 1, (1, 1))
    large["x"] = large["x"].expand(1, 1, 1, 1 << 15)
    large |= {"stride": 1 << 15}
    assert "wants sides below 32768" in str(deform_conv.explain(**large)["cpu"])
    torch.testing.assert_close(deform_conv(**large), deform_conv.reference(**large))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", torch.zeros(4, 6, 7), r"x: wanted \[B, C, H, W\], given \[4, 6, 7\]"),
        ("x", torch.zeros(1, 4, 6, 7).int(), "x: wanted float16 or .*, given int32"),
        ("x", torch.zeros(1, 4, 0, 7), "x: wanted H of at least 1, given 0"),
        ("offset", torch.zeros(2, 36, 4, 5), "offset: wanted .* with B = 1"),
        ("offset", torch.zeros(1, 36, 4, 6), r"offset: wanted \[Ho, Wo\] = \[4, 5\], given \[4, 6"),
        ("offset", torch.zeros(1, 35, 4, 5), r"offset: wanted 2 \* G \* 9 channels .*, given 35"),
        ("offset", torch.zeros(1, 54, 4, 5), "offset: wanted .* a divisor of C = 4 .*, given 54"),
        ("offset", torch.zeros(1, 0, 4, 5), "offset: wanted .*, given 0"),
        ("offset", torch.zeros(1, 36, 4, 5).double(), "offset: wanted float32, given float64"),
        ("weight", torch.zeros(4, 3, 3, 3), "weight: wanted C/groups = 4 .*, given 3"),
        ("weight", torch.zeros(4, 4, 7, 3), "weight: wanted a kernel that fits .* 6 x 7, given"),
        ("weight", torch.zeros(4, 4, 0, 3), "weight: wanted kh of at least 1, given 0"),
        ("weight", torch.zeros(0, 4, 3, 3), "weight: wanted O of at least 1, given 0"),
        ("weight", torch.zeros(4, 4, 3, 3).half(), "weight: wanted float32, given float16"),
        ("bias", torch.zeros(3), "bias: wanted .* with O = 4"),
        ("bias", torch.zeros(4, device="meta"), "bias: on meta"),
        ("mask", torch.zeros(1, 9, 4, 5), r"mask: wanted G\*kh\*kw = 18 channels .*, given 9"),
        ("mask", torch.zeros(1, 18, 4, 4), "mask: wanted .* with Wo = 5"),
        ("mask", torch.zeros(1, 18, 4, 5).double(), "mask: wanted float32, given float64"),
        ("groups", 3, r"groups: wanted a divisor of C = 4 \(x\) and O = 4 \(weight\), given 3"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        deform_conv(**call(offset_groups=2, modulated=name in ("bias", "mask")) | {name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stride", 0, r"stride: wanted an int of at least 1, or two as \(y, x\), given 0"),
        ("stride", (1, 2, 1), "stride: wanted .*, given"),
        ("padding", (0, -1), "padding: wanted an int of at least 0"),
        ("dilation", 1.5, "dilation: wanted .*, given 1.5"),
        ("groups", 0, "groups: wanted 1 or more, given 0"),
    ],
)
def test_wrong_options_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deform_conv(**call() | {name: value})
