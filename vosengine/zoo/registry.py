"""Registry of models: class, configurations, training objective, export and benchmark settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

from ..config import (
    LITE,
    SMALL,
    DMNAOAConfig,
    GIELConfig,
    IMCNetConfig,
    MemoryConfig,
    ModelConfig,
    MUNetConfig,
    STMConfig,
    TargetAwareConfig,
)
from ..errors import ConfigError
from ..models.dmn_aoa.network import DMNAOA
from ..models.giel.network import GIEL
from ..models.imcnet import IMCNet
from ..models.method import Method
from ..models.munet import MUNet
from ..models.stm import STM
from ..models.target_aware.network import TargetAware

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OBJECTIVES = "vosengine.training.objectives"
EXPORTS = "vosengine.onnx.export"


@dataclass(frozen=True)
class Entry:
    """A model's registry entry.

    Lazily imported objects (training, export) are given by name, for pkgutil.resolve_name.

    build      the Method class
    config     configuration class; its defaults are the paper's
    summary    one line for listings
    small      configuration for training from scratch
    lite       configuration with a pretrained backbone, or None
    objective  training Objective
    recipes    Recipe fields that differ from the defaults, nested for fields that are dataclasses,
               by configuration name ("lite", "small", "paper")
    export     module that defines the ONNX graphs; None: no ONNX export
    proposals  default proposal source, as for `open_proposals`, if the model needs proposals
    shares     decoders that compute object-independent parts once; the published variant in
               `vosengine bench` computes them per object
    stages     modules timed together, by the stage's name in `vosengine bench`, in addition to the
               method's verbs
    """

    build: type[Method[Any, Any]]
    config: Callable[..., ModelConfig]
    summary: str
    small: ModelConfig
    lite: ModelConfig | None = None
    objective: str = f"{OBJECTIVES}.following:FollowingObjective"
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    export: str | None = None
    proposals: str = "dnet"
    shares: tuple[str, ...] = ()
    stages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def configuration(self, name: str) -> ModelConfig:
        """The configuration "lite", "small" or "paper". Raises ConfigError if there is none."""
        known = {"lite": self.lite, "small": self.small, "paper": self.config()}
        config = known.get(name)
        if config is None:
            *others, last = (other for other in known if known[other] is not None)
            raise ConfigError(f"config: wanted {', '.join(others)} or {last}, given {name!r}")
        return config


FINDS: Mapping[str, Any] = {"size": (128, 224), "rate": 5e-4}  # recipe of unsupervised models
MODELS: dict[str, Entry] = {
    "stm": Entry(
        STM,
        STMConfig,
        "space-time memory, the baseline (ICCV 2019)",
        SMALL["stm"],
        LITE["stm"],
        export=f"{EXPORTS}.matching",
        shares=("decoder",),
        stages={"decode": ("decoder",)},
    ),
    "munet": Entry(
        MUNet,
        MUNetConfig,
        "motion-uncertainty-aware matching",
        SMALL["munet"],
        LITE["munet"],
        recipes={"paper": {"weight_decay": 0.5, "losses": {"share": 0.4, "iou": 1.0}}},
        export=f"{EXPORTS}.matching",
        shares=("decoder",),
        stages={"decode": ("decoder",)},
    ),
    "giel": Entry(
        GIEL,
        GIELConfig,
        "global and instance embeddings, all objects in one pass",
        SMALL["giel"],
        LITE["giel"],
        recipes={"paper": {"losses": {"saliency": 1.0}}},
        export=f"{EXPORTS}.support",
        shares=("instance_decoder",),
        stages={"decode": ("global_decoder", "instance_decoder", "coarse")},
    ),
    "dmn_aoa": Entry(
        DMNAOA,
        DMNAOAConfig,
        "object templates matched with aligned proposals",
        SMALL["dmn_aoa"],
        LITE["dmn_aoa"],
        export=f"{EXPORTS}.proposals",
        stages={"BFE": ("base",), "MRN": ("refine",)},
    ),
    "target_aware": Entry(
        TargetAware,
        TargetAwareConfig,
        "discovers objects and follows each, without a mask",
        SMALL["target_aware"],
        LITE["target_aware"],
        objective=f"{OBJECTIVES}.target_aware:TargetAwareObjective",
        # The centre of an object of arbitrary shape has no visible cue; D-Net's masks are coarse.
        recipes={
            "small": FINDS,
            "lite": {"discovery": {"sigma": 30.0, "centre": 400.0}, "appearance": {"rough": 8}},
        },
        export=f"{EXPORTS}.tracks",
        stages={"D-Net": ("dnet",), "ReID": ("reid",), "T-Net": ("backbone", "refiner")},
    ),
    "imcnet": Entry(
        IMCNet,
        IMCNetConfig,
        "the foreground, without a mask, from three frames",
        SMALL["imcnet"],
        LITE["imcnet"],
        objective=f"{OBJECTIVES}.foreground:IMCNetObjective",
        recipes={"small": FINDS},
        export=f"{EXPORTS}.foreground",
    ),
}


def list_models() -> tuple[str, ...]:
    """The names of all models."""
    return tuple(MODELS)


def entry(name: str) -> Entry:
    """The entry of a model. Raises ConfigError for an unknown name."""
    if name not in MODELS:
        raise ConfigError(f"model: wanted one of {', '.join(MODELS)}, given {name!r}")
    return MODELS[name]


_drawing = Lock()  # torch's default generator is shared by all threads


def build(name: str, config: ModelConfig, seed: int = 0) -> Method[Any, Any]:
    """Build a model with seeded random weights, in evaluation mode, on torch's default device.

    The weights are reproducible for a seed and torch version. The caller's random state is
    preserved; concurrent calls are serialised.

    Raises  ConfigError for an unknown model, and for a configuration of another class.
    """
    chosen = entry(name)
    if not isinstance(config, chosen.config):  # type: ignore[arg-type]
        raise ConfigError(f"config: {name} wants another class, given {type(config).__name__}")
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return chosen.build(config).eval().requires_grad_(False)


def config_to_json(config: DataclassInstance) -> str:
    """A configuration as JSON text, as stored in weights files."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def config_from_json(name: str, text: str) -> ModelConfig:
    """The inverse of `config_to_json`. Raises ConfigError for unknown fields."""
    fields = json.loads(text)
    unknown = _unknown(fields, entry(name).config)
    unknown += [f"memory.{key}" for key in _unknown(fields.get("memory", {}), MemoryConfig)]
    if unknown:
        raise ConfigError(f"config of {name}: unknown fields {', '.join(unknown)}")
    if "memory" in fields:
        fields["memory"] = MemoryConfig(**fields["memory"])
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    return entry(name).config(**fields)


def _unknown(fields: dict[str, Any], config: Any) -> list[str]:
    """The names in `fields` that are not fields of a configuration class."""
    return sorted(set(fields) - {field.name for field in dataclasses.fields(config)})
