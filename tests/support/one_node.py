"""Run an op as one node of the domain "vosengine" in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper

from vosengine.kernels.deform_conv.reference import as_pair
from vosengine.onnx.library import DOMAIN, find_library
from vosengine.onnx.sessions import session_options

# Element types of the outputs; of other operators one float32.
KINDS = {
    "finish_masks": [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT],
    "group_centres": [onnx.TensorProto.UINT8, onnx.TensorProto.INT32, onnx.TensorProto.FLOAT],
}
Inputs = Mapping[str, np.ndarray | None]


def run_node(
    name: str, inputs: Inputs, outputs: int = 1, threads: int = 1, **attributes: Any
) -> list[np.ndarray]:
    """The outputs of one node; inputs that are None are omitted."""
    feeds = {key: value for key, value in inputs.items() if value is not None}
    names = [key if key in feeds else "" for key in inputs]
    results = [f"out{i}" for i in range(outputs)]
    node = helper.make_node(name, names, results, domain=DOMAIN, **attributes)
    values = [
        helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for key, x in feeds.items()
    ]
    kinds = KINDS.get(name, [onnx.TensorProto.FLOAT])
    output_infos = [
        helper.make_tensor_value_info(result, kind, None)
        for result, kind in zip(results, kinds, strict=False)
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    graph = helper.make_graph([node], name, values, output_infos)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        session_options(threads, find_library([f"{DOMAIN}::{name}"])),
        providers=["CPUExecutionProvider"],
    )
    answers: list[np.ndarray] = session.run(None, feeds)
    return answers


def array(x: torch.Tensor | None, dtype: torch.dtype = torch.float32) -> np.ndarray | None:
    """A contiguous array, as onnxruntime requires."""
    return None if x is None else x.to(dtype).contiguous().numpy()


def _read_memory(
    query_key: Any,
    memory_key: Any,
    memory_value: Any,
    *,
    scale: float,
    bias: Any = None,
    length: Any = None,
    top_k: int | None = None,
    pages: Any = None,
    query_of: Any = None,
) -> torch.Tensor:
    inputs = {
        "query_key": array(query_key),
        "memory_key": array(memory_key),
        "memory_value": array(memory_value),
        "bias": array(bias),
        "length": array(length, torch.int32),
        "pages": array(pages, torch.int32),
        "query_of": array(query_of, torch.int32),
    }
    return torch.from_numpy(run_node("read_memory", inputs, scale=scale, top_k=top_k or 0)[0])


def _finish_masks(
    logits: Any,
    ids: Any,
    *,
    size: Any,
    region: Any,
    probabilities: bool = False,
    first: Any = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    inputs = {
        "logits": array(logits),
        "ids": array(ids, torch.uint8),
        "size": np.array(size),
        "region": np.array(region, np.float64),
        "first": array(first, torch.int32),
    }
    labels, *planes = run_node("finish_masks", inputs, 1 + probabilities)
    return torch.from_numpy(labels), torch.from_numpy(planes[0]) if planes else None


def _prepare_frame(
    frame: Any,
    *,
    size: Any,
    padding: Any,
    mean: Any,
    std: Any,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> torch.Tensor:
    inputs = {
        "frame": array(frame, torch.uint8 if frame.dtype == torch.uint8 else torch.float32),
        "size": np.array(size),
        "padding": np.array(padding),
    }
    out = torch.from_numpy(run_node("prepare_frame", inputs, mean=mean, std=std)[0]).to(dtype)
    return out[None].contiguous(memory_format=torch.channels_last)[0] if channels_last else out


def _correlate_frames(
    query: Any,
    previous: Any,
    *,
    radius: int = 12,
    temperature: Any = 20.0,
    outside: str = "zero",
) -> torch.Tensor:
    sharpness = np.array(float(temperature), np.float32)
    inputs = {"query": array(query), "previous": array(previous), "temperature": sharpness}
    exclude = int(outside == "exclude")
    outputs = run_node("correlate_frames", inputs, radius=radius, exclude_outside=exclude)
    return torch.from_numpy(outputs[0])


def _deform_conv(
    x: Any,
    offset: Any,
    weight: Any,
    *,
    bias: Any = None,
    mask: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    inputs = {"x": array(x), "offset": array(offset), "weight": array(weight)}
    inputs |= {"bias": array(bias), "mask": array(mask)}
    pairs = {"stride": as_pair(stride), "padding": as_pair(padding), "dilation": as_pair(dilation)}
    return torch.from_numpy(run_node("deform_conv", inputs, groups=groups, **pairs)[0])


def _group_centres(
    heatmap: Any,
    offset: Any,
    foreground: Any,
    *,
    threshold: float = 0.1,
    window: int = 7,
    limit: int = 20,
) -> tuple[torch.Tensor, ...]:
    inputs = {
        "heatmap": array(heatmap),
        "offset": array(offset),
        "foreground": array(foreground, torch.bool),
        "threshold": np.array(threshold, np.float64),
    }
    outputs = run_node("group_centres", inputs, 3, window=window, limit=limit)
    labels, centres, scores = map(torch.from_numpy, outputs)
    return labels, centres, scores.to(heatmap.dtype)


def _pool_regions(
    levels: Any,
    boxes: Any,
    *,
    strides: Any,
    frame: Any = None,
    planes: Any = None,
    plane_stride: int = 1,
    size: int = 14,
    sampling: int = 2,
    aligned: bool = True,
) -> torch.Tensor:
    inputs = {
        "boxes": array(boxes, torch.float64),
        "frame": array(frame, torch.int32),
        "planes": array(planes),
        **{f"level{i}": array(level) for i, level in enumerate(levels)},
    }
    attributes = {"strides": strides, "plane_stride": plane_stride, "size": size}
    attributes |= {"sampling": sampling, "aligned": int(aligned)}
    return torch.from_numpy(run_node("pool_regions", inputs, **attributes)[0])


BY_NODE: dict[str, Callable[..., Any]] = {
    "correlate_frames": _correlate_frames,
    "deform_conv": _deform_conv,
    "finish_masks": _finish_masks,
    "group_centres": _group_centres,
    "pool_regions": _pool_regions,
    "prepare_frame": _prepare_frame,
    "read_memory": _read_memory,
}
