"""What a model is trained for: from a batch of clips to the losses whose sum is minimised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from ...config import ModelConfig
from ...errors import InputError
from ...models.method import Method
from ..samples import Batch

if TYPE_CHECKING:
    from ..recipe import Recipe

M = TypeVar("M", bound=Method[Any, Any])


class Objective(ABC, Generic[M]):
    """A model and its losses.

    all_parts  names of networks that may be trained by themselves (`parts` of the Recipe)
    """

    all_parts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, method: M) -> None:
        self.method = method

    @classmethod
    def of(cls, method: M, recipe: Recipe) -> Objective[M]:
        """The objective, as the recipe wants it."""
        return cls(method)

    @abstractmethod
    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Scalars by name, weighted: their sum is what is minimised.

        generator  on the CPU; whatever is drawn at random is drawn from it
        """

    @abstractmethod
    def score(self, batch: Batch) -> float:
        """How well the model does what it is for on these clips, 0..1: mean IoU with the truth.
        Changes nothing and needs no gradient."""


def normalised(frames: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """uint8 [..., H, W, 3] RGB -> float32 [..., 3, H, W] as the networks see it."""
    mean, std = (frames.new_tensor(v, dtype=torch.float32) for v in (config.mean, config.std))
    return ((frames.float() / 255 - mean) / std).movedim(-1, -3)


def one_hot(masks: torch.Tensor, count: int) -> torch.Tensor:
    """Object ids [..., H, W] -> float32 [..., 1 + count, H, W], the background first."""
    ids = torch.arange(1 + count, device=masks.device)[:, None, None]
    return (masks[..., None, :, :] == ids).float()


def check_sides(frames: torch.Tensor, multiple: int) -> None:
    """Raise InputError unless the sides of frames [..., H, W, 3] are multiples of a stride."""
    height, width = frames.shape[-3:-1]
    if height % multiple or width % multiple:
        raise InputError(
            f"clips: wanted sides that are multiples of {multiple}, given {height} x {width}; "
            "train at another size"
        )


def nothing_for(network: nn.Module) -> torch.Tensor:
    """0, whose gradient is 0 for every parameter: the loss where there is nothing to learn from."""
    return torch.stack([0 * parameter.sum() for parameter in network.parameters()]).sum()
