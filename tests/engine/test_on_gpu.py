"""Tests that need a GPU: engines agree with the CPU, ops never synchronise, captured graphs stay
valid while the memory grows."""

from __future__ import annotations

import pytest
import torch
from quick_streams import begin, captured_by, graphs_of, play, rectangle

from vosengine.kernels import OPS, Op, read_memory, use_backend
from vosengine.kernels.parity import cases_of
from vosengine.training.synthetic import Clip
from vosengine.zoo.registry import entry, list_models

pytestmark = pytest.mark.gpu

COMPILED = [(op, name) for op in OPS for name in ("cuda", "triton") if name in op.backends]


def labels_of(clip: Clip, model: str, device: str, precision: str) -> list[torch.Tensor]:
    segmenter = begin(model, device=device, precision=precision)
    mask = rectangle(8, 8, 20, 24) if entry(model).build.takes_mask else None
    frames = list(clip.frames)[:6]
    answers = [segmenter.step(frame, mask if i == 0 else None) for i, frame in enumerate(frames)]
    results = [answer for answer in (*answers, *segmenter.flush()) if answer is not None]
    assert len(results) == len(frames)
    return [answer.labels.cpu() for answer in results]


def test_a_stream_is_that_of_the_cpu(any_model: str, small: Clip) -> None:
    on_gpu, on_cpu = (labels_of(small, any_model, device, "fp32") for device in ("cuda", "cpu"))
    for gpu_labels, cpu_labels in zip(on_gpu, on_cpu, strict=True):
        assert float((gpu_labels == cpu_labels).float().mean()) > 0.99


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_stream_runs_in_half_precision(any_model: str, small: Clip, precision: str) -> None:
    for labels in labels_of(small, any_model, "cuda", precision):
        assert labels.dtype == torch.uint8


@pytest.mark.parametrize(
    ("op", "backend"), COMPILED, ids=lambda x: x.name if isinstance(x, Op) else x
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_op_waits_for_the_device(op: Op, backend: str, dtype: torch.dtype) -> None:
    for case in cases_of(op):
        arguments = case.arguments("cuda", dtype)
        if case.bench or op.explain(**arguments)[backend] is not None:
            continue
        with use_backend(backend):
            op(**arguments)  # compiled and loaded
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                op(**arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")


CAPTURED = [name for name in list_models() if "answer" in entry(name).build.capturable]


def on_device(clip: Clip) -> list[torch.Tensor]:
    return [torch.from_numpy(frame).cuda() for frame in clip.frames]


@pytest.mark.parametrize("from_host", [False, True])
@pytest.mark.parametrize("model", [name for name in CAPTURED if name != "dmn_aoa"])
def test_a_warm_step_neither_allocates_nor_waits(model: str, small: Clip, from_host: bool) -> None:
    """dmn_aoa selects proposals on the host, which synchronises."""
    segmenter = (
        begin(model, device="cuda", memory="all")
        if model in ("stm", "munet")
        else begin(model, device="cuda")
    )
    frames = list(small.frames) if from_host else on_device(small)
    mask = rectangle(8, 8, 20, 24) if entry(model).build.takes_mask else None
    for index in range(90):  # long enough for a memory that fills, and a store that thins out
        segmenter.step(frames[index % len(frames)], mask if index == 0 else None)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for index in range(12):
            segmenter.step(frames[index % len(frames)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    after = torch.cuda.memory_stats()
    for name in ("segment.all.allocated", "num_alloc_retries"):  # calls of cudaMalloc
        assert after[name] == before[name]
    assert captured_by(segmenter) >= 2


@pytest.mark.parametrize("model", [name for name in CAPTURED if name != "imcnet"])
def test_graphs_follow_objects_that_come_and_go(model: str, small: Clip) -> None:
    streams = [begin(model, device="cuda", engine=engine) for engine in ("fast", "eager")]
    labels = []
    for segmenter in streams:
        answers = play(segmenter, small.frames[:4], {0: small.masks[0]})
        answers += play(segmenter, small.frames[4:8], {0: rectangle(30, 40, 9, 16, 7)})
        segmenter.remove(1)
        answers += play(segmenter, small.frames[4:8])
        segmenter.reset()
        answers += play(segmenter, small.frames[:4, :40], {0: small.masks[0][:40]})
        labels.append([answer.labels.cpu() for answer in answers])  # when all steps are done
    for mine, plain in zip(*labels, strict=True):
        assert float((mine == plain).float().mean()) > 0.99
    assert graphs_of(streams[0])[-1].captured > 0
    assert not graphs_of(streams[1])


def test_a_captured_reading_follows_the_memory_as_it_grows() -> None:
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").half()

    arguments = {
        "query_key": normal(150, 64),
        "memory_key": normal(2, 900, 64),
        "memory_value": normal(2, 900, 128),
        "scale": 0.125,
        "length": torch.tensor([150, 0], dtype=torch.int32, device="cuda"),
    }
    with use_backend("triton"):
        read_memory(**arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = read_memory(**arguments)
    for lengths in ([150, 0], [300, 150], [900, 900], [1, 450]):
        arguments["length"].copy_(torch.tensor(lengths, dtype=torch.int32))
        graph.replay()
        wanted = read_memory.reference(**arguments)
        torch.testing.assert_close(out, wanted, rtol=1e-2, atol=1e-2)
