"""Initial weights for training: small first logits, and weights from other networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import WeightsError
from ..models.backbone import ResNet
from ..models.blocks import KeyValue, ResBlock
from ..models.efficientnet import EfficientNetLite
from ..models.method import FIRST_ANSWERS, Method
from ..zoo.checkpoints import read_state_dict

ENCODERS = (ResNet, EfficientNetLite)

# Prefixes of modules that are initialised from another model's: ours, theirs.
ALIKE = (
    ("reference_encoder.", "memory_encoder."),
    ("reference_head.", "memory_head."),
    ("support_encoder.", "memory_encoder."),
    ("global_decoder.", "decoder."),
    ("instance_decoder.", "decoder."),
)

# Memory modules that are initialised as a copy of the query's.
TWINS = (
    ("memory_encoder", "query_encoder"),
    ("reference_encoder", "query_encoder"),
    ("support_encoder", "query_encoder"),
    ("memory_head", "query_head"),
    ("reference_head", "query_head"),
)


@torch.no_grad()
def start_gently(method: Method[Any, Any]) -> None:
    """Scale the prediction layers for uncertain first predictions, and initialise memory modules
    (TWINS) as copies of the query's.

    With plain random weights a network trains for hundreds of steps before its memory reads
    anything useful. Calls the method's own `start_gently`.
    """
    for name, parameter in method.named_parameters():
        if name.endswith("predict.weight"):
            parameter.mul_(FIRST_ANSWERS)
    if getattr(method.config, "similarity", None) == "cosine":
        _keep_features(method)
    method.start_gently()
    parts = dict(method.named_children())
    for name, twin in TWINS:
        if name in parts and twin in parts:
            parts[name].load_state_dict(parts[twin].state_dict(), strict=False)
            encoder = parts[name]
            if isinstance(encoder, ENCODERS) and encoder.mask_conv is not None:
                encoder.mask_conv.weight.zero_()


def _keep_features(method: Method[Any, Any]) -> None:
    """Preserve pretrained features: orthogonal key heads, residual blocks without norms as the
    identity."""
    for module in method.modules():
        if isinstance(module, KeyValue):
            torch.nn.init.orthogonal_(module.key.weight)
        elif isinstance(module, ResBlock):
            module.conv2.weight.zero_()


def initialise_from(method: Method[Any, Any], path: Path) -> list[str]:
    """Load the tensors that fit from a file: weights of this model, another model or a backbone.

    A tensor is matched by its name, then by the prefixes in ALIKE. An encoder without a match is
    loaded from the first encoder in the file whose shapes fit; mask channels that the file lacks
    are 0. Returns the sorted names of the tensors that were set.

    Raises  WeightsError if the file is unreadable or no tensor fits.
    """
    file = read_state_dict(path)
    own = dict(method.state_dict())
    loaded = {}
    for name, tensor in own.items():
        alike = [theirs + name[len(ours) :] for ours, theirs in ALIKE if name.startswith(ours)]
        source = next((candidate for candidate in (name, *alike) if candidate in file), None)
        if source is not None:
            theirs = file[source] if source == name else method.adopted(source, file[source])
            fitted = _fitted(name, tensor, theirs)
            if fitted is not None:
                loaded[name] = fitted
    for prefix, module in method.named_modules():
        if isinstance(module, ENCODERS) and not any(
            name.startswith(f"{prefix}.") for name in loaded
        ):
            loaded |= _backbone(prefix, own, file)
    if not loaded:
        raise WeightsError(
            f"{path}: no tensor fits this model; wanted weights of the same configuration, or a "
            "backbone of the same name and width"
        )
    method.load_state_dict({**own, **loaded})
    return sorted(loaded)


def _fitted(name: str, own: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor | None:
    """Convert a file's tensor to the shape of our tensor `own`; None if it does not fit."""
    if name.endswith("mask_conv.weight"):
        return _mask_channels(own, theirs)
    if name.endswith("mask_encoder.join.weight") and theirs.shape[0] == own.shape[0]:
        return _mask_channels(own, theirs)  # mask planes are the last inputs, the object's first
    if name.endswith(("predict.weight", "predict.bias")) and len(theirs) == 2 and len(own) == 1:
        return theirs[1:] - theirs[:1]  # two classes to one logit
    return theirs if theirs.shape == own.shape else None


def _backbone(
    prefix: str, own: Mapping[str, torch.Tensor], file: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Tensors for our encoder at `prefix`, from the first encoder in the file with the same names
    and shapes; empty without one."""
    inside = f"{prefix}."
    names = [n.removeprefix(inside) for n in own if n.startswith(inside)]
    names = [n for n in names if not n.endswith("num_batches_tracked")]
    needed = [n for n in names if not n.startswith(("mask_conv.", "fuse.", "layer4."))]
    for root in sorted(n.removesuffix("conv1.weight") for n in file if n.endswith("conv1.weight")):
        loaded = {
            inside + n: file[root + n]
            for n in names
            if root + n in file and file[root + n].shape == own[inside + n].shape
        }
        if any(inside + n not in loaded for n in needed):
            continue
        mask = f"{inside}mask_conv.weight"
        if mask in own and mask not in loaded:
            loaded[mask] = _mask_channels(own[mask], file.get(f"{root}mask_conv.weight"))
        return loaded
    return {}


def _mask_channels(own: torch.Tensor, theirs: torch.Tensor | None) -> torch.Tensor:
    """Weights [C, M, k, k] of a convolution on mask planes: the file's first planes, the rest 0."""
    weight = torch.zeros_like(own)
    if theirs is not None and theirs.shape[0] == own.shape[0]:
        planes = min(own.shape[1], theirs.shape[1])
        weight[:, :planes] = theirs[:, :planes]
    return weight
