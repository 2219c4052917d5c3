"""Where training starts from: quiet first answers, and weights of other networks."""

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

# Parts of one model that begin as those of another: ours, theirs.
ALIKE = (
    ("reference_encoder.", "memory_encoder."),
    ("reference_head.", "memory_head."),
    ("support_encoder.", "memory_encoder."),
    ("global_decoder.", "decoder."),
    ("instance_decoder.", "decoder."),
)


# Parts of one model that look for the same things: the memory's begin as the query's.
TWINS = (
    ("memory_encoder", "query_encoder"),
    ("reference_encoder", "query_encoder"),
    ("support_encoder", "query_encoder"),
    ("memory_head", "query_head"),
    ("reference_head", "query_head"),
)


@torch.no_grad()
def start_gently(method: Method[Any, Any]) -> None:
    """Let the first answers be unsure, and what is compared begin as one: from random weights as
    they are, a network learns for hundreds of steps before its memory finds anything."""
    for name, parameter in method.named_parameters():
        if name.endswith("predict.weight"):
            parameter.mul_(FIRST_ANSWERS)
    if getattr(method.config, "similarity", None) == "cosine":
        _keep_features(method)
    method.start_gently()
    parts = dict(method.named_children())
    for own, twin in TWINS:
        if own in parts and twin in parts:
            parts[own].load_state_dict(parts[twin].state_dict(), strict=False)
            encoder = parts[own]
            if isinstance(encoder, ENCODERS) and encoder.mask_conv is not None:
                encoder.mask_conv.weight.zero_()


def _keep_features(method: Method[Any, Any]) -> None:
    """Over pretrained features: keys begin as a rotation of them, blocks without norms as the
    identity."""
    for module in method.modules():
        if isinstance(module, KeyValue):
            torch.nn.init.orthogonal_(module.key.weight)
        elif isinstance(module, ResBlock):
            module.conv2.weight.zero_()


def initialise_from(method: Method[Any, Any], path: Path) -> list[str]:
    """Take over what fits of a file: weights of this or of another model, or a backbone's.

    A tensor is taken by its name, or by that of the part that it is alike to (ALIKE); then every
    encoder that got nothing takes the one in the file whose shapes fit, the mask channels at 0
    where it has none. Returns the names of what was set, in order.

    Raises  WeightsError: unreadable, or nothing in it fits.
    """
    found = read_state_dict(path)
    own = dict(method.state_dict())
    taken = {}
    for name, tensor in own.items():
        source = next((each for each in _names(name) if each in found), None)
        if source is not None:
            theirs = found[source]
            fitted = _fitted(
                name, tensor, theirs if source == name else method.adopted(source, theirs)
            )
            if fitted is not None:
                taken[name] = fitted
    for prefix, module in method.named_modules():
        if isinstance(module, ENCODERS) and not any(
            name.startswith(f"{prefix}.") for name in taken
        ):
            taken |= _backbone(prefix, own, found)
    if not taken:
        raise WeightsError(
            f"{path}: no tensor fits this model; wanted weights of the same configuration, or a "
            "backbone of the same name and width"
        )
    method.load_state_dict({**own, **taken})
    return sorted(taken)


def _fitted(name: str, own: torch.Tensor, found: torch.Tensor) -> torch.Tensor | None:
    """What of a tensor takes the place of ours of that name; None where it does not fit."""
    if name.endswith("mask_conv.weight"):
        return _mask_channels(own, found)
    if name.endswith("mask_encoder.join.weight") and found.shape[0] == own.shape[0]:
        planes = min(own.shape[1], found.shape[1])  # the mask planes are the last, the object first
        return torch.cat((found[:, :planes], torch.zeros_like(own)[:, planes:]), dim=1)
    if name.endswith(("predict.weight", "predict.bias")) and len(found) == 2 and len(own) == 1:
        return found[1:] - found[:1]  # the logit of two classes
    return found if found.shape == own.shape else None


def _names(name: str) -> list[str]:
    """The names under which a tensor may stand in a file, the closest first."""
    alike = [theirs + name[len(ours) :] for ours, theirs in ALIKE if name.startswith(ours)]
    return [name, *alike]


def _backbone(
    prefix: str, own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of one of our encoders, from the first in the file that has all of their names
    and shapes; empty where none has."""
    inside = f"{prefix}."
    names = [n.removeprefix(inside) for n in own if n.startswith(inside)]
    names = [n for n in names if not n.endswith("num_batches_tracked")]
    needed = [n for n in names if not n.startswith(("mask_conv.", "fuse.", "layer4."))]
    for root in sorted(n.removesuffix("conv1.weight") for n in found if n.endswith("conv1.weight")):
        fits = all(
            root + n in found and found[root + n].shape == own[inside + n].shape for n in needed
        )
        if not fits:
            continue
        taken = {
            inside + n: found[root + n]
            for n in names
            if root + n in found and found[root + n].shape == own[inside + n].shape
        }
        mask = f"{inside}mask_conv.weight"
        if mask in own and mask not in taken:
            taken[mask] = _mask_channels(own[mask], found.get(f"{root}mask_conv.weight"))
        return taken
    return {}


def _mask_channels(own: torch.Tensor, found: torch.Tensor | None) -> torch.Tensor:
    """A convolution over mask planes [C, M, 7, 7]: the first planes' from the file, others at 0."""
    taken = torch.zeros_like(own)
    if found is not None and found.shape[0] == own.shape[0]:
        planes = min(own.shape[1], found.shape[1])
        taken[:, :planes] = found[:, :planes]
    return taken
