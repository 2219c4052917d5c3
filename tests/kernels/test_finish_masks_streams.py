"""`finish_masks` for several streams at once, compared with one call per stream."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import op_backends
import pytest
import torch

from vosengine.kernels import ShapeError, extension, finish_masks
from vosengine.kernels.cases import Case
from vosengine.kernels.finish_masks.cases import CASES
from vosengine.kernels.gpu import ELEMENTS

QUICK = [case for case in CASES if not case.bench and "streams" in case.name]


@pytest.fixture(params=op_backends.names_of(finish_masks))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def one_by_one(arguments: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A call for every stream."""
    remaining = {name: value for name, value in arguments.items() if name != "first"}
    first = arguments["first"].tolist()
    labels, planes = [], []
    for begin, end in pairwise(first):
        rows = {name: remaining[name][begin:end] for name in ("logits", "ids")}
        label, q = finish_masks(**remaining | rows)
        labels.append(label)
        planes.append(q)
    if not arguments["probabilities"]:
        return torch.stack(labels), None
    unused = torch.zeros(len(remaining["ids"]) - first[-1], *remaining["size"])
    return torch.stack(labels), torch.cat((*planes, unused))


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_streams_are_as_many_calls(backend: str, case: Case, dtype: torch.dtype) -> None:
    """Bitwise in compiled backends; the reference also sums zeros of the other streams."""
    arguments = case.arguments(dtype=dtype)
    labels, q = finish_masks(**arguments)
    wanted, planes = one_by_one(arguments)
    assert labels.dtype == torch.uint8 and labels.is_contiguous()
    assert torch.equal(labels, wanted)
    assert (q is None) == (planes is None)
    if q is not None and planes is not None:
        assert q.is_contiguous()
        torch.testing.assert_close(q, planes, rtol=1e-6 if backend == "reference" else 0, atol=0)


def test_a_nan_in_one_stream_stays_there(backend: str) -> None:
    arguments = QUICK[0].arguments()
    labels, q = finish_masks(**arguments)
    arguments["logits"][3] = torch.nan  # all of the second stream
    nan_labels, planes = finish_masks(**arguments)
    assert torch.equal(nan_labels[[0, 2]], labels[[0, 2]])
    assert torch.equal(planes[:4], q[:4]) and torch.equal(planes[6:], q[6:])


def test_offsets_may_be_a_view(backend: str) -> None:
    arguments = QUICK[0].arguments()
    labels, _ = finish_masks(**arguments)
    arguments["first"] = arguments["first"].repeat_interleave(2)[::2]
    assert torch.equal(finish_masks(**arguments)[0], labels)


def test_no_stream_has_no_labels(backend: str) -> None:
    arguments = QUICK[0].arguments() | {"first": torch.zeros(1, dtype=torch.int32)}
    labels, q = finish_masks(**arguments)
    assert labels.shape == (0, 19, 27)
    assert q.shape == (9, 19, 27) and not q.any()


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_cuda_writes_every_element_and_none_beyond(dtype: torch.dtype) -> None:
    """Streams whose labels begin at any address, between two guards."""
    guard, ids = 64, torch.tensor([1, 2, 1, 2], dtype=torch.uint8)
    first = torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    with op_backends.emulated_cuda("shuffled"):
        for height, width in ((3, 15), (2, 18), (1, 133), (4, 16)):
            logits = torch.randn(4, 3, 5).to(dtype)
            labels = torch.full((guard + 3 * height * width + guard,), 99, dtype=torch.uint8)
            q = torch.full((guard + 7 * height * width + guard,), torch.nan)
            extension.load().finish_masks_cuda(
                *(logits.data_ptr(), logits.stride(), (4, 3, 5), ids.data_ptr()),
                *(first.data_ptr(), 3, (height, width), (0.0, 0.5, 3.0, 4.0)),
                *(labels[guard:].data_ptr(), q[guard:].data_ptr(), ELEMENTS[dtype], (0, 0)),
            )
            assert (labels[:guard] == 99).all() and (labels[-guard:] == 99).all()
            assert (labels[guard:-guard] <= 2).all()
            written = torch.zeros(len(q), dtype=torch.bool)
            written[guard:-guard] = True
            assert torch.equal(~q.isnan(), written)
            assert not q[guard:-guard].view(7, height, width)[6].any()


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.int32), r"first: wanted \[B \+ 1\], given \[2, 2\]"),
        (torch.zeros(0, dtype=torch.int32), r"first: wanted \[B \+ 1\], given \[0\]"),
        (torch.zeros(3, dtype=torch.int64), "first: wanted int32, given int64"),
        (torch.zeros(3, dtype=torch.int32, device="meta"), "first: on meta"),
    ],
)
def test_wrong_offsets_are_named(first: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        finish_masks(**QUICK[0].arguments() | {"first": first})
