"""Engines of `run`: torch's Segmenter, or the graphs of an export."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..detectors import open_proposals
from ..detectors.dnet import DNetSource
from ..detectors.file import FileSource
from ..engine.engine import Engine
from ..engine.segmenter import Segmenter
from ..errors import ConfigError, DependencyError
from ..proposals import ProposalSource
from ..timing import cpu_name, device_name

if TYPE_CHECKING:
    from .run import RunOptions

ONNX = "onnx"
FIXED_BY_EXPORT = ("weights", "size", "memory")


@dataclass(frozen=True)
class Stream:
    """A segmenter of either engine, and what `run` needs to know of it.

    facts    entries of the summary: model, weights, proposals, device, versions, precision
    note     remark in every output if weights are random; None if they are trained
    """

    segmenter: Any
    needs_mask: bool
    takes_mask: bool
    can_be_saved: bool
    facts: dict[str, Any]
    note: str | None
    proposals: ProposalSource | None = None


def make_stream(options: RunOptions, shared: Engine | None = None) -> Stream:
    """Open a stream of the engine in the options, or of a shared torch engine."""
    if options.engine == ONNX and shared is None:
        return _onnx_stream(options)
    return _torch_stream(options, shared)


def make_engine(options: RunOptions) -> Engine:
    """Load the torch network of the options, for any number of streams."""
    return Engine(
        options.model,
        weights=options.weights,
        device=options.device,
        precision=options.precision,
        mode=options.engine,
    )


def _source(options: RunOptions) -> ProposalSource | None:
    if options.proposals is not None:
        device, boxes = options.device, options.boxes_as_masks
        return open_proposals(options.proposals, device, boxes_as_masks=boxes)
    if options.boxes_as_masks:
        raise ConfigError("boxes_as_masks: is for --proposals file:FILE.json only; omit it")
    return None


def _facts_of(source: ProposalSource | None, name: str | None) -> dict[str, Any] | None:
    """The summary's entry of the proposal source; None if there is none."""
    if source is None:
        return None
    caption = source.card.caption if isinstance(source, DNetSource) else None
    notes = source.notes if isinstance(source, FileSource) else {}
    return {"source": name or "dnet", "weights": caption, **notes}


def note_of(segmenter: Segmenter) -> str | None:
    """Remark for every output if weights of the model or of its D-Net are random; else None."""
    notes = [] if segmenter.card.trained else [segmenter.card.caption]
    source = segmenter.proposals
    if isinstance(source, DNetSource) and not source.card.trained:
        notes.append(f"proposals: {source.card.caption}")
    return "; ".join(notes) or None


def _torch_stream(options: RunOptions, shared: Engine | None) -> Stream:
    segmenter = (shared or make_engine(options)).open(
        max_objects=options.max_objects,
        size=options.size,
        memory=options.memory,
        online=options.online,
        proposals=_source(options),
    )
    card, source = segmenter.card, segmenter.proposals
    facts = {
        "model": options.model,
        "engine": options.engine,
        "weights": {"name": card.name, "trained": card.trained, "note": card.caption},
        "proposals": _facts_of(source, options.proposals),
        "device": str(segmenter.device),
        "device_name": device_name(segmenter.device),
        "torch": torch.__version__,
        "precision": str(segmenter.dtype).removeprefix("torch."),
    }
    return Stream(
        segmenter,
        needs_mask=segmenter.method.needs_mask,
        takes_mask=segmenter.method.takes_mask,
        can_be_saved=True,
        facts=facts,
        note=note_of(segmenter),
        proposals=source,
    )


def _onnx_stream(options: RunOptions) -> Stream:
    for name in FIXED_BY_EXPORT:
        if getattr(options, name) is not None:
            raise ConfigError(f"{name}: is fixed by the export; omit --{name}")
    if options.precision != "auto":
        raise ConfigError("precision: is fixed by the export; omit --precision")
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            f'engine: onnx needs onnxruntime ({error}); pip install "vosengine[onnx]"'
        ) from error
    from ..onnx import OnnxSegmenter

    assert options.export is not None
    source = _source(options)
    segmenter = OnnxSegmenter(
        options.export,
        providers=_providers(options.device),
        max_objects=options.max_objects,
        online=options.online,
        proposals=None if source is None else partial(_array_proposals, source),
    )
    manifest, on_gpu = segmenter.manifest, segmenter.sessions.device == "cuda"
    weights = manifest.weights
    facts = {
        "model": manifest.model,
        "engine": ONNX,
        "weights": {
            "name": weights["name"],
            "trained": weights["trained"],
            "note": weights["caption"],
        },
        "proposals": _facts_of(source, options.proposals),
        "device": segmenter.sessions.device,
        "device_name": "a GPU, by onnxruntime" if on_gpu else cpu_name(),
        "onnxruntime": onnxruntime.__version__,
        "precision": manifest.precision,
    }
    return Stream(
        segmenter,
        needs_mask=manifest.needs_mask,
        takes_mask=manifest.takes_mask,
        can_be_saved=False,
        facts=facts,
        note=None if weights["trained"] else weights["caption"],
        proposals=source,
    )


def _array_proposals(source: ProposalSource, frame: np.ndarray, frame_index: int) -> Any:
    """Proposals of a torch source as numpy arrays."""
    from ..onnx.proposals import FrameProposals

    proposals = source(torch.from_numpy(frame), frame_index)
    tensors = proposals.boxes, proposals.masks, proposals.scores
    return FrameProposals(*(tensor.cpu().numpy() for tensor in tensors))


def _providers(device: str) -> list[str] | None:
    if device == "auto":
        return None
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if device.split(":")[0] != "cuda":
        raise ConfigError(f"device: wanted auto, cpu or cuda, given {device!r}")
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
