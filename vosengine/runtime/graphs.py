"""Captured graphs (CUDA graphs): device work captured once and replayed by a single launch.

The work must be a pure function of its input tensors and of what its key contains. The first call
with a key runs eagerly, which warms up lazy initialisation; the second captures; later ones replay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")

LIMIT = 16  # maximum graphs per cache; the least recently used is evicted


class Graph(Protocol):
    """A device's graph: `capture` records a call and returns its outputs; `replay` recomputes them
    in place from the inputs' current contents."""

    def capture(self, work: Callable[[], T]) -> T: ...
    def replay(self) -> None: ...


class CudaGraph:
    """A CUDA graph; the graphs of a pool run sequentially on one stream and share memory."""

    def __init__(self, device: torch.device, pool: Any) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()
        self._pool = pool

    def capture(self, work: Callable[[], T]) -> T:
        with (
            torch.cuda.device(self._device),
            # Other threads may use the same GPU during the capture.
            torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            return work()

    def replay(self) -> None:
        self._graph.replay()


def graph_maker(device: torch.device) -> Callable[[], Graph] | None:
    """A factory of graphs that share one memory pool; None if the device has no graphs."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(device, pool)


class CapturedGraph:
    """A function captured on inputs of fixed address and shape."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self._input_tensors = list(tensors_of(inputs))
        self._graph: Graph | None = None
        self._outputs: Any = None

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def run(self, work: Callable[[Any], T], inputs: Any, make: Callable[[], Graph]) -> T:
        """`work(inputs)` by capture or replay; the next run overwrites the returned tensors."""
        for own, tensor in zip(self._input_tensors, tensors_of(inputs), strict=True):
            if own.data_ptr() != tensor.data_ptr():
                own.copy_(tensor)
        if self._graph is None:
            graph = make()
            self._outputs = graph.capture(lambda: work(self.inputs))
            self._graph = graph  # only after a successful capture
        self._graph.replay()
        outputs: T = self._outputs
        return outputs


class GraphCache:
    """The captured graphs of one stream or engine, by name and input shapes.

    make      factory of graphs
    captured  number of captures so far
    """

    def __init__(self, make: Callable[[], Graph]) -> None:
        self._make = make
        self._graphs: OrderedDict[Hashable, CapturedGraph] = OrderedDict()
        self.captured = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def run(
        self, name: Hashable, work: Callable[[Any], T], inputs: Any, *, shared: bool = False
    ) -> T:
        """`work(inputs)`, by a graph from the second call on with this name and input shapes.

        name    must include everything that the work depends on besides its input tensors
        inputs  nested tuples and lists of tensors; those of the first call become the graph's input
                buffers, which later calls overwrite
        shared  the caller keeps using the first call's tensors: copies become the buffers
        """
        key = (name, *((tuple(x.shape), x.stride(), x.dtype) for x in tensors_of(inputs)))
        graph = self._graphs.get(key)
        if graph is None:
            self._graphs[key] = CapturedGraph(copied(inputs) if shared else inputs)
            if len(self._graphs) > LIMIT:
                self._graphs.popitem(last=False)
            return work(inputs)
        self._graphs.move_to_end(key)
        self.captured += not graph.is_captured
        return graph.run(work, inputs, self._make)


def tensors_of(nested: Any) -> Iterator[torch.Tensor]:
    """Iterate over the tensors in nested tuples and lists, in order."""
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for item in nested:
            yield from tensors_of(item)


def copied(nested: Any) -> Any:
    """A copy of nested tuples and lists with cloned tensors; strides are preserved."""
    if isinstance(nested, torch.Tensor):
        return nested.clone(memory_format=torch.preserve_format)
    if isinstance(nested, tuple) and hasattr(nested, "_fields"):
        return type(nested)(*map(copied, nested))
    if isinstance(nested, (tuple, list)):
        return type(nested)(map(copied, nested))
    return nested
