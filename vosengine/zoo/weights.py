"""Weight cards and safetensors weights files, verified by hash before use."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..config import ModelConfig
from ..errors import WeightsError
from ..files import cannot_write, whole
from ..models.method import Method
from .registry import build, config_from_json, config_to_json, entry, list_models

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT = "vosengine-weights-1"
RANDOM_TAG = "random"
RANDOM = "seeded random numbers of the published size, for timing and testing"


@dataclass(frozen=True)
class WeightCard:
    """Description of a weights set, named `model.tag` (`munet.demo`).

    model, tag   registry name of the model, and name of the set
    trained      False: random weights; every output is marked RANDOM
    description  one line for listings
    licence      SPDX expression
    file         name inside weights/; empty for random weights
    sha256       hash of the file, checked before it is opened
    bytes        size of the file
    seed         seed of random weights, or of the training

    For sets trained with this package:
    recipe    training commands, in order
    steps     optimiser steps in total
    hours     training time on one core or one GPU
    hardware  training hardware
    scores    measured scores by name; `measured` is the command
    """

    model: str
    tag: str
    trained: bool
    description: str
    licence: str
    file: str = ""
    sha256: str = ""
    bytes: int = 0
    seed: int = 0
    recipe: tuple[str, ...] = ()
    steps: int = 0
    hours: float = 0.0
    hardware: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    measured: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}.{self.tag}"

    @property
    def identity(self) -> str:
        """Unique identifier among the model's weights: the file's hash, or the seed."""
        return self.sha256 or f"random, seed {self.seed}"

    @property
    def caption(self) -> str:
        """The weights' name for outputs, with a warning for random weights."""
        return self.name if self.trained else f"RANDOM weights ({self.name}): the masks are noise"


@dataclass(frozen=True)
class BackboneCard:
    """Description of a pretrained backbone that ships, for training.

    name     value of a configuration's `backbone`
    file, sha256, bytes, description  as in WeightCard
    source   package and version of the original weights
    licence  SPDX name; the licence text and a notice are stored beside the file
    """

    name: str
    file: str
    sha256: str
    bytes: int
    description: str
    source: str
    licence: str


def backbone_cards() -> dict[str, BackboneCard]:
    """Cards of the pretrained backbones that ship, by name."""
    return {fields["name"]: BackboneCard(**fields) for fields in _manifest()["backbone"]}


def backbone_file(name: str) -> Path:
    """Path of a pretrained backbone's tensors, which may include stages that a network omits.

    Raises  WeightsError if no backbone of that name ships, or its file is missing or corrupt.
    """
    known = backbone_cards()
    if name not in known:
        raise WeightsError(
            f"backbone: no pretrained {name} ships, only {', '.join(known)}; wanted a file that "
            f"weights/convert.py {name} has written"
        )
    return _shipped_file(known[name])


def licence_of(config: DataclassInstance) -> str:
    """Licence of weights for a configuration: MIT, and those of its pretrained backbones."""
    known = backbone_cards()
    fields = asdict(config)
    names = sorted({v for k, v in fields.items() if k.endswith("backbone") and v in known})
    return " AND ".join(["MIT", *(f"{known[name].licence} ({name})" for name in names)])


def _manifest() -> dict[str, Any]:
    text = (resources.files("vosengine.shipped") / "manifest.toml").read_text(encoding="utf-8")
    content: dict[str, Any] = tomllib.loads(text)
    return content


def cards() -> dict[str, WeightCard]:
    """All weight cards by name: random weights of every model, and those of the manifest.

    Raises  WeightsError for a duplicate name.
    """
    random = (WeightCard(model, RANDOM_TAG, False, RANDOM, "MIT") for model in list_models())
    by_name = {card.name: card for card in random}
    for fields in _manifest()["card"]:
        card = WeightCard(**{**fields, "recipe": tuple(fields.get("recipe", ()))})
        if card.name in by_name:
            raise WeightsError(f"manifest.toml: two cards are named {card.name}")
        by_name[card.name] = card
    return by_name


def load(
    model: str, weights: str | Path | None, config: ModelConfig | None = None
) -> tuple[Method[Any, Any], WeightCard]:
    """Load a model and its weights, on the CPU in float32, and the weights' card.

    weights  None: the trained set that ships for this model, or, with a `config`, random weights; a
             tag ("random") or a full name ("munet.random"); or the path of a .safetensors file
    config   only with random weights; files contain their own

    Raises  WeightsError if the set or file does not exist, is corrupt, or is of another model;
            ConfigError for an unknown model.
    """
    entry(model)
    if weights is not None and (str(weights).endswith(".safetensors") or "/" in str(weights)):
        if config is not None:
            raise WeightsError("config: a weights file brings its own; leave one of the two out")
        return load_file(model, Path(weights))
    if weights is None and config is not None:
        weights = RANDOM_TAG
    card = _choose_card(model, weights)
    if card.file:
        if config is not None:
            raise WeightsError(f"config: {card.name} brings its own; leave one of the two out")
        return load_file(model, _shipped_file(card))[0], card
    return build(model, config or entry(model).config(), card.seed), card


def _choose_card(model: str, weights: str | Path | None) -> WeightCard:
    known = {name: card for name, card in cards().items() if card.model == model}
    if weights is None:
        return max(known.values(), key=lambda card: card.trained)
    name = str(weights) if "." in str(weights) else f"{model}.{weights}"
    if name not in known:
        raise WeightsError(
            f"weights: no set named {name!r} for {model}; wanted one of {', '.join(known)}, "
            "or the path of a .safetensors file"
        )
    return known[name]


def _shipped_file(card: WeightCard | BackboneCard) -> Path:
    """Path of a card's file, after checking its hash. Raises WeightsError."""
    path = Path(str(resources.files("vosengine.shipped") / card.file))
    if not path.is_file():
        raise WeightsError(f"{card.name}: the file {card.file} did not ship with this installation")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != card.sha256:
        raise WeightsError(
            f"{card.name}: {card.file} fails its hash (wanted sha256 {card.sha256[:12]}, given "
            f"{digest[:12]}); the file is corrupt or not the one that shipped: reinstall it"
        )
    return path


def demo_of(model: str) -> tuple[Path, WeightCard]:
    """File (hash checked) and card of the trained weights that ship for a network that is not in
    `list_models`. Raises WeightsError."""
    card = cards().get(f"{model}.demo")
    if card is None:
        raise WeightsError(f"{model}.demo: did not ship with this installation")
    return _shipped_file(card), card


def digest_of(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the metadata without its hash, then over names, dtypes, shapes and bytes of all
    tensors, sorted by name."""
    hashed = {name: metadata[name] for name in metadata if name != "sha256"}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_of(method: nn.Module) -> dict[str, torch.Tensor]:
    """State dict for a weights file: parameters and buffers without the norms' batch counters."""
    state = method.state_dict()
    return {name: state[name] for name in state if not name.endswith("num_batches_tracked")}


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of `state_of`, by name."""
    return {name: tuple(tensor.shape) for name, tensor in state_of(network).items()}


def save(
    path: Path,
    model: str,
    config: DataclassInstance,
    tensors: Mapping[str, torch.Tensor],
    *,
    trained: bool,
    description: str,
    licence: str,
) -> None:
    """Write a weights file with tensors, model name, configuration and a hash, atomically.

    Raises  OutputError if the file cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "model": model,
        "config": config_to_json(config),
        "trained": str(trained).lower(),
        "description": description,
        "licence": licence,
    }
    metadata["sha256"] = digest_of(metadata, tensors)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        # A single key: safetensors does not fix the order of several, and equal weights should
        # give equal files.
        with whole(path) as scratch:
            save_file(stored, scratch, {"vosengine": json.dumps(metadata, sort_keys=True)})
    except SafetensorError as error:
        raise cannot_write(path, error) from error


def load_file(model: str, path: Path) -> tuple[Method[Any, Any], WeightCard]:
    """Load a model and its card from a file written by `save` or weights/convert.py.

    Raises  WeightsError if the file is corrupt, of another model, or its tensors do not match;
            ConfigError for an unknown configuration field.
    """
    metadata, tensors = read_file(path)
    if metadata["model"] != model:
        raise WeightsError(f"{path}: holds weights of {metadata['model']}, wanted {model}")
    config = config_from_json(model, metadata["config"])
    method = build(model, config)
    check_tensors(str(path), tensors, shapes_of(method))
    method.load_state_dict(tensors, strict=False)
    card = WeightCard(
        model=model,
        tag=path.stem,
        trained=metadata["trained"] == "true",
        description=metadata["description"],
        licence=metadata["licence"],
        file=path.name,
        sha256=metadata["sha256"],
        bytes=path.stat().st_size,
    )
    return method, card


def read_file(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a weights file, after checking its hash. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; wanted a .safetensors weights file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("vosengine", "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: corrupt, or no safetensors file ({error})") from error
    try:
        metadata: dict[str, str] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: corrupt: its header cannot be read ({error})") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path}: a safetensors file, but not one of vosengine's (format {FORMAT}); "
            "convert foreign weights with weights/convert.py"
        )
    if digest_of(metadata, tensors) != metadata.get("sha256"):
        raise WeightsError(
            f"{path}: fails its hash; the file is corrupt: fetch or convert it again"
        )
    return metadata, tensors


def check_tensors(
    source: str, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise WeightsError listing all missing, extra and misshapen tensors, if any.

    source  name of the file in the message
    wanted  shapes by name
    """
    faults = [
        f"missing: {name} {list(wanted[name])}" for name in sorted(wanted.keys() - tensors.keys())
    ]
    faults += [f"extra: {name}" for name in sorted(tensors.keys() - wanted.keys())]
    faults += [
        f"misshapen: {name}: wanted {list(wanted[name])}, given {list(tensors[name].shape)}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tuple(tensors[name].shape) != tuple(wanted[name])
    ]
    if faults:
        raise WeightsError(f"{source}: {len(faults)} tensors do not fit:\n  " + "\n  ".join(faults))
