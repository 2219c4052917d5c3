"""`finish_masks` against independent implementations, and properties of its contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import op_backends
import pytest
import torch
from torch.nn import functional

from vosengine.kernels import extension
from vosengine.kernels.cases import Case
from vosengine.kernels.dispatch import UnsupportedBackend, use_backend
from vosengine.kernels.finish_masks import finish_masks
from vosengine.kernels.finish_masks.cases import CASES, undecided
from vosengine.kernels.gpu import ELEMENTS
from vosengine.kernels.shapes import ShapeError

FLOOR = 1e-5  # the contract's
QUICK = [case for case in CASES if not case.bench and "streams" not in case.name]


@pytest.fixture(params=op_backends.names_of(finish_masks))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def interpolated(rows: np.ndarray, count: int, start: float, extent: float) -> np.ndarray:
    """Interpolate the last axis at `count` positions by NumPy's interp, which clamps as well."""
    positions = (np.arange(count) + 0.5) * extent / count + start - 0.5
    cells = np.arange(rows.shape[-1])
    lines = [np.interp(positions, cells, line) for line in rows.reshape(-1, rows.shape[-1])]
    return np.array(lines).reshape(*rows.shape[:-1], count)


def witness(arguments: dict[str, Any]) -> np.ndarray:
    """Return q of the contract in NumPy and float64, from probabilities."""
    (height, width), region = arguments["size"], arguments["region"]
    fine = arguments["logits"].double().numpy()
    fine = interpolated(fine, width, region[1], region[3]).swapaxes(1, 2)
    fine = interpolated(fine, height, region[0], region[2]).swapaxes(1, 2)
    objects = 1 / (1 + np.exp(-fine))
    background = np.prod(1 - objects, axis=0, keepdims=True)
    p = np.concatenate((background, objects)).clip(1e-7, 1 - 1e-7)
    odds = p / (1 - p)
    return odds / odds.sum(axis=0)


def named(q: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The labels of the rows of greatest q."""
    return torch.cat((torch.zeros(1, dtype=torch.uint8), ids))[q.argmax(dim=0)]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_follows_the_contract_in_float64(backend: str, case: Case) -> None:
    arguments = case.arguments()
    labels, q = finish_masks(**arguments)
    exact = (
        torch.from_numpy(witness(arguments))
        if len(arguments["ids"])
        else torch.ones(1, *arguments["size"], dtype=torch.float64)
    )
    assert labels.dtype == torch.uint8
    assert labels.is_contiguous()
    clear = ~undecided(arguments, (labels, exact))
    assert torch.equal(labels[clear], named(exact, arguments["ids"])[clear])
    if not arguments["probabilities"]:
        assert q is None
        return
    own = (finish_masks.reference(**arguments)[1] - exact).abs().max()
    assert q.dtype == torch.float32
    assert q.is_contiguous()
    assert (q - exact).abs().max() <= max(2 * float(own), FLOOR)


def test_is_a_crop_of_four_times_upsampling_and_soft_aggregation(backend: str) -> None:
    """As in the networks: x4 upsampling, crop of the padding, softmax over logit(p)."""
    logits = 3 * torch.randn(4, 9, 12, generator=torch.Generator().manual_seed(1))
    left, top, height, width = 5, 2, 31, 38  # of 36 x 48 padded pixels
    fine = functional.interpolate(
        logits[None].double(), scale_factor=4, mode="bilinear", align_corners=False
    )[0, :, top : top + height, left : left + width]
    foreground = fine.sigmoid()
    everything = torch.cat(((1 - foreground).prod(dim=0, keepdim=True), foreground))
    exact = torch.logit(everything.clamp(1e-7, 1 - 1e-7)).softmax(dim=0)
    ids = torch.tensor([3, 1, 200, 7], dtype=torch.uint8)
    region = (top / 4, left / 4, height / 4, width / 4)
    labels, q = finish_masks(logits, ids, size=(height, width), region=region, probabilities=True)
    assert (q - exact).abs().max() < FLOOR
    assert torch.equal(labels, named(exact, ids))


def test_no_object_is_all_background(backend: str) -> None:
    empty = torch.zeros(0, dtype=torch.uint8)
    labels, q = finish_masks(
        torch.zeros(0, 3, 4), empty, size=(12, 16), region=(0, 0, 3, 4), probabilities=True
    )
    assert torch.equal(labels, torch.zeros(12, 16, dtype=torch.uint8))
    assert torch.equal(q, torch.ones(1, 12, 16))


def test_labels_are_ids_not_rows(backend: str) -> None:
    """An object per column of cells, ids neither dense nor sorted, and a column of background."""
    logits = torch.full((3, 2, 4), -20.0)
    for row in range(3):
        logits[row, :, row] = 20
    ids = torch.tensor([250, 2, 9], dtype=torch.uint8)
    labels, _ = finish_masks(logits, ids, size=(2, 4), region=(0, 0, 2, 4))
    assert labels.tolist() == [[250, 2, 9, 0]] * 2


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_probabilities_sum_to_one_and_labels_do_not_depend_on_them(
    backend: str, case: Case
) -> None:
    arguments = {**case.arguments(), "probabilities": True}
    labels, q = finish_masks(**arguments)
    assert q.shape == (1 + len(arguments["ids"]), *arguments["size"])
    assert (q >= 0).all()
    rounding = len(q) * 2.0**-24  # of a sum of so many terms in float32
    assert (q.double().sum(dim=0) - 1).abs().max() < max(1e-6, rounding)
    alone, none = finish_masks(**{**arguments, "probabilities": False})
    assert none is None
    assert torch.equal(alone, labels)


@pytest.mark.parametrize("values", [(3.0, 3.0, 3.0), (60.0, 60.0, 60.0), (50.0, 100.0, 80.0)])
def test_equal_objects_choose_the_first(backend: str, values: tuple[float, ...]) -> None:
    """Beyond logits of about 16 the clamp makes all objects equal."""
    logits = torch.tensor(values)[:, None, None].expand(3, 4, 5)
    ids = torch.tensor([7, 3, 5], dtype=torch.uint8)
    labels, q = finish_masks(logits, ids, size=(9, 21), region=(0, 0, 4, 5), probabilities=True)
    assert (labels == 7).all()
    assert (q[1] == q[2]).all()
    assert (q[1] == q[3]).all()


def test_background_wins_a_tie(backend: str) -> None:
    ids = torch.tensor([7], dtype=torch.uint8)
    labels, q = finish_masks(
        torch.zeros(1, 3, 3), ids, size=(12, 12), region=(0, 0, 3, 3), probabilities=True
    )
    assert torch.equal(q, torch.full((2, 12, 12), 0.5))
    assert (labels == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_takes_half_precision_logits(backend: str, dtype: torch.dtype) -> None:
    arguments = QUICK[2].arguments(dtype=dtype)
    labels, q = finish_masks(**arguments)
    wide = {**arguments, "logits": arguments["logits"].float()}
    assert q.dtype == torch.float32
    assert torch.equal(q, finish_masks(**wide)[1])
    assert torch.equal(labels, finish_masks(**wide)[0])


@pytest.mark.parametrize("name", op_backends.CPU)
def test_writes_every_element_and_none_beyond(name: str) -> None:
    """Call the extension directly, on outputs between two guards."""
    guard = 64
    with op_backends.running_on(name):
        for width in range(1, 40):
            logits = torch.randn(2, 3, 5)
            ids = torch.tensor([1, 2], dtype=torch.uint8)
            labels = torch.full((guard + 7 * width + guard,), 99, dtype=torch.uint8)
            q = torch.full((guard + 3 * 7 * width + guard,), torch.nan)
            extension.load().finish_masks_cpu(
                *(logits.data_ptr(), logits.stride(), (2, 3, 5), ids.data_ptr(), 0, 1),
                *((7, width), (0.0, 0.5, 3.0, 4.0)),
                *(labels[guard:].data_ptr(), q[guard:].data_ptr(), 2),
            )
            written = torch.zeros(len(q), dtype=torch.bool)
            written[guard:-guard] = True
            assert torch.equal(~q.isnan(), written)
            assert (labels[guard:-guard] <= 2).all()
            assert (labels[:guard] == 99).all()
            assert (labels[-guard:] == 99).all()


@pytest.mark.parametrize("probabilities", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("cells", [(3, 5), (3, 90)], ids=["near", "far"])
def test_cuda_writes_every_element_and_none_beyond(
    cells: tuple[int, int], dtype: torch.dtype, probabilities: bool
) -> None:
    """Call the kernels directly, on outputs with any alignment, between two guards."""
    guard, ids = 64, torch.tensor([1, 2], dtype=torch.uint8)
    with op_backends.emulated_cuda("shuffled"):
        for width in (*range(15, 30), 127, 132):
            before, height = width % 5, 9 - width % 2
            logits = torch.randn(2, *cells).to(dtype)
            region = (0.0, 0.5, 3.0, cells[1] - 1.0)
            labels = torch.full((guard + before + height * width + guard,), 99, dtype=torch.uint8)
            q = torch.full((guard + before + 3 * height * width + guard,), torch.nan)
            start = guard + before
            extension.load().finish_masks_cuda(
                *(logits.data_ptr(), logits.stride(), (2, *cells)),
                *(ids.data_ptr(), 0, 1, (height, width), region, labels[start:].data_ptr()),
                *(q[start:].data_ptr() if probabilities else 0, ELEMENTS[dtype], (0, 0)),
            )
            plain, exact = finish_masks.reference(
                logits, ids, size=(height, width), region=region, probabilities=True
            )
            assert (labels[:start] == 99).all()
            assert (labels[-guard:] == 99).all()
            clear = ~undecided({"ids": ids}, (plain, exact))
            written = labels[start:-guard].view(height, width)
            assert torch.equal(written[clear], plain[clear])
            assert q[:start].isnan().all()
            assert q[-guard:].isnan().all()
            if probabilities:
                torch.testing.assert_close(q[start:-guard].view_as(exact), exact)


def test_cuda_says_what_it_cannot_take() -> None:
    ids = torch.tensor([1], dtype=torch.uint8)
    where: dict[str, Any] = {"size": (4, 4), "region": (0, 0, 2, 2)}
    with op_backends.emulated_cuda("forwards"):
        reasons = finish_masks.explain(torch.zeros(1, 2, 2, dtype=torch.float64), ids, **where)
        assert reasons["cuda"] is not None
        assert "float64" in reasons["cuda"]
        assert finish_masks.explain(torch.zeros(1, 2, 2), ids, **where)["cuda"] is None
        with pytest.raises(ValueError, match="height: wanted at most 524280"):
            extension.load().finish_masks_cuda(
                *(0, (0, 0, 0), (0, 1, 1), 0, 0, 1, (524281, 1)),
                *((0.0, 0.0, 1.0, 1.0), 0, 0, 0, (0, 0)),
            )


def test_the_least_likely_objects_still_win_where_they_should(backend: str) -> None:
    """Between -ln O and 0 the maximum logit does not decide whether the background wins."""
    for objects in (1, 2, 3, 10, 100):
        ids = torch.arange(1, objects + 1, dtype=torch.uint8)
        values = torch.linspace(-1.2 * np.log(objects + 1), 0.1, 60)
        logits = values.expand(objects, 1, 60)
        labels, _ = finish_masks(logits, ids, size=(1, 60), region=(0, 0, 1, 60))
        odds = values.double().exp()
        wins = odds * ((1 + odds) ** objects - 1)
        clear = (wins - 1).abs() > 1e-4
        assert torch.equal(labels[0, clear] == 1, (wins > 1)[clear])


def test_cpp_says_what_it_cannot_take() -> None:
    ids = torch.tensor([1], dtype=torch.uint8)
    where: dict[str, Any] = {"size": (4, 4), "region": (0, 0, 2, 2)}
    with use_backend("cpu"), pytest.raises(UnsupportedBackend):
        finish_masks(torch.zeros(1, 2, 2, requires_grad=True), ids, **where)
    reason = finish_masks.explain(torch.zeros(1, 2, 2, dtype=torch.float64), ids, **where)["cpu"]
    assert reason is not None
    assert "float64" in reason
    if extension.missing is None:
        assert finish_masks.explain(torch.zeros(1, 2, 2), ids, **where)["cpu"] is None


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"logits": torch.zeros(2, 4)}, ShapeError, "logits: wanted \\[O, h, w\\]"),
        ({"logits": torch.zeros(3, 4, 5)}, ShapeError, "ids: wanted \\[O\\] with O = 3"),
        ({"logits": torch.zeros(2, 4, 5).int()}, ShapeError, "logits: wanted float16"),
        ({"logits": torch.zeros(2, 0, 5)}, ValueError, "logits: wanted at least one cell"),
        ({"ids": torch.zeros(2)}, ShapeError, "ids: wanted uint8"),
        ({"size": (4, 0)}, ValueError, "size"),
        ({"region": (0, 0, 4)}, ValueError, "region"),
        ({"region": (0, 0, 4, 0)}, ValueError, "region"),
    ],
)
def test_errors_name_the_argument(
    backend: str, change: dict[str, Any], error: type[Exception], names: str
) -> None:
    arguments: dict[str, Any] = {
        "logits": torch.zeros(2, 4, 5),
        "ids": torch.tensor([1, 2], dtype=torch.uint8),
        "size": (16, 20),
        "region": (0, 0, 4, 5),
    }
    with pytest.raises(error, match=names):
        finish_masks(**{**arguments, **change})
