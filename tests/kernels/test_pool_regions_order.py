"""`pool_regions` gives the same bits whatever the threads and the layout."""

from __future__ import annotations

import op_backends
import pytest
import torch
from test_pool_regions import needs_emulation, needs_extension, whole

from vosengine.kernels import pool_regions, use_backend
from vosengine.kernels.pool_regions.cases import CASES


@needs_extension
def test_threads_do_not_change_a_bit() -> None:
    before = torch.get_num_threads()
    try:
        outputs = []
        for threads in (1, 2, 7, 2):
            torch.set_num_threads(threads)
            with use_backend("cpu"):
                outputs.append(pool_regions(**whole()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@needs_emulation
@pytest.mark.slow
def test_the_order_of_threads_changes_no_bit() -> None:
    for name in ("channels last", "strided", "many regions"):
        arguments = next(case for case in CASES if case.name == name).arguments()
        outputs = []
        for order in (*op_backends.ORDERS, "forwards"):
            with op_backends.emulated_cuda(order), use_backend("cuda"):
                outputs.append(pool_regions(**arguments))
        assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@needs_emulation
def test_the_layout_of_a_map_changes_no_bit() -> None:
    arguments = next(case for case in CASES if case.name == "channels last").arguments()
    rows = tuple(level.contiguous() for level in arguments["levels"])
    with op_backends.emulated_cuda("forwards"), use_backend("cuda"):
        assert torch.equal(pool_regions(**arguments), pool_regions(**arguments | {"levels": rows}))
