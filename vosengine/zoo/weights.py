"""Weights: cards that say what a set is, and safetensors files, checked before use."""

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
    """What a weights set is: `munet.demo` is the architecture, a dot and the tag.

    file      name inside weights/, empty for a random set
    sha256    of that file; checked before the file is opened
    bytes     its size
    seed      of a random set, or of the training
    trained   False: the masks are noise, and every output says RANDOM

    Of a set that was trained here:
    recipe    how it was trained, piece by piece
    steps     of the optimiser, all pieces together
    hours     of one core or one GPU
    hardware  that it was trained on
    scores    by name of what was measured, and `measured`, the command
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
        """What no other set of weights for this model has: the file's hash, or the seed."""
        return self.sha256 or f"random, seed {self.seed}"

    @property
    def caption(self) -> str:
        """What an output says of its weights."""
        return self.name if self.trained else f"RANDOM weights ({self.name}): the masks are noise"


@dataclass(frozen=True)
class BackboneCard:
    """A pretrained backbone that ships, for networks to be trained on top of.

    name     as configurations call it
    file, sha256, bytes  as in WeightCard
    source   the package and the version that weights/convert.py was given
    licence  its SPDX name; the text and a notice lie beside the file
    """

    name: str
    file: str
    sha256: str
    bytes: int
    description: str
    source: str
    licence: str


def backbone_cards() -> dict[str, BackboneCard]:
    """The backbones of the manifest, by name."""
    return {fields["name"]: BackboneCard(**fields) for fields in _manifest()["backbone"]}


def backbone_file(name: str) -> Path:
    """Where a pretrained backbone's tensors lie: those of models/'s module of that name, stages
    beyond the ones that a network has among them.

    Raises  WeightsError: none of that name ships; missing; failing its hash.
    """
    known = backbone_cards()
    if name not in known:
        raise WeightsError(
            f"backbone: no pretrained {name} ships, only {', '.join(known)}; wanted a file that "
            f"weights/convert.py {name} has written"
        )
    return _shipped_file(known[name])


def licence_of(config: DataclassInstance) -> str:
    """Of weights that are trained here: MIT, and that of every backbone that ships and that they
    stand on."""
    known = backbone_cards()
    fields = asdict(config)
    names = sorted({v for k, v in fields.items() if k.endswith("backbone") and v in known})
    return " AND ".join(["MIT", *(f"{known[name].licence} ({name})" for name in names)])


def _manifest() -> dict[str, Any]:
    text = (resources.files("vosengine.shipped") / "manifest.toml").read_text(encoding="utf-8")
    content: dict[str, Any] = tomllib.loads(text)
    return content


def cards() -> dict[str, WeightCard]:
    """Every card, by name: random weights of every model, and what the manifest names; a duplicate
    name is an error."""
    random = (WeightCard(model, RANDOM_TAG, False, RANDOM, "MIT") for model in list_models())
    found = {card.name: card for card in random}
    for fields in _manifest()["card"]:
        card = WeightCard(**{**fields, "recipe": tuple(fields.get("recipe", ()))})
        if card.name in found:
            raise WeightsError(f"manifest.toml: two cards are named {card.name}")
        found[card.name] = card
    return found


def load(
    model: str, weights: str | Path | None, config: ModelConfig | None = None
) -> tuple[Method[Any, Any], WeightCard]:
    """A model with its weights, on the CPU in float32.

    weights  None: the trained set that ships for this model, or, with a `config`, random ones; a
             tag ("random") or a full name ("munet.random"); or the path of a .safetensors file
    config   only with random weights; a file brings its own

    Raises  WeightsError: no such set or file; corrupt; of another model; failing its hash.
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
    """Where a card's file lies, its hash checked."""
    path = Path(str(resources.files("vosengine.shipped") / card.file))
    if not path.is_file():
        raise WeightsError(f"{card.name}: the file {card.file} did not ship with this installation")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != card.sha256:
        raise WeightsError(
            f"{card.name}: {card.file} fails its hash (sha256 {digest[:12]}, the card says "
            f"{card.sha256[:12]}); the file is damaged or not the one that shipped: reinstall it"
        )
    return path


def demo_of(model: str) -> tuple[Path, WeightCard]:
    """The file of the trained set that ships for a network that is no model of `list_models`, its
    hash checked, and its card. Raises WeightsError."""
    card = cards().get(f"{model}.demo")
    if card is None:
        raise WeightsError(f"{model}.demo: did not ship with this installation")
    return _shipped_file(card), card


def digest_of(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the metadata (less the hash itself), then over names, dtypes, shapes and bytes of
    all tensors, in order of name."""
    stated = {name: metadata[name] for name in metadata if name != "sha256"}
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_of(method: nn.Module) -> dict[str, torch.Tensor]:
    """What a weights file holds: all parameters and buffers but the norms' batch counters."""
    state = method.state_dict()
    return {name: state[name] for name in state if not name.endswith("num_batches_tracked")}


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
    """Write a weights file that carries its model, its configuration and a hash of it all.

    Raises  OutputError if it cannot be written there.
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
        # One key, so that equal weights are equal files: safetensors writes several in any order.
        with whole(path) as scratch:
            save_file(stored, scratch, {"vosengine": json.dumps(metadata, sort_keys=True)})
    except SafetensorError as error:
        raise cannot_write(path, error) from error


def load_file(model: str, path: Path) -> tuple[Method[Any, Any], WeightCard]:
    """A model from a file that `save` or weights/convert.py wrote, every tensor accounted for."""
    metadata, tensors = read_file(path)
    if metadata["model"] != model:
        raise WeightsError(f"{path}: holds weights of {metadata['model']}, wanted {model}")
    config = config_from_json(model, metadata["config"])
    method = build(model, config)
    check_tensors(str(path), tensors, {k: tuple(t.shape) for k, t in state_of(method).items()})
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
    """Metadata and tensors of a weights file, its hash checked."""
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
            f"{path}: fails its hash; the file is damaged: fetch or convert it again"
        )
    return metadata, tensors


def check_tensors(
    source: str, given: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise WeightsError listing every missing, extra and misshapen tensor, if there is any."""
    faults = [
        f"missing: {name} {list(wanted[name])}" for name in sorted(wanted.keys() - given.keys())
    ]
    faults += [f"extra: {name}" for name in sorted(given.keys() - wanted.keys())]
    faults += [
        f"misshapen: {name}: wanted {list(wanted[name])}, given {list(given[name].shape)}"
        for name in sorted(wanted.keys() & given.keys())
        if tuple(given[name].shape) != tuple(wanted[name])
    ]
    if faults:
        raise WeightsError(f"{source}: {len(faults)} tensors do not fit:\n  " + "\n  ".join(faults))
