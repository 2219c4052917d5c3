"""Every model by name, with all that the rest of the program must know of it."""

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
    """All that is said of a model outside its own files. What is imported only when it is wanted
    (training, export) stands here by its name, as pkgutil.resolve_name reads it.

    build      its class, which says what the model needs and takes of a stream
    config     class of its configuration; the defaults are the paper's
    small      the configuration to train from scratch
    lite       the one over a pretrained backbone; None: there is none
    objective  the Objective that it is trained for
    recipes    by the name of a configuration ("lite", "small", "paper"): fields of the Recipe that
               differ from those of other models, and of a field with fields of its own those
    export     the module that says what its graphs are; None: it has no ONNX export
    proposals  the source, as `open_proposals` names it, that a model that needs proposals asks
               where the caller has none
    shares     its decoders that compute once what all objects have in common; the published form
               in `vosengine bench` computes it for each
    stages     of a step, beside the verbs, as `vosengine bench` names them: the modules whose time
               each is
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
        """ "lite", "small" or "paper". Raises ConfigError for a name that the model has not."""
        known = {"lite": self.lite, "small": self.small, "paper": self.config()}
        found = known.get(name)
        if found is None:
            *others, last = (each for each in known if known[each] is not None)
            raise ConfigError(f"config: wanted {', '.join(others)} or {last}, given {name!r}")
        return found


FINDS: Mapping[str, Any] = {"size": (128, 224), "rate": 5e-4}  # recipe of who needs no mask
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
        # Centres of things of any shape lie where nothing shows; what D-Net finds is rough.
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
    """The entry of a model; raises ConfigError, listing the names, for an unknown one."""
    if name not in MODELS:
        raise ConfigError(f"model: wanted one of {', '.join(MODELS)}, given {name!r}")
    return MODELS[name]


_drawing = Lock()  # torch's generator is one for all threads


def build(name: str, config: ModelConfig, seed: int = 0) -> Method[Any, Any]:
    """A model in evaluation mode with seeded random weights, on torch's current default device.

    The same seed gives the same numbers on every machine with the same torch; the caller's random
    state is left as it was, and models that are built in several threads come one after another.
    """
    chosen = entry(name)
    if not isinstance(config, chosen.config):  # type: ignore[arg-type]
        raise ConfigError(f"config: {name} wants another class, given {type(config).__name__}")
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return chosen.build(config).eval().requires_grad_(False)


def config_to_json(config: DataclassInstance) -> str:
    """A configuration as text, the way a weights file carries it."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def config_from_json(name: str, text: str) -> ModelConfig:
    """The inverse; raises ConfigError for a field that this version does not know."""
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
    """The names in `fields` that a configuration class has not."""
    return sorted(set(fields) - {field.name for field in dataclasses.fields(config)})
