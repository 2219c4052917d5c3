"""Forms that onnxruntime runs faster: they compute the same, and are what it runs in that way."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from vosengine.onnx.export.layout import TRANSLATIONS, align_channels

pytestmark = pytest.mark.slow


def graph_of(module: nn.Module, x: torch.Tensor, path: Path) -> onnx.ModelProto:
    """Export with free height and width, in multiples of 8."""
    height, width = torch.export.Dim("h", max=512), torch.export.Dim("w", max=512)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (x,),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=({2: 8 * height, 3: 8 * width},),
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    program.save(str(path))
    return onnx.load(str(path))


def run(path: Path, x: torch.Tensor, optimised: Path | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return output


class Blurred(nn.Module):
    """Convolutions of 13 channels after one of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 13, 3, padding=1), nn.Conv2d(13, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(functional.relu(self.first(x)))


def convolutions(path: Path) -> list[str]:
    """Domains of the convolutions of a graph, in order."""
    return [node.domain for node in onnx.load(str(path)).graph.node if node.op_type == "Conv"]


def test_aligned_convolutions_are_the_same_in_the_blocked_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Blurred(), torch.randn(2, 3, 16, 24)
    other = torch.randn(2, 3, 40, 8)
    wanted = [network(y).detach() for y in (x, other)]
    model = graph_of(network, x, tmp_path / "plain.onnx")
    run(tmp_path / "plain.onnx", x, tmp_path / "plain-run.onnx")
    align_channels(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(tmp_path / "aligned.onnx"))
    # Few channels have a form of their own.
    assert [tensor.dims[1] for tensor in model.graph.initializer if len(tensor.dims) == 4] == [
        3,
        16,
    ]
    for y, truth in zip((x, other), wanted, strict=True):
        outputs = run(tmp_path / "aligned.onnx", y, tmp_path / "aligned-run.onnx")
        np.testing.assert_allclose(outputs, truth.numpy(), rtol=1e-4, atol=1e-5)
    blocked = "com.microsoft.nchwc"
    if blocked in convolutions(tmp_path / "plain-run.onnx"):  # this processor has such a layout
        assert convolutions(tmp_path / "plain-run.onnx")[1] != blocked
    assert convolutions(tmp_path / "aligned-run.onnx")[1] == (
        blocked if blocked in convolutions(tmp_path / "plain-run.onnx") else ""
    )


def test_constants_of_a_subgraph_are_kept() -> None:
    """A constant that only the body of an If takes, and the weights that are replaced."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    body = helper.make_graph(
        [helper.make_node("Identity", ["outer"], ["chosen"])],
        "body",
        [],
        [helper.make_tensor_value_info("chosen", floats, [1])],
    )
    nodes = [
        helper.make_node("If", ["condition"], ["z"], then_branch=body, else_branch=body),
        helper.make_node("Conv", ["x", "weight"], ["y"]),
    ]
    shapes = {"outer": (1,), "weight": (2, 5, 1, 1)}
    constants = [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in shapes.items()]
    inputs = [
        helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", floats, [1, 5, 4, 4]),
    ]
    sizes = {"z": [1], "y": [1, 2, 4, 4]}
    outputs = [helper.make_tensor_value_info(n, floats, size) for n, size in sizes.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    align_channels(model)
    names = {tensor.name for tensor in model.graph.initializer}
    assert "outer" in names and "weight" not in names
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {"condition": np.array(True), "x": np.ones((1, 5, 4, 4), np.float32)}
    z, y = session.run(None, feeds)
    assert z.tolist() == [1.0] and (y == 5).all()


@pytest.mark.parametrize(
    ("pool", "operator"),
    [
        (nn.AvgPool2d(8), "ReduceMean"),
        (nn.AvgPool2d((4, 8)), "ReduceMean"),
        (nn.AvgPool2d((2, 4), stride=(2, 4)), "ReduceMean"),
        (nn.AvgPool2d(4, stride=2), "AveragePool"),
        (nn.AvgPool2d(3, stride=3, padding=1), "AveragePool"),
        (nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), "AveragePool"),
    ],
)
def test_averages_are_torchs(pool: nn.Module, operator: str, tmp_path: Path) -> None:
    x, other = torch.randn(2, 3, 24, 32), torch.randn(2, 3, 8, 48)
    graph = graph_of(pool, x, tmp_path / "pool.onnx")
    types = {node.op_type for node in graph.graph.node}
    assert operator in types and len(types & {"ReduceMean", "AveragePool"}) == 1
    for y in (x, other):
        np.testing.assert_allclose(run(tmp_path / "pool.onnx", y), pool(y).numpy(), atol=1e-6)
