"""A repository for NVIDIA Triton Inference Server.

    DIR/<model>/1/model.onnx, DIR/<model>/config.pbtxt    one served model
    DIR/<model>.json                                      the export's manifest

Where a step is a function of tensors alone (the policies "memory" and "foreground") the whole of it
is one served model, named after the model: the graphs joined, with the memory as the server's
implicit state. A video is a sequence. A request is

    frame   uint8 [H, W, 3]  RGB, of the export's size
    prompt  uint8 [H, W]     where the model takes masks: row + 1 where the frame shows that object,
                             0 where it says nothing; rows are objects 1 .. max_objects

and the answer `labels` uint8 [H, W], of the same numbers, for the frame that lies `latency` (a
parameter of config.pbtxt) requests back. The first `latency` answers mean nothing; for the last
frames the client repeats its last one as often. Nothing else is sent: what the server keeps is
zeros when a sequence starts.

The other policies decide between the graphs, in numbers that no graph holds. Of these every graph
is a served model of its own, <model>_<graph>, that keeps nothing; scalars have shape [1]. Whoever
drives them (a client, or a model in the server's own scripting) keeps the state and calls, for each
frame, prepare, encode, segment, finish, remember and what else the manifest lists, with every
input from where its `source` in the manifest says. `OnnxSegmenter` is that program here.
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
WHOLE = "memory", "foreground"  # policies that hold no numbers of their own


def write_repository(export: Path, repository: Path) -> None:
    """Write the models of an export's folder into a repository, over those of an earlier one.

    Raises  ConfigError where one served model wants the sizes fixed and they are not; WeightsError
            where the folder is no export; OutputError, also where a file is in the way that this
            did not write.
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
    """What the server is to run of an export."""
    holds_prompts = manifest.takes_mask and manifest.latency > 0  # until their frame's turn
    if manifest.policy not in WHOLE or holds_prompts:
        return [alone(export, manifest, name) for name in manifest.graphs]
    check_fixed(manifest.model, manifest.policy, dynamic=manifest.dynamic)
    return [joined(export, manifest)]


def check_fixed(model: str, policy: str, *, dynamic: bool) -> None:
    """Raise ConfigError for a model that the server is to remember for, of no fixed size."""
    if dynamic and policy in WHOLE:
        raise ConfigError(
            f"--server-repository wants --size HxW: {model} keeps its memory in the server, as "
            "tensors of fixed shape"
        )


def _write(served: Served, folder: Path) -> None:
    """The graph before its configuration, which is what a server looks for."""
    (folder / GRAPH).parent.mkdir(parents=True, exist_ok=True)
    with whole(folder / GRAPH) as scratch:
        onnx.save(served.graph, str(scratch), format="protobuf")
    write_whole(folder / CONFIG, config_text(served))
