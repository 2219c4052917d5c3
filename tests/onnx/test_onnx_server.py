"""The model repository for Triton Inference Server: its configurations and expected results.

No server runs here. Its own schema reads the configurations, and a stand-in does with a sequence
what the server does: it carries the states, zeros at first.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from exported import Export
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnxruntime import InferenceSession, SessionOptions
from PIL import Image

from vosengine.benchmark import drawn_scene
from vosengine.errors import ConfigError, OutputError
from vosengine.onnx import OnnxSegmenter
from vosengine.onnx.manifest import MANIFEST, Manifest
from vosengine.onnx.server import write_repository

ROOT = Path(__file__).resolve().parents[2]
SIZE = 90, 150  # no multiple of any model's stride
FRAMES = 8  # of a stream: the memory of 3 frames goes round
KINDS = {
    "TYPE_FP32": "float",
    "TYPE_FP16": "float16",
    "TYPE_FP64": "double",
    "TYPE_INT64": "int64",
    "TYPE_UINT8": "uint8",
    "TYPE_BOOL": "bool",
}
NUMPY = {"float": np.float32, "int64": np.int64, "uint8": np.uint8, "bool": np.bool_}


@cache
def schema() -> Any:
    """The server's ModelConfig, from its published description."""
    description = json.loads(Path(__file__).with_name("triton_model_config.json").read_text())
    file = descriptor_pb2.FileDescriptorProto(
        name="vosengine/model_config.proto", package="inference", syntax="proto3"
    )
    made: dict[str, Any] = {"": file}
    for name in sorted(description["messages"], key=lambda full_name: full_name.count(".")):
        parent = made[name.rpartition(".")[0]]
        messages = parent.nested_type if "." in name else parent.message_type
        made[name] = messages.add(name=name.rpartition(".")[2])
    for name, values in description["enums"].items():
        kind = made[name.rpartition(".")[0]].enum_type.add(name=name.rpartition(".")[2])
        for value, number in values.items():
            kind.value.add(name=value, number=number)
    for name, fields in description["messages"].items():
        for field, text in fields.items():
            if field == "map_entry":
                made[name].options.map_entry = True
            else:
                add_field(made[name], field, text.split(), description["enums"])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def add_field(message: Any, name: str, tokens: list[str], enums: dict[str, Any]) -> None:
    """One line of the description: "repeated KIND oneof GROUP = 3"."""
    field = message.field.add(name=name, number=int(tokens[-1]))
    field.label = 3 if tokens[0] == "repeated" else 1
    kind = tokens[1] if tokens[0] == "repeated" else tokens[0]
    if kind[0].islower():
        field.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type = 14 if kind in enums else 11
        field.type_name = f".inference.{kind}"
    if "oneof" in tokens:
        group = tokens[tokens.index("oneof") + 1]
        if group not in [oneof.name for oneof in message.oneof_decl]:
            message.oneof_decl.add(name=group)
        field.oneof_index = [oneof.name for oneof in message.oneof_decl].index(group)


def read_config(folder: Path) -> Any:
    """config.pbtxt; a field that the server does not know is an error."""
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, schema()())


def run_of(folder: Path) -> InferenceSession:
    options = SessionOptions()
    options.intra_op_num_threads = 1
    path = folder / "1" / "model.onnx"
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Server:
    """Stub of the server and of a client's view of it."""

    def __init__(self, repository: Path, name: str) -> None:
        self.config = read_config(repository / name)
        self.session = run_of(repository / name)
        self.sequences: dict[int, dict[str, np.ndarray]] = {}
        kind = schema().DESCRIPTOR.fields_by_name["input"].message_type
        self.kinds = kind.fields_by_name["data_type"].enum_type.values_by_number

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def kind(self, io: Any) -> str:
        return KINDS[self.kinds[io.data_type].name]

    def get_model_metadata(self, name: str) -> Any:
        inputs = [SimpleNamespace(name=io.name, shape=io.dims) for io in self.config.input]
        return SimpleNamespace(inputs=inputs)

    def get_model_config(self, name: str) -> Any:
        return SimpleNamespace(config=self.config)

    def infer(
        self,
        name: str,
        inputs: list[Any],
        *,
        sequence_id: int,
        sequence_start: bool,
        sequence_end: bool,
    ) -> Any:
        assert name == self.config.name
        assert sequence_id > 0
        assert sequence_start == (sequence_id not in self.sequences)
        states = self.config.sequence_batching.state
        if sequence_start:
            self.sequences[sequence_id] = {
                state.input_name: np.zeros(state.initial_state[0].dims, NUMPY[self.kind(state)])
                for state in states
            }
        wanted = [(io.name, list(io.dims), "UINT8") for io in self.config.input]
        assert wanted == [(tensor.name, tensor.shape, tensor.kind) for tensor in inputs]
        feeds = {tensor.name: tensor.array for tensor in inputs} | self.sequences[sequence_id]
        names = [node.name for node in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, feeds), strict=True))
        kept = {state.input_name: outputs[state.output_name] for state in states}
        self.sequences[sequence_id] = kept
        if sequence_end:
            del self.sequences[sequence_id]
        return SimpleNamespace(as_numpy=outputs.__getitem__)


class Input:
    """The used part of tritonclient's InferInput."""

    def __init__(self, name: str, shape: list[int], kind: str) -> None:
        self.name, self.shape, self.kind = name, shape, kind

    def set_data_from_numpy(self, array: np.ndarray) -> None:
        assert array.dtype == np.uint8
        assert list(array.shape) == self.shape
        self.array = array


GRPC: Any = ModuleType("tritonclient.grpc")
GRPC.InferInput = Input
GRPC.InferenceServerException = type("InferenceServerException", (Exception,), {})


@pytest.fixture(scope="module")
def client() -> Any:
    """examples/triton_client.py."""
    path = ROOT / "examples" / "triton_client.py"
    spec = importlib.util.spec_from_file_location("triton_client", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["triton_client"] = module
    spec.loader.exec_module(module)
    return module


class Exported(NamedTuple):
    """A static export, and the repository made of it."""

    folder: Path
    repository: Path


Make = Callable[[str], Exported]


@pytest.fixture(scope="module")
def exported(export: Export, tmp_path_factory: pytest.TempPathFactory) -> Make:
    @cache
    def make(model: str) -> Exported:
        options = {"max_objects": 2, "memory_frames": 3} if model == "munet" else {}
        folder = export(model, size=SIZE, **options)
        repository = tmp_path_factory.mktemp(model)
        write_repository(folder, repository)
        return Exported(folder, repository)

    return make


def prompts(index: int) -> np.ndarray | None:
    """Object 1 in frame 0, object 2 in frame 3."""
    number = {0: 1, 3: 2}.get(index)
    both = drawn_scene(SIZE).prompt(2)
    return None if number is None else np.where(both == number, number, 0).astype(np.uint8)


def frames(count: int = FRAMES) -> Iterator[np.ndarray]:
    scene = drawn_scene(SIZE)
    return (scene.frame(index) for index in range(count))


def truth(folder: Path, count: int = FRAMES) -> list[np.ndarray]:
    """The labels of OnnxSegmenter."""
    engine = OnnxSegmenter(folder, threads=1, providers=["CPUExecutionProvider"])
    takes = engine.manifest.takes_mask
    results = [engine.step(f, prompts(i) if takes else None) for i, f in enumerate(frames(count))]
    return [result.numpy() for result in (*results, *engine.flush()) if result is not None]


@pytest.mark.parametrize("model", ["munet", "imcnet"])
def test_configuration_and_graph_agree(exported: Make, model: str) -> None:
    repository = exported(model).repository
    server, config = Server(repository, model), read_config(repository / model)
    assert (config.name, config.platform) == (model, "onnxruntime_onnx")
    assert config.max_batch_size == 0
    assert config.sequence_batching.oldest.max_candidate_sequences > 0
    states = config.sequence_batching.state
    input_names = [*(io.name for io in config.input), *(state.input_name for state in states)]
    output_names = [*(io.name for io in config.output), *(state.output_name for state in states)]
    inputs = {node.name: node for node in server.session.get_inputs()}
    outputs = {node.name: node for node in server.session.get_outputs()}
    assert sorted(input_names) == sorted(inputs)
    assert sorted(output_names) == sorted(outputs)
    tensors = [(inputs[io.name], io) for io in config.input]
    tensors += [(outputs[io.name], io) for io in config.output]
    tensors += [(inputs[state.input_name], state) for state in states]
    tensors += [(outputs[state.output_name], state) for state in states]
    for tensor, io in tensors:
        assert tensor.shape == list(io.dims), io
        assert tensor.type == f"tensor({server.kind(io)})", io
        assert all(size > 0 for size in io.dims) and io.dims, io
    for state in states:
        (first,) = state.initial_state
        assert (first.data_type, first.dims) == (state.data_type, state.dims)
        assert first.zero_data and first.name
    assert json.loads((repository / f"{model}.json").read_text())["model"] == model


def test_schema_refuses_what_the_server_does_not_know() -> None:
    with pytest.raises(text_format.ParseError, match="no field named"):
        text_format.Parse('name: "x"\nsequence_batching { slots: 1 }', schema()())


@pytest.mark.parametrize("model", ["munet", "imcnet"])
def test_a_sequence_is_a_stream(exported: Make, client: Any, model: str) -> None:
    folder, repository = exported(model)
    server = Server(repository, model)
    description = client.describe(server, model)
    assert description.size == SIZE
    outputs = list(client.segment(server, GRPC, description, frames(), prompts))
    wanted = truth(folder)
    assert len(outputs) == FRAMES
    assert not server.sequences, "the last request ends the sequence"
    assert set(np.unique(wanted[-1])) == ({0, 1, 2} if description.takes_masks else {0, 1})
    for labels, expected in zip(outputs, wanted, strict=True):
        np.testing.assert_array_equal(labels, expected)


def test_sequences_know_nothing_of_each_other(exported: Make, client: Any) -> None:
    folder, repository = exported("munet")
    server = Server(repository, "munet")
    model = client.describe(server, "munet")
    late = client.segment(server, GRPC, model, frames(4), lambda i: prompts(0) if i == 2 else None)
    both = zip(late, client.segment(server, GRPC, model, frames(4), prompts), strict=True)
    seen = list(both)
    assert not seen[1][0].any(), "nothing was shown yet"
    assert set(np.unique(seen[3][0])) == {0, 1}
    for (_, labels), expected in zip(seen, truth(folder, 4), strict=True):
        np.testing.assert_array_equal(labels, expected)


def test_a_stream_shorter_than_the_latency(exported: Make, client: Any) -> None:
    folder, repository = exported("imcnet")
    server = Server(repository, "imcnet")
    model = client.describe(server, "imcnet")
    assert model.latency == 4
    outputs = list(client.segment(server, GRPC, model, frames(2), prompts))
    np.testing.assert_array_equal(outputs, truth(folder, 2))


def test_other_policies_are_served_graph_by_graph(exported: Make, tmp_path: Path) -> None:
    """With MUNet's step patched to depend on more than tensors."""
    source = exported("munet").folder
    for graph in source.glob("*.onnx"):
        (tmp_path / graph.name).write_bytes(graph.read_bytes())
    manifest = replace(Manifest.read(source), policy="support")
    manifest.write(tmp_path)
    write_repository(tmp_path, tmp_path / "repository")
    served = {path.name for path in (tmp_path / "repository").iterdir() if path.is_dir()}
    assert served == {f"munet_{name}" for name in manifest.graphs}
    assert (tmp_path / "repository" / "munet.json").read_text() == (tmp_path / MANIFEST).read_text()
    for name in served:
        folder = tmp_path / "repository" / name
        config, session = read_config(folder), run_of(folder)
        assert not config.HasField("sequence_batching")
        for ios, tensors in (
            (config.input, session.get_inputs()),
            (config.output, session.get_outputs()),
        ):
            assert [io.name for io in ios] == [tensor.name for tensor in tensors]
            for io, tensor in zip(ios, tensors, strict=True):
                shape = [n if isinstance(n, int) else -1 for n in tensor.shape]
                assert list(io.dims) == shape and shape, name
    session = run_of(tmp_path / "repository" / "munet_remember")
    kinds = {f"tensor({name})": kind for name, kind in NUMPY.items()}
    feeds = {node.name: np.ones(node.shape, kinds[node.type]) for node in session.get_inputs()}
    shapes = [port.shape for port in manifest.graphs["remember"].outputs]
    assert [array.shape for array in session.run(None, feeds)] == shapes


def test_what_the_server_cannot_keep(exported: Make, tmp_path: Path) -> None:
    source = exported("munet").folder
    for graph in source.glob("*.onnx"):
        (tmp_path / graph.name).write_bytes(graph.read_bytes())
    replace(Manifest.read(source), dynamic=True).write(tmp_path)
    with pytest.raises(ConfigError, match="--server-repository wants --size HxW"):
        write_repository(tmp_path, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written to"):
        write_repository(source, tmp_path / "file")


def test_the_client_as_a_command(
    exported: Make,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a folder of frames and a folder of masks to PNG masks."""
    folder, repository = exported("munet")
    (tmp_path / "masks").mkdir()
    (tmp_path / "frames").mkdir()
    for index, frame in enumerate(frames()):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{index:05}.png")
        mask = prompts(index)
        if mask is not None:
            image = Image.fromarray(mask)
            image.putpalette(bytes(range(256)) * 3)
            image.save(tmp_path / "masks" / f"{index:05}.png")
    GRPC.InferenceServerClient = lambda url: Server(repository, "munet")
    monkeypatch.setitem(sys.modules, "tritonclient", ModuleType("tritonclient"))
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", GRPC)
    arguments = [str(tmp_path / "frames"), str(tmp_path / "out"), "--model", "munet"]
    monkeypatch.setattr(sys, "argv", ["client", *arguments, "--mask", str(tmp_path / "masks")])
    client.main()
    for index, wanted in enumerate(truth(folder)):
        with Image.open(tmp_path / "out" / f"{index:05}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), wanted)
    monkeypatch.setattr(sys, "argv", ["client", *arguments])
    with pytest.raises(SystemExit, match="--mask: munet needs a mask"):
        client.main()


def test_the_client_fits_frames_and_masks(client: Any, tmp_path: Path) -> None:
    model = client.Model("munet", (32, 48), True, 0, 2)
    frame, mask = np.zeros((64, 96, 3), np.uint8), np.full((64, 96), 2, np.uint8)
    tensors = client.tensors(frame, mask, model)
    assert {name: (array.shape, array.dtype) for name, array in tensors.items()} == {
        "frame": ((32, 48, 3), np.uint8),
        "prompt": ((32, 48), np.uint8),
    }
    assert (tensors["prompt"] == 2).all()
    assert not client.tensors(frame, None, model)["prompt"].any()
    assert set(client.tensors(frame, None, replace(model, takes_masks=False))) == {"frame"}
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "one.png")
    Image.fromarray(np.full((4, 4), 3, np.uint8)).save(tmp_path / "three.png")
    assert client.masks_of(tmp_path / "one.png", model)(0).max() == 1
    assert client.masks_of(tmp_path / "one.png", model)(1) is None
    with pytest.raises(SystemExit, match="shows object 3; wanted 1 to 2"):
        client.read_mask(tmp_path / "three.png", 2)


def test_the_client_says_what_it_wants(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    monkeypatch.setattr(sys, "argv", ["client", "video.mp4", "out", "--model", "munet"])
    with pytest.raises(SystemExit, match=r'pip install "tritonclient\[grpc\]"'):
        client.main()
