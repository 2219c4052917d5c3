"""Compared variants of running a model: published form, eager torch, compiled, ours."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..engine.segmenter import Segmenter
from ..kernels import use_backend
from ..runtime import has_bf16
from ..zoo.registry import entry

REFERENCE = "eager fp32"  # labels and speeds are compared with this variant
OURS = "ours"  # with precision="auto"
OURS_FP32 = "ours fp32"


@dataclass(frozen=True)
class Variant:
    """Variant of running a model, a row of the table.

    engine, precision  as in Segmenter
    backend            of the ops, as in use_backend: "reference" is plain torch
    published          the whole decoder runs per object, as in the papers' code
    compiled           whether torch.compile is used
    """

    name: str
    engine: str
    precision: str
    backend: str
    published: bool = False
    compiled: bool = False

    def unsupported(self, model: str, device: torch.device) -> str | None:
        """Return the reason why the variant cannot be timed here, or None if it can."""
        if self.published and not entry(model).shares:
            return "has no decoder per object"
        if self.precision == "bf16" and not has_bf16(device):
            return "bf16 is emulated here"
        if self.name == OURS_FP32 and not (has_bf16(device) and entry(model).build.bf16_safe):
            return f"is {OURS}"
        return None

    def running(self) -> AbstractContextManager[None]:
        return use_backend(self.backend)

    def prepare(self, segmenter: Segmenter) -> None:
        """Turn a new Segmenter into this variant, in place."""
        method: Any = segmenter.method
        if self.published:
            for name in entry(segmenter.model).shares:
                if hasattr(method, name):
                    _unshare(getattr(method, name))
        if self.compiled:
            for verb in ("encode", "segment", "observe"):
                setattr(method, verb, torch.compile(getattr(method, verb), dynamic=False))


VARIANTS = (
    Variant("published fp32", "eager", "fp32", "reference", published=True),
    Variant(REFERENCE, "eager", "fp32", "reference"),
    Variant("eager bf16", "eager", "bf16", "reference"),
    Variant("compiled bf16", "eager", "bf16", "reference", compiled=True),
    Variant(OURS_FP32, "fast", "fp32", "auto"),
    Variant(OURS, "fast", "auto", "auto"),
)


def _unshare(decoder: nn.Module) -> None:
    """Compute the decoder branches that objects share once per object."""
    own: Any = decoder
    skips, forward = own.skips, own.forward
    held: list[Any] = []

    def remember(pyramid: Any) -> Any:
        held[:] = [pyramid]
        return pyramid.r3[:, :1], pyramid.r2[:, :1]  # placeholder of the per-object computation

    def each_whole(joined: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.cat([forward(row[None], *skips(held[0])) for row in joined])

    own.skips, own.forward = remember, each_whole
