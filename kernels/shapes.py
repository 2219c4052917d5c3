"""Checks of the shapes, dtypes and devices of an op's arguments."""

from __future__ import annotations

from collections.abc import Mapping

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ShapeError(ValueError):
    """An argument does not have the shape, dtype or device that the contract requires."""


def check(arguments: Mapping[str, tuple[torch.Tensor, str]]) -> dict[str, int]:
    """Match tensors against shape patterns such as "G N Ck" and return the size of every symbol.

    arguments  name -> (tensor, pattern). A symbol has one size throughout the call; a number is a
               literal size. All tensors must be on one device
    returns    symbol -> size
    Raises     ShapeError, naming argument, wanted shape and given shape.
    """
    sizes: dict[str, int] = {}
    owner: dict[str, str] = {}
    first = next(iter(arguments.items()), None)
    for name, (tensor, pattern) in arguments.items():
        letters = pattern.split()
        given = list(tensor.shape)
        wanted = "[" + ", ".join(letters) + "]"
        if len(given) != len(letters):
            raise ShapeError(f"{name}: wanted {wanted}, given {given}")
        for letter, size in zip(letters, given, strict=True):
            known = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
            if known != size:
                source = (
                    f" with {letter} = {known} (from {owner[letter]})" if letter in owner else ""
                )
                raise ShapeError(f"{name}: wanted {wanted}{source}, given {given}")
            owner.setdefault(letter, name)
        if first is not None and tensor.device != first[1][0].device:
            raise ShapeError(
                f"{name}: on {tensor.device}, but {first[0]} is on {first[1][0].device}; "
                "wanted one device for all"
            )
    return sizes


def check_dtype(name: str, tensor: torch.Tensor, *wanted: torch.dtype) -> None:
    """Raise ShapeError unless the tensor has one of the wanted dtypes."""
    if tensor.dtype not in wanted:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in wanted)
        raise ShapeError(
            f"{name}: wanted {names}, given {str(tensor.dtype).removeprefix('torch.')}"
        )
