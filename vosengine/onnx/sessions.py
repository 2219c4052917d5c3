"""onnxruntime sessions for the graphs of an export; tensors stay on the device."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import OrtValue
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from ..errors import DependencyError, DeviceError
from ..types import Geometry
from .library import DOMAIN, WITHOUT, find_library
from .manifest import Graph, Manifest

Values = dict[str, OrtValue]
PREFIX = f"{DOMAIN}::"
# Errors of onnxruntime for an operator that it does not have, or not with those inputs.
UNKNOWN_OPERATOR = (
    runtime_errors.Fail,
    runtime_errors.InvalidGraph,
    runtime_errors.NotImplemented,
)


def choose_providers(wanted: Sequence[str] | None) -> list[str]:
    """Choose the providers: those requested, or by default CUDA if available, then the CPU.

    Raises  DeviceError: this onnxruntime lacks a requested provider.
    """
    available = onnxruntime.get_available_providers()
    if wanted is None:
        return [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
    missing = [provider for provider in wanted if provider not in available]
    if missing or not wanted:
        raise DeviceError(
            f"providers: wanted some of {', '.join(available)}, given "
            f"{', '.join(missing) or 'none'}; install onnxruntime-gpu (instead of onnxruntime) "
            "for CUDA"
        )
    return list(wanted)


def session_options(threads: int, library: Path | None = None) -> Any:
    """Session options of every graph.

    threads  of a graph; 0: onnxruntime's default
    library  library of custom operators
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Each graph has its own thread pool; spinning threads would take the next graph's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A sharp softmax yields denormals, which are many times slower on some processors: GIEL's
    # step takes 579 ms with them, 163 ms without. This also sets the thread that creates a
    # process's first session, permanently.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if library is not None:
        options.add_session_config_entry("vosengine.threads", str(threads))
        options.register_custom_ops_library(str(library))
    return options


class Session:
    """One graph. Outputs stay on the device that computed them."""

    def __init__(
        self,
        path: Path,
        graph: Graph,
        providers: list[str],
        threads: int,
        library: Path | None = None,
    ) -> None:
        options = session_options(threads, library)
        self.graph = graph
        self.device = "cuda" if providers[0].startswith("CUDA") else "cpu"
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except UNKNOWN_OPERATOR as error:
            if not graph.operators:
                raise
            raise DependencyError(
                f"{path}: this onnxruntime ({onnxruntime.__version__}) does not take operator "
                f"{', '.join(graph.operators)} ({error}); install a newer onnxruntime, {WITHOUT}"
            ) from None
        if self._session.get_providers()[0] != providers[0]:
            raise DeviceError(
                f"providers: {providers[0]} is installed but does not start here (no GPU or no "
                "driver?); leave it out, or ask for CPUExecutionProvider"
            )

    def __call__(self, *tables: Values) -> Values:
        """Run the graph on `inputs(*tables)`; outputs are by name."""
        binding = self._session.io_binding()
        for name, value in self.inputs(*tables).items():
            binding.bind_ortvalue_input(name, value)
        for port in self.graph.outputs:
            binding.bind_output(port.name, self.device)
        self._session.run_with_iobinding(binding)
        names = (port.name for port in self.graph.outputs)
        return dict(zip(names, binding.get_outputs(), strict=True))

    def inputs(self, *tables: Values) -> Values:
        """The graph's inputs: the first value in the tables with an input's name or source."""
        values = ChainMap(*tables)
        return {
            port.name: values[port.name if port.name in values else port.source]
            for port in self.graph.inputs
        }


class Sessions:
    """All graphs of an export; `sessions("encode", values)` runs one."""

    def __init__(
        self, folder: Path, manifest: Manifest, providers: Sequence[str] | None, threads: int = 0
    ) -> None:
        self.providers = choose_providers(providers)
        ours = {o for g in manifest.graphs.values() for o in g.operators if o.startswith(PREFIX)}
        library = find_library(ours, manifest.ops_version) if ours else None
        self._sessions = {
            name: Session(folder / graph.file, graph, self.providers, threads, library)
            for name, graph in manifest.graphs.items()
        }
        self.device = next(iter(self._sessions.values())).device

    def __call__(self, verb: str, *tables: Values) -> Values:
        return self._sessions[verb](*tables)

    def prepared(self, frame: np.ndarray, geometry: Geometry) -> OrtValue:
        """The graph `prepare` of a frame, uint8 [H, W, 3]."""
        inputs = {
            "frame": self.value(frame),
            "resized": self.value(np.array(geometry.resized)),
            "padding": self.value(np.array(geometry.padding)),
        }
        return self("prepare", inputs)["prepared"]

    def value(self, array: np.ndarray) -> OrtValue:
        """Copy an array to the device."""
        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device)
