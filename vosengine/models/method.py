"""What a method is: a network with four verbs, and the state it reads and writes."""

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
    """Everything a method remembers of one stream. `object_count` slots are in use: 0, 1, 2..."""

    object_count: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that it may come to take; with no number of frames do they grow beyond."""
        return 0

    def signature(self) -> Hashable:
        """What `segment` and `observe` take from the host: a graph of both that was captured under
        one signature may be replayed under an equal one."""
        return self.object_count

    @abstractmethod
    def forget(self, slot: int) -> None:
        """Drop an object; the object of the last slot moves into its place.

        Raises  InputError, before anything has changed, where the method cannot do without it.
        """

    def release(self) -> None:  # noqa: B027
        """Give back what it has of memory that streams share: the stream has ended."""

    @classmethod
    def join(cls, states: Sequence[Any]) -> Any:
        """Several streams' states as `segment` and `observe` of a `batched` method take them: their
        objects one stream after another. Nothing is copied, and nothing may be written to it."""
        raise NotImplementedError(f"{cls.__name__} is of one stream")

    def make_room(self, count: int) -> None:  # noqa: B027
        """See that the next frame of `count` objects can be stored. Raises CapacityError, before
        anything has changed."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a stream needs to go on elsewhere."""

    @abstractmethod
    def restore(self, tensors: dict[str, torch.Tensor], object_count: int) -> None:
        """Take over what `tensors` gave, for that many objects."""


FIRST_ANSWERS = 0.02  # of the usual size are, when training begins, weights of the first logits
F = TypeVar("F")  # a method's features of one frame: a NamedTuple of tensors [B, ...]


def tensors_in(features: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a method's features, those in nested tuples too."""
    if isinstance(features, torch.Tensor):
        yield features
    elif isinstance(features, tuple):
        for each in features:
            yield from tensors_in(each)


def rows_of(features: Any, rows: slice | torch.Tensor) -> Any:
    """Some frames of a method's features [B, ...], those in nested tuples too.

    rows  a slice, of which views are made, or int64 [N], of which copies are
    """
    if isinstance(features, torch.Tensor):
        return features[rows]
    if features is None:
        return None
    parts = (rows_of(each, rows) for each in features)
    return type(features)(*parts) if hasattr(features, "_fields") else tuple(parts)


def join_features(several: Sequence[Any]) -> Any:
    """Features of several streams' frames, [B, ...] each, one after another; those in nested
    tuples too."""
    first = several[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(several))
    if first is None:
        return None
    parts = (join_features(each) for each in zip(*several, strict=True))
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def join_masks(
    streams: Sequence[torch.Tensor],
    rows: torch.Tensor,
    prompted: tuple[int, ...] = (),
    aux: Any = None,
) -> Masks:
    """Probabilities [1 + O, H, W] of each stream as one set of masks; rows [O] int64, of which
    stream every object is. Of several streams the background is that of the first: who takes
    several does not ask for it."""
    if len(streams) == 1:
        return Masks(streams[0], prompted, aux)
    joined = torch.cat([streams[0][:1], *(each[1:] for each in streams)])
    return Masks(joined, prompted, aux, rows)


def split_scores(scores: Scores, counts: Sequence[int]) -> list[Scores]:
    """The scores of each stream, of which `counts` says how many objects it has."""
    if len(counts) == 1:
        return [scores]
    logits = torch.split(scores.logits, list(counts))
    aux = scores.aux
    own = [None] * len(counts) if aux is None else torch.split(aux, list(counts))
    return [Scores(x, scores.stride, read) for x, read in zip(logits, own, strict=True)]


S = TypeVar("S", bound=State)


class Method(nn.Module, ABC, Generic[F, S]):
    """A network behind four verbs: start, encode, segment, remember.

    sees             the frames it looks at, relative to the one answered for; latency is max(sees)
    size             what the frame is resized to (see Geometry.fit); None: its own size
    needs_mask       whether the first frame must come with a mask
    takes_mask       whether any frame may
    takes_proposals  whether `encode` may be given another detector's proposals
    needs_proposals  whether it must be, for every frame; then `takes_proposals` is True too
    smallest_proposal  pixels of a proposal's mask in the network; smaller ones are left out
    max_objects      room for that many where the caller does not say
    stride           the network's input must be a multiple of it
    bf16_safe        whether bf16 leaves its labels what they are in fp32 (IoU above .99 over ten
                     real clips)
    in_float32       modules that are not narrowed to half precision: little work, and what they say
                     decides between whole objects
    capturable       of "encode" and "answer" (which is `segment` and `observe`) those that wait for
                     no numbers, so that a graph of their work on the device may be replayed
    batched          whether `segment` and `observe` take several streams at once: features with a
                     row for every stream, and the objects of all of them, of which a joined
                     state's `streams` and those of Masks say where they belong
    keeps_frames     whether a step costs more the more frames it remembers
    features         the NamedTuple that `encode` returns
    observes         what `observe` takes of the newest frame's features beside the frame itself
    """

    sees: tuple[int, ...] = (0,)
    size: Size | int | None = None
    needs_mask: ClassVar[bool] = True
    takes_mask: ClassVar[bool] = True
    takes_proposals: ClassVar[bool] = False
    needs_proposals: ClassVar[bool] = False
    smallest_proposal: int = 1
    max_objects: int = 10
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
        """Before training, without gradients: what lets this network's first answers be unsure,
        beside what `vosengine/training/initialise.py` does for all."""

    def adopted(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that another model has under this name, its channels in this model's order."""
        return tensor

    @abstractmethod
    def start(
        self,
        geometry: Geometry,
        max_objects: int,
        memory: MemoryConfig | None = None,
        pools: PagePools | None = None,
    ) -> S:
        """Room for all that the method will ever hold for one stream of this geometry.

        memory  what the memory keeps, where the method's configuration has one; None: as that says
        pools   where a memory in pages gets them; None: from a pool of its own
        """

    @abstractmethod
    def encode(self, frames: torch.Tensor, proposals: Sequence[Proposals] | None = None) -> F:
        """Features of prepared frames [B, 3, H, W]: once a frame, pure, batchable over streams.

        proposals  for each of the frames, at the network's size, where the method takes them
        """

    @abstractmethod
    def segment(self, seen: Sequence[F], state: S) -> Scores:
        """Scores for the frame answered for: of every object, and of those that it discovers in it;
        reads the state, never writes it.

        seen  features of the frames in `sees`, in that order, B = 1; beyond either end of the
              stream the nearest frame stands in
        """

    def remember(self, seen: Sequence[F], masks: Masks, state: S) -> None:
        """The only writer: takes in the masks of the frame answered for. A row past
        `state.object_count` is an object that starts with this frame.

        In two halves where they can be told apart: `observe`, which is most of the work and writes
        nothing, and `commit`.
        """
        self.commit(self.observe(seen, masks, state), masks, state)

    def observe(self, seen: Sequence[F], masks: Masks, state: S) -> Any:
        """What `commit` is to store of a frame with these masks: tensors, in tuples, or None."""
        raise NotImplementedError(f"{type(self).__name__} writes while it looks")

    def commit(self, observed: Any, masks: Masks, state: S) -> None:
        """Store what was observed; `masks.aux` is not asked for."""
        raise NotImplementedError(f"{type(self).__name__} writes while it looks")
