"""`match_proposals` on every backend and instruction set, against independent implementations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import op_backends
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog
from torch.nn import functional

from vosengine.kernels import (
    ShapeError,
    UnsupportedBackend,
    match_proposals,
    use_backend,
)
from vosengine.kernels.extension import missing

SHAPES = ((1, 1), (1, 30), (3, 30), (10, 30), (4, 5), (4, 4), (6, 3), (5, 1))
needs_extension = pytest.mark.skipif(missing is not None, reason=str(missing))
needs_emulation = pytest.mark.skipif(
    "cuda forwards" not in op_backends.names_of(match_proposals), reason="needs CUDA on the CPU"
)


@pytest.fixture(params=op_backends.names_of(match_proposals))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def cosines(objects: int, proposals: int, seed: int = 0) -> torch.Tensor:
    """Any similarities, uniform in -1..1."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(objects, proposals, generator=generator) - 1


def well_separated(objects: int, proposals: int, seed: int = 0) -> torch.Tensor:
    """0.3 to 0.6, and 0.9 for matching pairs."""
    generator = torch.Generator().manual_seed(seed)
    similarity = 0.3 + 0.3 * torch.rand(objects, proposals, generator=generator)
    count = min(objects, proposals)
    rows = torch.randperm(objects, generator=generator)[:count]
    similarity[rows, torch.randperm(proposals, generator=generator)[:count]] = 0.9
    return similarity


def with_added_columns(similarity: torch.Tensor) -> torch.Tensor:
    objects, proposals = similarity.shape
    return functional.pad(similarity, (0, max(0, objects + 1 - proposals)))


def transcription(
    similarity: torch.Tensor,
    *,
    steps: int = 40,
    inner: int = 5,
    rate: float = 0.1,
    answer: str = "final",
) -> torch.Tensor:
    """The algorithm in float64, row by row and column by column, with all three corrections.

    answer  also "mean": that of "dmm" before its rows are reduced to their maxima.
    """
    cost = -with_added_columns(similarity.double()).numpy()
    n, m = cost.shape
    lowest = np.full((n, m), cost.max())
    for j in range(m):
        i = min(range(n), key=lambda i: (cost[i, j], i))
        lowest[i, j] = cost[i, j]
    x = np.zeros((n, m))
    for i in range(n):
        x[i, min(range(m), key=lambda j: (lowest[i, j], j))] = 1
    recorded, corrections = [x.copy()], np.zeros((3, n, m))
    for _ in range(steps):
        x = x - rate * cost
        recorded.append(x)
        for _ in range(inner):
            before = x + corrections[0]
            x = np.where(before < 0, 0, before)
            corrections[0] = before - x
            before = x + corrections[1]
            x = before.copy()
            for j in range(m):
                if before[:, j].sum() > 1:
                    x[:, j] -= (before[:, j].sum() - 1) / n
            corrections[1] = before - x
            before = x + corrections[2]
            x = np.stack([row - (row.sum() - 1) / m for row in before])
            corrections[2] = before - x
    if answer != "final":
        x = np.mean(recorded, axis=0)
    if answer == "dmm":
        x[x < x.max(axis=1, keepdims=True) - 1e-5] = 0
    return torch.from_numpy(x[:, : similarity.shape[1]].copy())


def assert_follows_the_text(similarity: torch.Tensor, **options: Any) -> None:
    plain = match_proposals.reference(similarity, **options)
    truth = transcription(similarity, **options)
    op_backends.assert_near(match_proposals(similarity, **options), plain, truth)


@pytest.mark.parametrize("answer", ["final", "dmm"])
def test_follows_the_text(backend: str, answer: str) -> None:
    for shape in ((1, 9), (3, 30), (4, 4), (6, 3), (5, 1)):
        assert_follows_the_text(cosines(*shape), steps=12, answer=answer)
    assert_follows_the_text(well_separated(3, 30), answer=answer)
    assert_follows_the_text(cosines(3, 8), steps=7, inner=11, rate=0.4, answer=answer)
    assert_follows_the_text(cosines(4, 6), steps=1, inner=1, answer=answer)


@pytest.mark.slow
def test_finds_the_optimal_assignment(backend: str) -> None:
    """If similarities are well separated, row maxima agree with the Hungarian algorithm."""
    for seed, shape in enumerate(SHAPES * (25 if backend.startswith("cpu") else 1)):
        similarity = well_separated(*shape, seed)
        out = match_proposals(similarity)
        rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
        assert out[rows].argmax(dim=1).tolist() == columns.tolist()
        unmatched = np.setdiff1d(np.arange(shape[0]), rows)
        assert (out[rows, columns] > 0.8 if not len(unmatched) else out[rows, columns] > 0.4).all()
        assert (out[unmatched] < 0.5).all()


@pytest.mark.slow
def test_the_answer_is_almost_an_assignment(backend: str) -> None:
    """Five rounds leave entries down to -0.05 and column sums up to 1.05; more leave less."""
    more = {"steps": 60, "inner": 60} if backend.startswith("cpu") else {"steps": 40, "inner": 25}
    for options, loose, count in (({}, 0.05, 9), (more, 0.01, 1)):
        for seed, shape in enumerate(SHAPES * (count if backend.startswith("cpu") else 1)):
            if not backend.startswith("cpu") and options and shape != (4, 4):
                continue
            out = match_proposals(with_added_columns(cosines(*shape, seed)), **options)
            assert (out.sum(dim=1) - 1).abs().max() < 1e-6
            assert out.min() > -loose
            assert out.sum(dim=0).max() < 1 + loose


@needs_extension
def test_more_steps_approach_the_optimum_of_the_relaxed_problem() -> None:
    for seed, n, m in ((1, 4, 9), (2, 6, 8), (4, 3, 12)):
        similarity = cosines(n, m, seed)
        rows = np.kron(np.eye(n), np.ones(m))
        columns = np.kron(np.ones(n), np.eye(m))
        best = linprog(-similarity.numpy().flatten(), columns, np.ones(m), rows, np.ones(n))
        costs = [
            -float((match_proposals(similarity, steps=steps, inner=inner) * similarity).sum())
            for steps, inner in ((40, 5), (400, 50), (4000, 100))
        ]
        gaps = [abs(cost - best.fun) for cost in costs]
        assert gaps[0] > gaps[1] > gaps[2]
        assert gaps[2] < 2e-3


def test_what_was_found_of_thirty_proposals(backend: str) -> None:
    """One match of 0.9 among 0.3 to 0.6: DMM's mean is not an assignment, the last X is."""
    similarity = well_separated(3, 30)
    final = match_proposals(similarity)
    assert ((final.amax(dim=1) > 0.97) & (final.amax(dim=1) < 0.995)).all()
    torch.testing.assert_close(final.sum(dim=1), torch.ones(3), rtol=0, atol=1e-5)
    mean = transcription(similarity, answer="mean")
    assert ((mean.sum(dim=1) > 2.2) & (mean.sum(dim=1) < 2.6)).all()
    dmm = match_proposals(similarity, answer="dmm")
    assert ((dmm != 0).sum(dim=1) == 1).all()
    assert ((dmm.sum(dim=1) > 1.05) & (dmm.sum(dim=1) < 1.1)).all()


def test_fewer_proposals_are_padded_with_zeros(backend: str) -> None:
    for answer in ("final", "dmm"):
        for shape in ((4, 4), (6, 3), (5, 1)):
            similarity = cosines(*shape)
            padded = match_proposals(with_added_columns(similarity), steps=9, answer=answer)
            out = match_proposals(similarity, steps=9, answer=answer)
            torch.testing.assert_close(out, padded[:, : shape[1]], rtol=0, atol=0)


def test_a_row_whose_maximum_is_no_proposal_is_zero(backend: str) -> None:
    out = match_proposals(torch.tensor([[0.8], [-0.5]]), answer="dmm")
    assert out[0, 0] > 0.5
    assert out[1, 0] == 0


@pytest.mark.slow
def test_equal_maxima_both_stay(backend: str) -> None:
    """Proposals 1 and 2 are equal, or nearly, and the second object starts at neither."""
    for difference, stay in ((0.0, [1, 2]), (1e-6, [1, 2]), (1e-3, [2])):
        similarity = torch.tensor([[0.1, 0.9, 0.9, 0.95], [0.1, 0.8, 0.8, 0.2]])
        similarity[:, 2] += difference
        out = match_proposals(similarity, answer="dmm")
        assert out[1].nonzero().flatten().tolist() == stay
        assert_follows_the_text(similarity, answer="dmm")


def test_starts_at_the_least_cost_and_the_first_of_ties(backend: str) -> None:
    """After one step with a tiny rate the mean equals the initial X."""
    competing = [[0.1, 0.5, 0.5, 0.2], [0.5, 0.5, 0.1, 0.5]]  # column 1: the first row keeps it
    nothing_kept = [[0.3, 0.9, 0.8], [0.2, 0.8, 0.7]]
    for rows, start in (
        (competing, [1, 0]),
        (nothing_kept, [1, 0]),
        ([[0.7] * 7] * 3, [0, 0, 0]),
        ([[-0.2], [0.4], [-0.1]], [1, 0, 0]),  # row 0 keeps the columns that were added
    ):
        out = match_proposals(torch.tensor(rows), steps=1, rate=1e-7, answer="dmm")
        wanted = [[float(i == j) for j in range(len(rows[0]))] for i in start]
        torch.testing.assert_close(out, torch.tensor(wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("answer", ["final", "dmm"])
def test_twins_are_told_apart_by_their_order_alone(backend: str, answer: str) -> None:
    assert_follows_the_text(torch.full((3, 7), 0.7), answer=answer)
    twins = well_separated(4, 11)
    twins[2] = twins[0]
    twins[:, [3, 10]] = twins[:, [0, 7]]
    assert_follows_the_text(twins, answer=answer)


def test_a_nan_spoils_the_whole_answer(backend: str) -> None:
    for shape in ((1, 30), (3, 17), (5, 2)):
        similarity = cosines(*shape)
        similarity[-1, -1] = torch.nan
        for answer in ("final", "dmm"):
            assert match_proposals(similarity, answer=answer, steps=2).isnan().all()


def test_strides_do_not_matter_and_inputs_stay(backend: str) -> None:
    view = cosines(40, 12)[3::2, 1:9].mT
    copy = view.contiguous()
    out = match_proposals(view)
    assert out.is_contiguous()
    torch.testing.assert_close(out, match_proposals(copy), rtol=0, atol=0)
    assert torch.equal(view, copy)


@needs_emulation
@pytest.mark.slow
def test_the_order_of_threads_changes_no_bit() -> None:
    """In one warp, and in a block of several."""
    for shape, steps in (((3, 30), 9), ((14, 50), 3), ((19, 70), 2)):
        for answer in ("final", "dmm"):
            results = []
            for order in (*op_backends.ORDERS, "forwards"):
                with op_backends.emulated_cuda(order), use_backend("cuda"):
                    results.append(match_proposals(cosines(*shape), steps=steps, answer=answer))
            assert all(torch.equal(results[0], other) for other in results[1:])


def test_nothing_to_match(backend: str) -> None:
    for shape in ((0, 0), (0, 5), (3, 0)):
        assert match_proposals(torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    similarity = well_separated(3, 9).to(dtype)
    with use_backend("reference"):
        out, wide = match_proposals(similarity), match_proposals(similarity.float())
    assert out.dtype == dtype
    assert torch.equal(out, wide.to(dtype))


def test_the_reference_has_a_gradient() -> None:
    for shape in ((2, 4), (3, 2)):
        similarity = cosines(*shape).double().requires_grad_()
        for answer in ("final", "dmm"):
            assert torch.autograd.gradcheck(
                lambda s, answer=answer: match_proposals(s, steps=3, inner=3, answer=answer),
                similarity,
            )


@needs_emulation
def test_the_cuda_backend_says_what_it_does_not_take() -> None:
    with op_backends.emulated_cuda("forwards"):
        assert match_proposals.explain(torch.zeros(20, 64))["cuda"] is None
        reasons = match_proposals.explain(torch.zeros(60, 300))
        assert (
            "163 KiB of shared memory, given 60 objects and 300 proposals, which need 215"
            in str(reasons["cuda"])
        )
        assert match_proposals.explain(torch.zeros(45, 300), answer="final")["cuda"] is None
        assert "shared memory" in str(
            match_proposals.explain(torch.zeros(45, 300), answer="dmm")["cuda"]
        )
        wide = match_proposals.explain(torch.zeros(2, 5, dtype=torch.float64))["cuda"]
        assert wide == "wants float32, float16 or bfloat16, given torch.float64"


@needs_extension
def test_the_compiled_backend_says_what_it_does_not_take() -> None:
    similarity = cosines(2, 5)
    assert match_proposals.explain(similarity)["cpu"] is None
    with use_backend("cpu"), pytest.raises(UnsupportedBackend, match="wants float32"):
        match_proposals(similarity.double())
    learned = similarity.clone().requires_grad_()
    assert "has no gradient" in str(match_proposals.explain(learned)["cpu"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: wanted 1 or more, given 0"),
        ({"inner": -1}, "inner: wanted 1 or more, given -1"),
        ({"rate": 0.0}, "rate: wanted a positive number, given 0.0"),
        ({"rate": float("inf")}, "rate: wanted a positive number, given inf"),
        ({"rate": float("nan")}, "rate: wanted a positive number, given nan"),
        ({"answer": "best"}, "answer: wanted one of final, dmm, given 'best'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match_proposals(cosines(2, 5), **options)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ShapeError, match=r"similarity: wanted \[O, M\], given \[5\]"):
        match_proposals(torch.zeros(5))
    with pytest.raises(ShapeError, match=r"similarity: wanted float16 or .*, given int64"):
        match_proposals(torch.zeros(2, 5, dtype=torch.int64))
