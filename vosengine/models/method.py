"""The method protocol: a network with four verbs, and the per-stream state they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from ..config import MemoryConfig, ModelConfig
from ..memory import PagePools
from ..proposals import Proposals
from ..types import Geometry, Masks, Scores, Size


class State(ABC):
    """All that a method remembers of one stream; slots 0..object_count - 1 are in use."""

    object_count: int = 0

    @property
    def nbytes(self) -> int:
        """Upper bound of the bytes allocated, whatever the number of frames."""
        return 0

    def signature(self) -> Hashable:
        """Host-side values that `segment` and `observe` depend on: a graph captured under one
        signature may be replayed under an equal one."""
        return self.object_count

    @abstractmethod
    def forget(self, slot: int) -> None:
        """Drop the object in `slot`; the object in the last slot moves there.

        Raises  InputError, before any change, if the method cannot drop objects.
        """

    def release(self) -> None:  # noqa: B027
        """Return memory shared between streams (pages) when the stream ends."""

    @classmethod
    def join(cls, states: Sequence[Any]) -> Any:
        """Join several streams' states for `segment` and `observe` of a `batched` method.

        Objects follow in stream order. The result shares memory with the states and is read-only.
        """
        raise NotImplementedError(f"{cls.__name__}: join is not implemented (batched is False)")

    def make_room(self, count: int) -> None:  # noqa: B027
        """Reserve memory to store the next frame with `count` objects.

        Raises  CapacityError, before any change.
        """

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors of a stream snapshot, from which `restore` continues the stream elsewhere."""

    @abstractmethod
    def restore(self, tensors: dict[str, torch.Tensor], object_count: int) -> None:
        """Load what `tensors` returned, with `object_count` objects."""


def tensors_under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


FIRST_ANSWERS = 0.02  # initial scale of the last layer's weights, so that first logits are near 0
F = TypeVar("F")  # a method's features of one frame: a NamedTuple of tensors [B, ...]


def tensors_in(features: Any) -> Iterator[torch.Tensor]:
    """Iterate over the tensors in a method's features, nested tuples included."""
    if isinstance(features, torch.Tensor):
        yield features
    elif isinstance(features, tuple):
        for part in features:
            yield from tensors_in(part)


def rows_of(features: Any, rows: slice | torch.Tensor) -> Any:
    """Index a method's features [B, ...] by frame, nested tuples included.

    rows  a slice (gives views) or int64 [N] (gives copies)
    """
    if isinstance(features, torch.Tensor):
        return features[rows]
    if features is None:
        return None
    parts = (rows_of(part, rows) for part in features)
    return type(features)(*parts) if hasattr(features, "_fields") else tuple(parts)


def join_features(several: Sequence[Any]) -> Any:
    """Concatenate the features of several streams, each [B, ...], nested tuples included."""
    first = several[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(several))
    if first is None:
        return None
    parts = (join_features(part) for part in zip(*several, strict=True))
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def join_masks(
    streams: Sequence[torch.Tensor],
    rows: torch.Tensor,
    prompted: tuple[int, ...] = (),
    aux: Any = None,
) -> Masks:
    """Concatenate several streams' probabilities, each [1 + O_i, H, W], to one Masks.

    rows  [O] int64, stream index of each object

    The background is the first stream's; batched methods must not read it.
    """
    if len(streams) == 1:
        return Masks(streams[0], prompted, aux)
    joined = torch.cat([streams[0][:1], *(stream[1:] for stream in streams)])
    return Masks(joined, prompted, aux, rows)


def split_scores(scores: Scores, counts: Sequence[int]) -> list[Scores]:
    """Split joined scores by stream; `counts` is the number of objects of each."""
    if len(counts) == 1:
        return [scores]
    logits = torch.split(scores.logits, list(counts))
    aux = scores.aux
    auxes = [None] * len(counts) if aux is None else torch.split(aux, list(counts))
    return [Scores(x, scores.stride, aux) for x, aux in zip(logits, auxes, strict=True)]


S = TypeVar("S", bound=State)


class Method(nn.Module, ABC, Generic[F, S]):
    """A network with four verbs: start, encode, segment, remember.

    sees             offsets of the frames it looks at, relative to the segmented one; latency is
                     max(sees) frames
    size             size that frames are resized to (see Geometry.fit); None: not resized
    needs_mask       the first frame must come with a mask
    takes_mask       any frame may come with a mask
    takes_proposals  `encode` accepts another detector's proposals
    needs_proposals  `encode` requires proposals for every frame; implies `takes_proposals`
    smallest_proposal  minimum area of a proposal's mask in the network's pixels; smaller ones are
                     dropped
    max_objects      default number of objects to allocate for
    most_objects     largest number of objects that it can find or follow
    stride           height and width of the network's input are multiples of it
    bf16_safe        labels in bf16 match those in fp32 (IoU above .99 over ten real clips)
    in_float32       names of modules kept in float32 in half precision: cheap, and their output
                     decides between whole objects
    capturable       which of "encode" and "answer" (`segment` and `observe`) never synchronise with
                     the host, so that they can be captured as a graph and replayed
    batched          `segment` and `observe` accept several streams at once: features with a row
                     per stream and the objects of all streams, whose stream indices are in the
                     joined state's and the Masks' `streams`
    keeps_frames     the cost of a step grows with the number of remembered frames
    features         the NamedTuple that `encode` returns
    observes         names of the newest frame's features that `observe` uses beside `frame`
    """

    sees: tuple[int, ...] = (0,)
    size: Size | int | None = None
    needs_mask: ClassVar[bool] = True
    takes_mask: ClassVar[bool] = True
    takes_proposals: ClassVar[bool] = False
    needs_proposals: ClassVar[bool] = False
    smallest_proposal: int = 1
    max_objects: int = 10
    most_objects: ClassVar[int] = 255
    stride: ClassVar[int] = 16
    bf16_safe: ClassVar[bool] = True
    in_float32: ClassVar[tuple[str, ...]] = ()
    capturable: ClassVar[tuple[str, ...]] = ("encode", "answer")
    batched: ClassVar[bool] = False
    keeps_frames: ClassVar[bool] = False
    features: ClassVar[Any]
    observes: tuple[str, ...] = ()

    config: ModelConfig

    def start_gently(self) -> None:
        """Hook, called before training under no_grad: scale initial weights so that the first
        predictions are uncertain, in addition to `training.initialise.start_gently`."""

    def adopted(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Hook: reorder the channels of another model's tensor of this name for this model."""
        return tensor

    @abstractmethod
    def start(
        self,
        geometry: Geometry,
        max_objects: int,
        memory: MemoryConfig | None = None,
        pools: PagePools | None = None,
    ) -> S:
        """Allocate the state of one stream of this geometry; it never grows.

        memory  memory settings, for a method that has a memory; None: the configuration's
        pools   page pools for a paged memory; None: a pool of its own
        """

    @abstractmethod
    def encode(self, frames: torch.Tensor, proposals: Sequence[Proposals] | None = None) -> F:
        """Features of prepared frames [B, 3, H, W]; a pure function, batchable over streams.

        proposals  one per frame, at the network's size, if the method takes them
        """

    @abstractmethod
    def segment(self, seen: Sequence[F], state: S) -> Scores:
        """Scores of the current frame for all known objects, then for newly discovered ones.
        Reads the state, never writes it.

        seen  features of the frames in `sees`, in that order, B = 1 (`batched`: a row per stream);
              beyond either end of the stream the nearest frame is repeated
        """

    def remember(self, seen: Sequence[F], masks: Masks, state: S) -> None:
        """Update the state with the masks of the current frame; the only verb that writes it.

        Mask rows from `state.object_count` on are objects that start with this frame. By default
        it is `observe`, which does most of the work and writes nothing, then `commit`.
        """
        self.commit(self.observe(seen, masks, state), masks, state)

    def observe(self, seen: Sequence[F], masks: Masks, state: S) -> Any:
        """Compute what `commit` stores for a frame with these masks: tensors in tuples, or None."""
        raise NotImplementedError(f"{type(self).__name__} implements remember, not observe")

    def commit(self, observed: Any, masks: Masks, state: S) -> None:
        """Store the result of `observe`. Must not read `masks.aux`."""
        raise NotImplementedError(f"{type(self).__name__} implements remember, not commit")
