"""Model repositories for NVIDIA Triton Inference Server.

    DIR/<model>/1/model.onnx, DIR/<model>/config.pbtxt    one served model
    DIR/<model>.json                                      the export's manifest

With the policies "memory" and "foreground" a step is a function of tensors. All its graphs are
joined into one served model, named after the model, with the memory as the server's implicit state.
A video is a sequence. A request is

    frame   uint8 [H, W, 3]  RGB, of the export's size
    prompt  uint8 [H, W]     if the model takes masks: 1 + row of the object, 0 without a prompt;
                             objects are numbered 1 to max_objects

and the answer is `labels` uint8 [H, W], with the same numbers, for the frame `latency` requests
back (a parameter in config.pbtxt). The first `latency` answers are meaningless; at the end the
client repeats its last frame `latency` times. The state is zero when a sequence starts.

The other policies make decisions between the graphs. For these every graph is a stateless served
model, <model>_<graph>; scalars have shape [1]. The calling program (a client, or a model in the
server's own scripting) keeps the state. For each frame it calls prepare, encode, segment, finish,
remember and the other graphs of the manifest, with inputs from their `source`, as `OnnxSegmenter`
does.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx

from ..errors import ConfigError, OutputError
from ..files import Ledger, whole, write_whole
from .manifest import MANIFEST, Manifest
from .server_config import Served, config_text
from .server_step import alone, joined

GRAPH, CONFIG = "1/model.onnx", "config.pbtxt"
WHOLE = "memory", "foreground"  # policies whose step is one graph


def write_repository(export: Path, repository: Path) -> None:
    """Write the served models of an export into a repository, replacing those of an earlier call.

    Raises  ConfigError: a joined model needs a static export; WeightsError: the folder is no
            export; OutputError: a file cannot be written, or is in the way and not written by
            this function.
    """
    manifest = Manifest.read(export)
    models = served_models(export, manifest)
    ledger = Ledger(repository / f"{manifest.model}.files.json")
    names = [f"{s.name}/{name}" for s in models for name in (GRAPH, CONFIG)]
    names.append(f"{manifest.model}.json")
    ledger.check(names)
    try:
        for served in models:
            _write(served, repository / served.name)
        with whole(repository / f"{manifest.model}.json") as scratch:
            shutil.copyfile(export / MANIFEST, scratch)
        ledger.add(names)
    except OSError as error:
        raise OutputError(f"{repository}: cannot be written to ({error.strerror})") from None


def served_models(export: Path, manifest: Manifest) -> list[Served]:
    """The served models of an export: all graphs joined, or every graph by itself."""
    holds_prompts = manifest.takes_mask and manifest.latency > 0  # until their frame is answered
    if manifest.policy not in WHOLE or holds_prompts:
        return [alone(export, manifest, name) for name in manifest.graphs]
    check_fixed(manifest.model, manifest.policy, dynamic=manifest.dynamic)
    return [joined(export, manifest)]


def check_fixed(model: str, policy: str, *, dynamic: bool) -> None:
    """Raise ConfigError for a dynamic export whose memory is to be the server's state."""
    if dynamic and policy in WHOLE:
        raise ConfigError(
            f"--server-repository wants --size HxW: {model} keeps its memory in the server, as "
            "tensors of fixed shape"
        )


def _write(served: Served, folder: Path) -> None:
    """Write the graph, then its configuration, by which the server recognises a model."""
    (folder / GRAPH).parent.mkdir(parents=True, exist_ok=True)
    with whole(folder / GRAPH) as scratch:
        onnx.save(served.graph, str(scratch), format="protobuf")
    write_whole(folder / CONFIG, config_text(served))
