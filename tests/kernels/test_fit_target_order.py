"""`fit_target` gives the same bits whenever it is called, and on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import op_backends
import pytest
import torch
from test_fit_target import flat, joint_or_not, needs_extension, problem, scene

from vosengine.kernels import fit_target, use_backend


@pytest.fixture(params=op_backends.names_of(fit_target))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


@joint_or_not
def test_results_are_new_and_always_the_same(backend: str, joint: bool) -> None:
    arguments = problem(scene(2, 9, 5), 2 if joint else None, iterations=(3, 3))
    before = {n: v.clone() for n, v in arguments.items() if isinstance(v, torch.Tensor)}
    outputs = [fit_target(**arguments) for _ in range(3)]
    for name, tensor in before.items():
        assert torch.equal(arguments[name], tensor), name
    for first, second, third in zip(*outputs, strict=True):
        if first is not None:
            assert first.is_contiguous()
            assert torch.equal(first, second) and torch.equal(first, third)
    first_kernel, first_projection = outputs[0]
    assert first_kernel.data_ptr() != arguments["kernel"].data_ptr()
    assert (first_projection is None) is (not joint)


@needs_extension
@joint_or_not
def test_threads_change_no_bit(joint: bool) -> None:
    """Whether a thread takes whole samples or all threads share each (few samples)."""
    arguments = problem(scene(2, 9, 5), 2 if joint else None, iterations=(3, 3))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            with use_backend("cpu"):
                results.append(flat(fit_target(**arguments)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
