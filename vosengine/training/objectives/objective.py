"""Base class of training objectives, and helpers for frames and masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

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

    all_parts  names of networks that can be trained separately (Recipe.parts)
    """

    all_parts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, method: M) -> None:
        self.method = method

    @classmethod
    def of(cls, method: M, recipe: Recipe) -> Objective[M]:
        """Make the objective with the recipe's settings."""
        return cls(method)

    @abstractmethod
    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Weighted scalar losses by name; training minimises their sum.

        generator  on the CPU, the source of all random draws
        """

    @abstractmethod
    def score(self, batch: Batch) -> float:
        """Score of the model on these clips in 0..1, such as mean IoU. No side effects, no
        gradient."""


class Clips(NamedTuple):
    """A batch as the networks of target-aware U-VOS see it."""

    frames: torch.Tensor  # [B, T, 3, H, W] normalised
    masks: torch.Tensor  # [B, T, H, W] object ids, 0 is background
    objects: int  # the highest id


def normalised(frames: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Normalise RGB frames: uint8 [..., H, W, 3] -> float32 [..., 3, H, W]."""
    mean, std = (frames.new_tensor(v, dtype=torch.float32) for v in (config.mean, config.std))
    return ((frames.float() / 255 - mean) / std).movedim(-1, -3)


def one_hot(masks: torch.Tensor, count: int) -> torch.Tensor:
    """One-hot masks: object ids [..., H, W] -> float32 [..., 1 + count, H, W], background first."""
    ids = torch.arange(1 + count, device=masks.device)[:, None, None]
    return (masks[..., None, :, :] == ids).float()


def iou_of_each(masks: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """IoU [O] of every mask with its target, [O, H, W] bool; 1 where both are empty."""
    union = (masks | targets).sum(dim=(1, 2))
    intersection = (masks & targets).sum(dim=(1, 2))
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def check_sides(frames: torch.Tensor, multiple: int) -> None:
    """Check that H and W of frames [..., H, W, 3] are multiples of `multiple`.

    Raises  InputError.
    """
    height, width = frames.shape[-3:-1]
    if height % multiple or width % multiple:
        raise InputError(
            f"clips: wanted sides that are multiples of {multiple}, given {height} x {width}; "
            "train at another size"
        )


def nothing_for(network: nn.Module) -> torch.Tensor:
    """Zero loss with zero gradients for all parameters, for a batch without targets."""
    return torch.stack([0 * parameter.sum() for parameter in network.parameters()]).sum()
