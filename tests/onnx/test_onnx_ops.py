"""The library's operators in onnxruntime: op by op, and errors."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from one_node import BY_NODE, run_node
from onnx import helper, save
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from vosengine.errors import DependencyError
from vosengine.kernels import OPS, Op, stand_in
from vosengine.kernels.cases import Case
from vosengine.kernels.parity import cases_of, check_parity
from vosengine.onnx import library
from vosengine.onnx.manifest import Graph, Port
from vosengine.onnx.sessions import Session

CPU = ["CPUExecutionProvider"]
RNG = np.random.default_rng(0)

needs_library = pytest.mark.skipif(
    not library.LIBRARY.is_file(), reason="the library of operators is not built"
)


def all_calls() -> Iterator[Any]:
    for op in OPS:
        for case in cases_of(op) if op.name in BY_NODE else ():
            if not case.bench:
                yield pytest.param(op, case, id=f"{op.name}-{case.name}")


@needs_library
@pytest.mark.parametrize(("op", "case"), list(all_calls()))
def test_an_operator_agrees_with_the_reference(op: Op, case: Case) -> None:
    with stand_in(BY_NODE):
        verdict = check_parity(op, case, "reference")
    assert verdict.fault is None, verdict


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def memory(**changes: Any) -> dict[str, Any]:
    query, key, value = floats(5, 8), floats(2, 30, 8), floats(2, 30, 16)
    return {"query_key": query, "memory_key": key, "memory_value": value, **changes}


@needs_library
def test_threads_are_the_sessions() -> None:
    inputs = memory()
    one, more = (run_node("read_memory", inputs, threads=n, scale=0.3, top_k=0) for n in (1, 3))
    np.testing.assert_array_equal(one[0], more[0])


LEVELS = {"boxes": np.zeros((1, 4)), "frame": None, "planes": None, "level": floats(1, 3, 8, 8)}
POOL = {"strides": [4], "plane_stride": 1, "size": 7, "sampling": 2, "aligned": 1}
HEAT: dict[str, Any] = {
    "heatmap": floats(1, 8, 9),
    "offset": floats(1, 2, 8, 9),
    "foreground": np.ones((1, 8, 9), bool),
    "threshold": np.array(0.1),
}
CENTRES: dict[str, Any] = {"outputs": 3, "window": 7, "limit": 20}
WARP = {"x": floats(1, 4, 9, 9), "offset": floats(1, 18, 9, 9), "weight": floats(6, 4, 3, 3)}
CONVOLUTION = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
FRAME = {"frame": np.zeros((8, 9, 3), np.uint8), "size": np.array([8, 9]), "padding": np.zeros(4)}
FRAME["padding"] = FRAME["padding"].astype(np.int64)
COLOURS = {"mean": [0.5] * 3, "std": [0.2] * 3}
LOGITS: dict[str, Any] = {
    "logits": floats(2, 4, 4),
    "ids": np.array([1, 2], np.uint8),
    "size": np.array([8, 8]),
    "region": np.array([0.0, 0, 4, 4]),
}


@needs_library
@pytest.mark.parametrize(
    ("name", "inputs", "attributes", "message"),
    [
        ("read_memory", memory(memory_value=floats(2, 29, 16)), {"scale": 1.0, "top_k": 0},
         "memory_value: wanted [G=2, L=30, Cv], given [2, 29, 16]"),
        ("read_memory", memory(query_key=floats(5, 9)), {"scale": 1.0, "top_k": 0},
         "query_key: wanted [P, Ck=8], given [5, 9]"),
        ("read_memory", memory(bias=floats(2, 3)), {"scale": 1.0, "top_k": 0}, "bias: wanted"),
        ("read_memory", memory(memory_key=floats(2, 0, 8), memory_value=floats(2, 0, 16)),
         {"scale": 1.0, "top_k": 0}, "memory_key: wanted at least one position, given 0"),
        ("read_memory", memory(), {"scale": 1.0, "top_k": -1}, "top_k: wanted at least 1, or 0"),
        ("read_memory", memory(), {"top_k": 0}, "scale"),
        ("prepare_frame", {**FRAME, "frame": np.zeros((8, 9, 4), np.uint8)}, COLOURS,
         "frame: wanted [H, W, 3], given [8, 9, 4]"),
        ("prepare_frame", {**FRAME, "frame": np.zeros((8, 9, 3), np.int64)}, COLOURS,
         "frame: wanted uint8 or float elements"),
        ("prepare_frame", {**FRAME, "size": np.array([0, 9])}, COLOURS, "size: wanted at least 1"),
        ("prepare_frame", FRAME, {**COLOURS, "std": [0.2]}, "std: wanted 3 numbers, given 1"),
        ("finish_masks", {**LOGITS, "ids": np.ones(3, np.uint8)}, {}, "ids: wanted [O=2], given"),
        ("finish_masks", {**LOGITS, "region": np.zeros(3)}, {}, "region: wanted [4], given [3]"),
        ("correlate_frames",
         {"query": floats(1, 4, 5, 6), "previous": floats(1, 4, 5, 7), "temperature": floats()},
         {"radius": 2, "exclude_outside": 0}, "previous: wanted [B=1, C=4, H=5, W=6], given"),
        ("deform_conv", {**WARP, "offset": floats(1, 17, 9, 9)}, CONVOLUTION,
         "offset: wanted two numbers for every tap"),
        ("deform_conv", {**WARP, "offset": floats(1, 18, 8, 9)}, CONVOLUTION,
         "offset: wanted the size of the result, given 8"),
        ("deform_conv", WARP, {**CONVOLUTION, "groups": 2}, "groups: wanted a divisor"),
        ("pool_regions", LEVELS, {**POOL, "strides": [4, 8]}, "levels: wanted as many as strides"),
        ("pool_regions", {**LEVELS, "level": floats(2, 3, 8, 8)}, POOL,
         "frame: wanted the image of every region"),
        ("group_centres", {**HEAT, "offset": floats(1, 2, 8, 8)}, CENTRES,
         "offset: wanted [B=1, 2, H=8, W=9], given [1, 2, 8, 8]"),
        ("group_centres", {**HEAT, "threshold": np.array(np.nan)}, CENTRES, "threshold: wanted"),
        ("group_centres", HEAT, {**CENTRES, "window": 4}, "window: wanted an odd number of cells"),
        ("group_centres", HEAT, {**CENTRES, "limit": 256}, "limit: wanted 1 to 255, given 256"),
        ("pool_regions", LEVELS, {**POOL, "sampling": 9}, "sampling: wanted 1 to 8, given 9"),
    ],
)  # fmt: skip
def test_a_node_that_cannot_be_is_an_error(
    name: str, inputs: Any, attributes: Any, message: str
) -> None:
    """Invalid calls raise onnxruntime's error with the operator's name; no invalid read."""
    with pytest.raises((Fail, RuntimeException), match=re.escape(message)) as caught:
        run_node(name, inputs, **attributes)
    assert name in str(caught.value)


@needs_library
def test_a_number_of_threads_that_is_none() -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("vosengine.threads", "-2")
    with pytest.raises(Fail, match="threads: wanted at least 0, given -2"):
        options.register_custom_ops_library(str(library.LIBRARY))


def test_a_library_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "lib.so")
    with pytest.raises(DependencyError, match=r"vosengine::b.* is not there .*--ops standard"):
        library.find_library(["vosengine::b"])


def test_a_library_of_another_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib.so").write_bytes(b"MZ" + bytes(100))
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "lib.so")
    with pytest.raises(DependencyError, match=r"cannot be loaded here .*--ops standard"):
        library.find_library(["vosengine::b"])


@needs_library
def test_a_library_of_another_version() -> None:
    wanted = library.VERSION + 1
    message = rf"read_memory: wanted version {wanted}, .* has version {library.VERSION}; export"
    with pytest.raises(DependencyError, match=message):
        library.find_library(["vosengine::read_memory"], wanted)


@needs_library
def test_a_library_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads, and has no version."""
    other = next((Path(torch.__file__).parent / "lib").glob("libc10.so"))
    shutil.copy(other, tmp_path / "lib.so")
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "lib.so")
    with pytest.raises(DependencyError, match=r"cannot be loaded here .*vosengine_ops_version"):
        library.find_library(["vosengine::b"])


@pytest.mark.parametrize("operator", ["vosengine::read_memory", "com.microsoft::NoSuchThing"])
def test_a_runtime_without_the_operator(operator: str, tmp_path: Path) -> None:
    domain, name = operator.split("::")
    tensors = [helper.make_tensor_value_info(n, 1, [2]) for n in "xy"]
    node = helper.make_node(name, ["x"], ["y"], domain=domain)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(domain, 1)]
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:])
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "g.onnx")
    ports = [(Port(name, "float32", (2,)),) for name in "xy"]
    described = Graph("g.onnx", "", ports[0], ports[1], (operator,))
    message = rf"does not take operator {operator} .*--ops standard"
    with pytest.raises(DependencyError, match=message):
        Session(tmp_path / "g.onnx", described, CPU, 1)
