"""`fit_target` of one track in ONNX operators, and the resizing it needs.

Gauss-Newton iterations are unrolled, conjugate gradients run in a Loop. Computed in float64, as the
op itself: the rounding errors of float32 in the division by the curvature are visible in the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnx import TensorProto, helper
from onnxscript import evaluator, ir
from onnxscript import opset20 as op
from torch.nn import functional

from ...kernels import fit_target
from ...kernels.fit_target.reference import CONVERGED
from .ops import TRANSLATIONS

DOUBLE, SINGLE = TensorProto.DOUBLE, TensorProto.FLOAT
Parts = tuple[Any, ...]  # fitted weights: W2 as [9, D], and W1 [D, C] if it is fitted too


@torch.library.custom_op("vosengine_onnx::fit_track", mutates_args=())
def fit_track(
    features: torch.Tensor,
    bands: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    kernel: torch.Tensor,
    projection: torch.Tensor | None,
    iterations: Sequence[int],
    ridge: Sequence[float],
) -> list[torch.Tensor]:
    """Arguments of `fit_target` without their first axis, float32 -> W2 [D, 3, 3], W1 [D, C]; W2
    alone without a projection, for features that are already projected."""
    tensors = (features, bands, targets, weight, kernel, projection)
    wide = (x[None].double() for x in tensors if x is not None)
    options = {"iterations": tuple(iterations), "ridge": (ridge[0], ridge[1])}
    fitted = fit_target.reference(*wide, **options)
    return [x[0].float() for x in fitted if x is not None]


@fit_track.register_fake
def _(*inputs: Any) -> list[torch.Tensor]:
    return [torch.empty_like(x) for x in inputs[4:6] if x is not None]


def _fit_track_node(
    features: Any,
    bands: Any,
    targets: Any,
    weight: Any,
    kernel: Any,
    projection: Any,
    iterations: Sequence[int],
    ridge: Sequence[float],
) -> list[Any]:
    problem = _Problem.of(features, bands, targets, weight)
    start: Parts = (op.Transpose(op.Reshape(_wide(kernel), [0, 9]), perm=[1, 0]),)  # [9, D]
    if projection is not None:
        start = (*start, _wide(projection))
    fitted = problem.fitted(start, iterations, (ridge[1], ridge[0])[: len(start)])
    size = [int(n) for n in kernel.shape]
    narrow = [op.Cast(part, to=SINGLE) for part in fitted]
    return [op.Reshape(op.Transpose(narrow[0], perm=[1, 0]), size), *narrow[1:]]


def _wide(x: Any) -> Any:
    return op.Cast(x, to=DOUBLE)


def _number(value: float) -> Any:
    return op.Constant(value=helper.make_tensor("", DOUBLE, [], [value]))


@dataclass(frozen=True)
class _Problem:
    """J samples of one track, float64.

    features  [C, J * h * w]
    turned    features transposed
    bands     [9, J, h, w]
    targets   [1, J, h, w]
    weight    [1, J, 1, 1]
    cells     (h, w)
    """

    features: Any
    turned: Any
    bands: Any
    targets: Any
    weight: Any
    cells: tuple[int, int]

    @classmethod
    def of(cls, features: Any, bands: Any, targets: Any, weight: Any) -> _Problem:
        channels, height, width = (int(n) for n in features.shape[1:])
        flat = op.Reshape(op.Transpose(_wide(features), perm=[1, 0, 2, 3]), [channels, -1])
        return cls(
            flat,
            op.Transpose(flat, perm=[1, 0]),
            op.Transpose(_wide(bands), perm=[1, 0, 2, 3]),
            op.Unsqueeze(_wide(targets), [0]),
            op.Unsqueeze(_wide(weight), [0, 2, 3]),
            (height, width),
        )

    def fitted(self, now: Parts, iterations: Sequence[int], ridge: Sequence[float]) -> Parts:
        diagonal = [_number(value) for value in ridge]
        for count in iterations:
            maps = self.features if len(now) == 1 else op.MatMul(now[1], self.features)
            model = _Linearised(self, now, maps, _turned(self, now, maps), diagonal)
            error = op.Sub(self.quadratic(self.convolve(maps, now[0])), self.targets)
            gradient = model.adjoint(error, now)
            right = tuple(op.Neg(part) for part in gradient)
            steps = _conjugate_gradients(model.product, right, diagonal, count)
            now = tuple(op.Add(part, step) for part, step in zip(now, steps, strict=True))
        return now

    def convolve(self, maps: Any, kernel: Any) -> Any:
        """[D, J * h * w], [9, D] -> [1, J, h, w]"""
        height, width = self.cells
        products = op.Reshape(op.MatMul(kernel, maps), [9, -1, height, width])
        padded = op.Pad(products, [0, 0, 1, 1, 0, 0, 1, 1], _number(0))
        views = []
        for tap in range(9):
            y, x = divmod(tap, 3)
            views.append(op.Slice(padded, [tap, y, x], [tap + 1, y + height, x + width], [0, 2, 3]))
        return op.Sum(*views)

    def views(self, planes: Any, back: bool = False) -> Any:
        """[1, J, h, w] -> [9, J, h, w]: the planes shifted to every tap; `back` reverses them."""
        height, width = self.cells
        padded = op.Pad(planes, [0, 0, 1, 1, 0, 0, 1, 1], _number(0))
        views = []
        for tap in range(9):
            y, x = divmod(8 - tap if back else tap, 3)
            views.append(op.Slice(padded, [y, x], [y + height, x + width], [2, 3]))
        return op.Concat(*views, axis=0)

    def quadratic(self, scores: Any) -> Any:
        """N s: [1, J, h, w]"""
        return op.ReduceSum(op.Mul(self.bands, self.views(scores)), [0], keepdims=1)


def _turned(problem: _Problem, now: Parts, maps: Any) -> Any:
    return problem.turned if len(now) == 1 else op.Transpose(maps, perm=[1, 0])


@dataclass(frozen=True)
class _Linearised:
    """The score model, linearised at the current weights."""

    problem: _Problem
    now: Parts
    maps: Any
    turned: Any  # [J * h * w, D]
    diagonal: list[Any]

    def product(self, step: Parts) -> Parts:
        """(J' N J + Lambda) d"""
        problem = self.problem
        change = problem.convolve(self.maps, step[0])
        if len(step) == 2:
            projected = op.MatMul(step[1], problem.features)
            change = op.Add(change, problem.convolve(projected, self.now[0]))
        return self.adjoint(problem.quadratic(change), step)

    def adjoint(self, change: Any, step: Parts) -> Parts:
        """J' of the weighted change, plus Lambda d."""
        problem = self.problem
        moved = op.Reshape(problem.views(op.Mul(problem.weight, change), True), [9, -1])
        gradient = [op.MatMul(moved, self.turned)]
        if len(step) == 2:
            spread = op.MatMul(op.Transpose(self.now[0], perm=[1, 0]), moved)
            gradient.append(op.MatMul(spread, problem.turned))
        parts = zip(gradient, self.diagonal, step, strict=True)
        return tuple(op.Add(part, op.Mul(ridge, d)) for part, ridge, d in parts)


def _conjugate_gradients(
    product: Callable[[Parts], Parts], right: Parts, diagonal: Sequence[Any], iterations: int
) -> Parts:
    """`iterations` steps from 0 towards A d = right, in a Loop."""
    zero = _number(0)
    n = len(right)
    turns = op.Cast(op.Range(0, iterations, 1), to=DOUBLE)
    scaled_right = tuple(op.Div(r, d) for r, d in zip(right, diagonal, strict=True))
    least = op.Mul(_number(CONVERGED), _inner(right, scaled_right))

    def turn(*carried: Any) -> tuple[Any, ...]:
        solution, residual, previous, direction, held = (
            carried[i * n : i * n + n] for i in range(5)
        )
        norms, number, rho_before, ended = carried[5 * n :]
        scaled = tuple(op.Div(r, d) for r, d in zip(residual, diagonal, strict=True))
        rho = _inner(residual, scaled)
        ended = op.Or(ended, op.LessOrEqual(rho, least))
        now = op.Equal(turns, number)
        rows = op.Unsqueeze(now, [1, 2])
        held = tuple(op.Where(rows, r, h) for r, h in zip(residual, held, strict=True))
        norms = op.Where(now, rho, norms)
        # 0 in the first iteration, whose previous residual is the residual itself.
        beta = op.Max(op.Div(op.Sub(rho, _inner(previous, scaled)), rho_before), zero)
        pairs = zip(scaled, direction, strict=True)
        direction = tuple(op.Where(ended, d, op.Add(s, op.Mul(beta, d))) for s, d in pairs)
        curved = product(direction)
        curvature = _inner(direction, curved)
        ended = op.Or(ended, op.LessOrEqual(curvature, zero))
        alpha = op.Where(ended, zero, op.Div(rho, curvature))
        pairs = zip(solution, direction, strict=True)
        solution = tuple(op.Add(s, op.Mul(alpha, d)) for s, d in pairs)
        pairs = zip(residual, curved, strict=True)
        after = tuple(op.Sub(r, op.Mul(alpha, c)) for r, c in pairs)
        after = _cleared(after, diagonal, held, norms)
        number = op.Add(number, _number(1))
        kept = (op.Identity(r) for r in residual)
        return *solution, *after, *kept, *direction, *held, norms, number, rho, ended

    nothing = tuple(op.Mul(part, zero) for part in right)
    none = op.Mul(turns, zero)
    held = tuple(op.Mul(op.Unsqueeze(none, [1, 2]), op.Unsqueeze(part, [0])) for part in right)
    state = none, zero, _number(1), op.Cast(0, to=TensorProto.BOOL)
    start = *nothing, *right, *right, *nothing, *held, *state
    return tuple(_loop(turn, start, iterations)[:n])


def _cleared(residual: Parts, diagonal: Sequence[Any], held: Parts, norms: Any) -> Parts:
    """Orthogonalise a residual against earlier ones: `held` [iterations, ...], unused rows 0."""
    sums = [
        op.ReduceSum(op.Mul(h, op.Div(r, d)), [1, 2], keepdims=0)
        for r, d, h in zip(residual, diagonal, held, strict=True)
    ]
    total = sums[0] if len(sums) == 1 else op.Add(*sums)
    zero = _number(0)
    shares = op.Where(op.Greater(norms, zero), op.Div(total, norms), zero)
    rows = op.Unsqueeze(shares, [1, 2])
    pairs = zip(residual, held, strict=True)
    return tuple(op.Sub(r, op.ReduceSum(op.Mul(rows, h), [0], keepdims=0)) for r, h in pairs)


def _loop(turn: Callable[..., tuple[Any, ...]], start: Sequence[Any], count: int) -> Sequence[Any]:
    """ONNX's Loop: `turn` maps the loop-carried values, doubles and as the last one a bool."""
    recorder: Any = evaluator.default()
    mark = len(recorder.nodes)
    name = f"loop_{mark}"
    kinds = [ir.DataType.DOUBLE] * (len(start) - 1) + [ir.DataType.BOOL]
    carried = [ir.Value(name=f"{name}_{i}", type=ir.TensorType(k)) for i, k in enumerate(kinds)]
    number = ir.Value(name=f"{name}_n", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    going = ir.Value(name=f"{name}_c", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    outputs = [op.Identity(going), *turn(*carried)]
    body = recorder.nodes[mark:]
    del recorder.nodes[mark:]
    for index, value in enumerate(v for node in body for v in node.outputs):
        value.name = f"{name}_v{index}"
    graph = ir.Graph([number, going, *carried], outputs, nodes=body, name=name)
    inputs = [op.Identity(count), op.Cast(1, to=TensorProto.BOOL), *start]
    attributes = [ir.AttrGraph("body", graph)]
    node = ir.Node("", "Loop", inputs, attributes, num_outputs=len(start), version=20)
    recorder.nodes.append(node)
    return node.outputs


def _inner(a: Parts, b: Parts) -> Any:
    sums = [op.ReduceSum(op.Mul(x, y), keepdims=0) for x, y in zip(a, b, strict=True)]
    return sums[0] if len(sums) == 1 else op.Add(*sums)


@torch.library.custom_op("vosengine_onnx::resize_like", mutates_args=())
def resize_like(planes: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Resize [N, h, w] bilinearly to the size of `like` [.., H, W]."""
    size = like.shape[-2:]
    return functional.interpolate(planes[:, None], size, mode="bilinear", align_corners=False)[
        :, 0
    ].clone()


resize_like.register_fake(lambda planes, like: planes.new_empty(planes.shape[0], *like.shape[-2:]))


def _resize_like_node(planes: Any, like: Any) -> Any:
    size = op.Shape(like, start=-2)
    resized = op.Resize(op.Unsqueeze(planes, [1]), None, None, size, axes=[2, 3], mode="linear")
    return op.Squeeze(resized, [1])


TRANSLATIONS[torch.ops.vosengine_onnx.fit_track.default] = _fit_track_node
TRANSLATIONS[torch.ops.vosengine_onnx.resize_like.default] = _resize_like_node
