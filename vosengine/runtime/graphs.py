"""Work on the device that is captured once and replayed: one launch for hundreds of kernels.

What is captured is a pure function of tensors and of the facts that its key names. A key that comes
for the first time is run eagerly, which warms up whatever is made at first use; the second time it
is captured; from then on it is replayed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")

LIMIT = 16  # graphs of a cache; past them the least recently used is dropped


class Graph(Protocol):
    """What a device offers: `capture` notes the work of a call and returns its outcome, whose
    tensors `replay` fills, from the call's inputs as they then are."""

    def capture(self, work: Callable[[], T]) -> T: ...
    def replay(self) -> None: ...


class CudaGraph:
    """CUDA's graphs; all of a pool run one after another on one stream, and share memory."""

    def __init__(self, device: torch.device, pool: Any) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()
        self._pool = pool

    def capture(self, work: Callable[[], T]) -> T:
        with (
            torch.cuda.device(self._device),
            # Other threads may drive other streams of the same card meanwhile.
            torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            return work()

    def replay(self) -> None:
        self._graph.replay()


def graph_maker(device: torch.device) -> Callable[[], Graph] | None:
    """Makes graphs that share their memory; None where the device has none."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(device, pool)


class CapturedGraph:
    """A function captured on inputs of fixed address and shape."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self._slots = list(tensors_of(inputs))
        self._graph: Graph | None = None
        self._outcome: Any = None

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def run(self, work: Callable[[Any], T], given: Any, make: Callable[[], Graph]) -> T:
        """What the work makes of `given`. Tensors that it returns are overwritten the next time."""
        for slot, tensor in zip(self._slots, tensors_of(given), strict=True):
            if slot.data_ptr() != tensor.data_ptr():
                slot.copy_(tensor)
        if self._graph is None:
            graph = make()
            self._outcome = graph.capture(lambda: work(self.inputs))
            self._graph = graph  # not where the capture failed
        self._graph.replay()
        outcome: T = self._outcome
        return outcome


class GraphCache:
    """The captured graphs of one stream or engine, by name and input shapes.

    make      makes a graph
    captured  graphs captured so far
    """

    def __init__(self, make: Callable[[], Graph]) -> None:
        self._make = make
        self._graphs: OrderedDict[Hashable, CapturedGraph] = OrderedDict()
        self.captured = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def run(
        self, name: Hashable, work: Callable[[Any], T], given: Any, *, shared: bool = False
    ) -> T:
        """`work(given)`, by a graph from the second time on that its name comes with tensors of
        these shapes. Whatever else the work depends on must be part of the name.

        The tensors that came first become the place where later ones are copied to; `shared`:
        others may still want to read them, and a copy takes their place.
        """
        key = (name, *((tuple(x.shape), x.stride(), x.dtype) for x in tensors_of(given)))
        graph = self._graphs.get(key)
        if graph is None:
            self._graphs[key] = CapturedGraph(copied(given) if shared else given)
            if len(self._graphs) > LIMIT:
                self._graphs.popitem(last=False)
            return work(given)
        self._graphs.move_to_end(key)
        self.captured += not graph.is_captured
        return graph.run(work, given, self._make)


def tensors_of(nested: Any) -> Iterator[torch.Tensor]:
    """Every tensor in tuples and lists of them, in order."""
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for each in nested:
            yield from tensors_of(each)


def copied(nested: Any) -> Any:
    """The same with tensors of its own, laid out alike."""
    if isinstance(nested, torch.Tensor):
        return nested.clone(memory_format=torch.preserve_format)
    if isinstance(nested, tuple) and hasattr(nested, "_fields"):
        return type(nested)(*map(copied, nested))
    if isinstance(nested, (tuple, list)):
        return type(nested)(map(copied, nested))
    return nested
