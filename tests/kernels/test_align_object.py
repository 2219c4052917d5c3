"""`align_object` on every backend, against independent implementations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import op_backends
import pytest
import torch
from torch.nn import functional

from vosengine.kernels import ShapeError, align_object, use_backend
from vosengine.kernels.align_object.cases import CASES
from vosengine.kernels.parity import widened

either_score = pytest.mark.parametrize("score", ["mean", "flat"])
SMALL = [case for case in CASES if not case.bench]


@pytest.fixture(params=op_backends.names_of(align_object))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with op_backends.running_on(request.param):
        yield request.param


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (max(np.linalg.norm(a), 1e-12) * max(np.linalg.norm(b), 1e-12)))


def equations(
    template: torch.Tensor,
    proposal: torch.Tensor,
    *,
    alpha: float = 100.0,
    score: str = "mean",
    translate: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations 2 and 3 as numpy loops in float64."""
    t, p = template.double().numpy(), proposal.double().numpy()
    scores = np.zeros((len(t), len(p)))
    moved = np.zeros((len(t), len(p), *t.shape[1:]))
    for o, m in np.ndindex(scores.shape):
        for i, here in enumerate(t[o]):
            sharp = alpha * np.array([cosine(here, there) for there in p[m]])
            weights = np.exp(sharp - sharp.max())
            moved[o, m, i] = weights / weights.sum() @ p[m]
        scores[o, m] = (
            np.mean([cosine(a, b) for a, b in zip(t[o], moved[o, m], strict=True)])
            if score == "mean"
            else cosine(t[o].flatten(), moved[o, m].flatten())
        )
    return torch.from_numpy(scores), torch.from_numpy(moved)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_follows_the_equations(backend: str, case: Any) -> None:
    arguments = case.arguments()
    score, moved = align_object(**arguments)
    plain_score, plain_moved = align_object.reference(**arguments)
    true_score, true_moved = equations(**arguments)
    op_backends.assert_near(score, plain_score, true_score)
    assert (moved is None) == (not arguments.get("translate", False))
    if moved is not None:
        op_backends.assert_near(moved, plain_moved, true_moved)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 100.0])
def test_is_attention_on_vectors_of_length_one(backend: str, alpha: float) -> None:
    template, proposal = draw(3, 10, 16, seed=1), draw(4, 13, 16, seed=2)
    score, moved = align_object(template, proposal, alpha=alpha, translate=True)
    plain = align_object.reference(template, proposal, alpha=alpha, translate=True)
    query, key = (functional.normalize(x.double(), dim=2) for x in (template, proposal))
    attended = functional.scaled_dot_product_attention(
        query[:, None], key[None], proposal.double()[None], scale=alpha
    )
    op_backends.assert_near(moved, plain[1], attended)
    cosines = functional.cosine_similarity(template.double()[:, None], attended, dim=3)
    op_backends.assert_near(score, plain[0], cosines.mean(dim=2))


@either_score
def test_an_object_is_like_itself_wherever_its_parts_are(backend: str, score: str) -> None:
    template = draw(2, 49, 64)
    order = torch.randperm(49, generator=torch.Generator().manual_seed(3))
    still, moved = (
        align_object(template, p, score=score)[0] for p in (template, template[:, order])
    )
    assert still.diagonal().min() > 0.999
    torch.testing.assert_close(moved, still)
    plain = functional.cosine_similarity(template, template[:, order], dim=2).mean(dim=1)
    assert plain.abs().max() < 0.3  # what alignment is for
    assert still[0, 1] < 0.8 * still[0, 0]


def test_parts_come_back_to_their_place(backend: str) -> None:
    template = draw(1, 49, 64)
    order = torch.randperm(49, generator=torch.Generator().manual_seed(3))
    proposal = 2 * template[:, order]
    translated = align_object(template, proposal, translate=True)[1]
    torch.testing.assert_close(translated[0, 0], 2 * template[0], rtol=0, atol=1e-4)


def test_lengths_of_vectors_do_not_matter_to_the_correspondence(backend: str) -> None:
    template, proposal = draw(2, 9, 16, seed=1), draw(3, 9, 16, seed=2)
    wanted = align_object(template, proposal)[0]
    lengths = torch.exp(2 * draw(2, 9, 1, seed=3))
    torch.testing.assert_close(align_object(lengths * template, proposal)[0], wanted)
    torch.testing.assert_close(align_object(template, 1e4 * proposal)[0], wanted)
    torch.testing.assert_close(align_object(1e-4 * template, 1e-4 * proposal)[0], wanted)


def test_the_flat_score_weighs_positions_by_their_length(backend: str) -> None:
    """One of two positions matches; its norm decides its weight in the score."""
    template = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    proposal = torch.tensor([[[1.0, 0.0], [1.0, -1e-3]]])
    mean = align_object(template, proposal, score="mean")[0]
    flat = align_object(template, proposal, score="flat")[0]
    assert mean.item() == pytest.approx(0.5, abs=1e-3)
    assert flat.item() == pytest.approx(3 / (10 * 2) ** 0.5, abs=1e-3)


def test_a_great_alpha_chooses_the_nearest_and_none_the_mean(backend: str) -> None:
    template, proposal = draw(2, 7, 8, seed=1), draw(3, 11, 8, seed=2)
    cosines = functional.cosine_similarity(
        template[:, None, :, None], proposal[None, :, None], dim=4
    )
    nearest = torch.stack([proposal[m][cosines[:, m].argmax(dim=2)] for m in range(3)], dim=1)
    sharp = align_object(template, proposal, alpha=1e6, translate=True)[1]
    torch.testing.assert_close(sharp, nearest)
    blunt = align_object(template, proposal, alpha=0.0, translate=True)[1]
    wanted = proposal.mean(dim=1)[None, :, None].expand_as(blunt)
    torch.testing.assert_close(blunt, wanted)


@either_score
def test_zero_vectors_are_like_nothing(backend: str, score: str) -> None:
    zero, some = torch.zeros(1, 9, 8), draw(1, 9, 8)
    for pair in ((zero, some), (some, zero), (zero, zero)):
        assert align_object(*pair, score=score)[0].item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_reference_computes_half_precision_in_float32(dtype: torch.dtype) -> None:
    template, proposal = draw(2, 9, 16, seed=1).to(dtype), draw(3, 9, 16, seed=2).to(dtype)
    with use_backend("reference"):
        out = align_object(template, proposal, translate=True)
        wide = align_object(template.float(), proposal.float(), translate=True)
    for narrow, full in zip(out, wide, strict=True):
        assert narrow.dtype == dtype
        assert torch.equal(narrow, full.to(dtype))


@either_score
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
def test_a_nan_is_not_hidden(backend: str, score: str) -> None:
    """A NaN in a template makes its row of scores NaN, one in a proposal its column."""
    clean = {"template": draw(2, 9, 8, seed=1), "proposal": draw(3, 9, 8, seed=2)}
    for name, wanted in (("template", [[1, 1, 1], [0, 0, 0]]), ("proposal", [[1, 0, 0]] * 2)):
        arguments = {n: value.clone() for n, value in clean.items()}
        arguments[name][0, 4, 3] = torch.nan
        out, _ = align_object(**arguments, score=score)
        assert out.isnan().int().tolist() == wanted


def test_the_same_call_gives_the_same_bits(backend: str) -> None:
    arguments = {"template": draw(3, 13, 20, seed=1), "proposal": draw(2, 19, 20, seed=2)}
    first, again = (align_object(**arguments)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_the_triton_backend_says_what_it_does_not_take() -> None:
    arguments = {"template": torch.zeros(1, 4, 8), "proposal": torch.zeros(2, 4, 8)}
    reason = align_object.explain(**widened(arguments))["triton"]
    assert reason == "wants float16, bfloat16 or float32, given torch.float64"
    wide = {name: torch.zeros(1, 4, 513) for name in arguments}
    assert align_object.explain(**wide)["triton"] == "wants at most 512 channels, given 513"


@either_score
def test_has_a_gradient(score: str) -> None:
    arguments = [draw(2, 3, 4, seed=1).double(), draw(2, 5, 4, seed=2).double()]
    assert torch.autograd.gradcheck(
        lambda t, p: align_object(t, p, alpha=5.0, score=score, translate=True),
        [x.requires_grad_() for x in arguments],
    )


def test_strides_do_not_matter_and_inputs_stay(backend: str) -> None:
    views = [draw(3, 16, 20, seed=seed).mT[:, 1:-3:2, ::2] for seed in (1, 2)]
    copies = [x.contiguous() for x in views]
    score, moved = align_object(*views, translate=True)
    assert score.is_contiguous() and moved.is_contiguous()
    torch.testing.assert_close((score, moved), align_object(*copies, translate=True))
    assert all(torch.equal(a, b) for a, b in zip(views, copies, strict=True))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("template", torch.zeros(9, 8), r"template: wanted \[O, P, C\], given \[9, 8\]"),
        ("proposal", torch.zeros(3, 9, 7), "proposal: wanted .* with C = 8"),
        ("proposal", torch.zeros(3, 9, 8).double(), "proposal: wanted float32, given float64"),
        ("proposal", torch.zeros(3, 9, 8, device="meta"), "proposal: on meta"),
        ("template", torch.zeros(2, 9, 8, dtype=torch.uint8), "template: wanted float16"),
        ("template", torch.zeros(2, 0, 8), "template: wanted at least one position"),
        ("proposal", torch.zeros(3, 0, 8), "proposal: wanted at least one position"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: torch.Tensor, message: str) -> None:
    arguments = {"template": torch.zeros(2, 9, 8), "proposal": torch.zeros(3, 9, 8)}
    with pytest.raises(ShapeError, match=message):
        align_object(**arguments | {name: value})


def test_wrong_options_are_named() -> None:
    template, proposal = draw(1, 4, 8), draw(2, 4, 8)
    for alpha in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="alpha: wanted a finite number, 0 or more"):
            align_object(template, proposal, alpha=alpha)
    with pytest.raises(ValueError, match="score: wanted one of mean, flat, given 'max'"):
        align_object(template, proposal, score="max")
