"""Configurations: values out of range are refused by name, and files round-trip."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from conftest import WITH_MEMORY

from vosengine.config import (
    BACKBONES,
    DMNAOAConfig,
    GIELConfig,
    IMCNetConfig,
    MatchingConfig,
    MemoryConfig,
    MUNetConfig,
    STMConfig,
    TargetAwareConfig,
)
from vosengine.errors import ConfigError
from vosengine.zoo.registry import build, config_from_json, config_to_json, entry, list_models

NETWORK = [
    ("backbone", "vgg16"),
    ("backbone", ""),
    ("width", 0),
    ("key_channels", 0),
    ("value_channels", -1),
    ("decoder_channels", 0),
    ("mean", (0.5, 0.5)),
    ("std", (0.2, 0.2)),
    ("std", (0.2, 0.0, 0.2)),
    ("std", (0.2, -0.1, 0.2)),
]
MEMORY = [
    *[("policy", text) for text in ("every-0", "every-", "every--5", "every-5x", "5", "", "AFB")],
    ("max_frames", 1),
    ("budget", 0),
    ("merge_similarity", 0.0),
    ("merge_similarity", 1.01),
    ("merge_similarity", float("nan")),
    ("merge_rate", -0.1),
    ("merge_rate", 1.1),
]
MOTION = [
    ("radius", 0),
    ("temperature", float("nan")),
    ("outside", "clamp"),
    ("fusion", "concat"),
]
INPUT = [case for case in NETWORK if case[0] in ("backbone", "width", "mean", "std")]
SIZES = [("size", 31), ("size", 0), ("size", (480, 16)), ("size", (32, 32, 32))]
NEIGHBOURS = [
    ("channels", 0),
    ("neighbours", 0),
    ("step", 0),
    ("alignments", -1),
    ("alignments", 7),
    ("offset_groups", 0),
    ("offset_groups", 7),  # 64 channels
    ("fusion", "sum"),
    ("threshold", 0.0),
    ("threshold", 1.0),
]
TARGETS = [
    ("tracker_backbone", "vgg16"),
    ("reid_backbone", "resnet152"),
    ("aspp_rates", (6, 0, 18)),
    ("squeeze", "both"),
    ("heads", "wide"),
    ("guidance", "none"),
    ("refiner", "crf"),
    ("saliency_threshold", 1.0),
    ("centre_window", 6),
    ("centre_limit", 0),
    ("centre_limit", 256),
    ("smallest_proposal", 0),
    ("tracker_size", 31),
    ("target_channels", 0),
    ("ridge", (0.0, 1e-2)),
    ("ridge", (1e-2,)),
    ("first_iterations", (5, 0)),
    ("later_iterations", ()),
    ("augmentations", -1),
    ("samples", 4),  # as many as augmentations
    ("learning_rate", 0.0),
    ("learning_rate", 1.0),
    ("target_influence", -0.1),
    ("update_every", 0),
    ("reid_context", 0.9),
    ("match_overlap", 1.0),
    ("verified_weight", 0.5),
    ("birth_overlap", -0.1),
    ("max_tracks", 0),
    ("max_tracks", 256),
]


EMBEDDINGS = [
    *[case for case in NETWORK if case[0] != "decoder_channels"],
    ("label_channels", 0),
    ("label_output", "tanh"),
    ("variant", "slow"),
    ("heads", "none"),
    ("decoders", "none"),
    ("decoder_channels", 0),
    ("coarse_channels", 0),
    ("temporal", "mul"),
    ("support", 2),
    ("sampling", "random"),
    ("support_mask", "soft"),
    ("stored_frames", 9),  # of 5 read
    ("group", 0),
]
REGIONS = [
    *INPUT,
    ("base_channels", (128, 128)),
    ("base_channels", (128, 128, 100)),  # of 32 groups
    ("norm_groups", 0),
    ("region_levels", "res2"),
    ("region_size", 0),
    ("sampling", 0),
    ("key_channels", 0),
    ("max_proposals", 0),
    ("proposal_overlap", 0.0),
    ("projected_channels", 100),
    ("sharpness", float("inf")),
    ("score", "max"),
    ("overlap_weight", 1.1),
    ("matching_steps", 0),
    ("matching_rounds", 0),
    ("matching_rate", 0.0),
    ("assignment", "hungarian"),
    ("refine_channels", 48),
]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *[(kind, *case) for kind in (STMConfig, MUNetConfig) for case in NETWORK],
        *[(MUNetConfig, *case) for case in MOTION],
        *[(GIELConfig, *case) for case in EMBEDDINGS],
        *[(DMNAOAConfig, *case) for case in REGIONS],
        *[(IMCNetConfig, *case) for case in (*INPUT, *SIZES, *NEIGHBOURS)],
        *[(TargetAwareConfig, *case) for case in (*INPUT, *SIZES, *TARGETS)],
    ],
)
def test_a_bad_value_is_refused_by_name(kind: type, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: wanted .*, given ") as caught:
        kind(**{field: value})
    assert repr(value) in str(caught.value)
    with pytest.raises(ConfigError, match=f"^{field}: "):
        dataclasses.replace(kind(), **{field: value})


@pytest.mark.parametrize(("field", "value"), MEMORY)
def test_a_bad_memory_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^memory.{field}: wanted .*, given ") as caught:
        MemoryConfig(**{field: value})
    assert repr(value) in str(caught.value)


def test_the_ends_of_the_ranges_are_accepted() -> None:
    MemoryConfig(max_frames=2, budget=1, merge_similarity=1, merge_rate=0)
    MemoryConfig(merge_rate=1)
    MUNetConfig(radius=1, width=1, key_channels=1, value_channels=1, decoder_channels=1)
    assert [STMConfig(backbone=name).backbone for name in BACKBONES] == list(BACKBONES)


@pytest.mark.parametrize(
    ("policy", "every"), [("every-1", 1), ("every-5", 5), ("every-12", 12), ("all", 1), ("afb", 1)]
)
def test_how_often_a_frame_is_kept(policy: str, every: int) -> None:
    assert MemoryConfig(policy=policy).every == every


@pytest.mark.parametrize(
    "config", [MemoryConfig(), STMConfig(), MUNetConfig(), GIELConfig(), DMNAOAConfig()]
)
def test_settings_do_not_change(config: object) -> None:
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, getattr(config, field.name))
    assert hash(config) == hash(type(config)())


OTHER = {
    "backbone": "resnet18",
    "tracker_backbone": "resnet34",
    "reid_backbone": "resnet34",
    "memory": MemoryConfig("afb", 7, 1234, 0.9, 0.25),
    "outside": "exclude",
    "squeeze": "literal",
    "norm": "group",
    "similarity": "l2",
    "key_stride": 8,
    "guidance": "tracks",
    "refiner": "none",
    "offset_groups": 11,  # of 66 channels
    "label_output": "sigmoid",
    "variant": "fast",
    "decoders": "shared",
    "temporal": "postmul",
    "sampling": "literal",
    "support_mask": "instances",
    "score": "flat",
    "assignment": "dmm",
    "region_levels": "res4",
    "base_channels": (64, 96, 128),
    "norm_groups": 16,
    "projected_channels": 64,
    "refine_channels": 128,
    "memory_encoder": "shared",
    "fine_channels": 128,
    "neck": (24, 40, 64, 128),
    "guide": "shared",
    "tracker_stride": 16,
    "reid_stride": 16,
    "verified_mask": "own",
}


def other(name: str, value: Any) -> Any:
    """Return a valid value other than this default."""
    if name == "fusion":
        return {"attention": "add", "tsc": "conv3"}[value]
    if name == "heads":
        return {"separable": "dense", "shared": "separate"}[value]
    if name == "sampling" and isinstance(value, int):
        return 3
    if name in OTHER:
        return OTHER[name]
    if value is None:  # the frame's own size
        return 320
    if isinstance(value, tuple):
        return tuple(other("", item) for item in value)
    if isinstance(value, bool):
        return not value
    return value + 2 if isinstance(value, int) else 0.9 * value or 0.3


def other_than(config: Any) -> dict[str, Any]:
    """Return, for every field, a valid value other than the default."""
    names = [field.name for field in dataclasses.fields(config)]
    return {name: other(name, getattr(config, name)) for name in names}


@pytest.mark.parametrize("model", list_models())
def test_a_configuration_survives_its_file(model: str) -> None:
    default = entry(model).config()
    assert config_from_json(model, config_to_json(default)) == default
    changed = entry(model).config(**other_than(default))
    assert all(
        getattr(changed, field.name) != getattr(default, field.name)
        for field in dataclasses.fields(default)
    )
    text = config_to_json(changed)
    assert config_from_json(model, text) == changed
    if isinstance(default, MatchingConfig):
        assert json.loads(text)["memory"]["max_frames"] == 7
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.parametrize("model", list_models())
def test_what_a_file_leaves_out_is_the_default(model: str) -> None:
    assert config_from_json(model, "{}") == entry(model).config()


@pytest.mark.parametrize("model", list_models())
def test_a_field_that_is_not_known_is_an_error(model: str) -> None:
    fields = json.loads(config_to_json(entry(model).config()))
    with pytest.raises(ConfigError, match=f"{model}: unknown fields dilation, temper"):
        config_from_json(model, json.dumps({**fields, "temper": 8, "dilation": 2}))


@pytest.mark.parametrize("model", WITH_MEMORY)
def test_a_memory_field_that_is_not_known_is_an_error(model: str) -> None:
    fields = json.loads(config_to_json(entry(model).config()))
    fields["memory"]["halflife"] = 3
    with pytest.raises(ConfigError, match=r"unknown fields memory\.halflife"):
        config_from_json(model, json.dumps(fields))


@pytest.mark.parametrize("model", list_models())
def test_a_bad_value_in_a_file_is_refused_by_name(model: str) -> None:
    with pytest.raises(ConfigError, match=r"^width: "):
        config_from_json(model, '{"width": 0}')


@pytest.mark.parametrize("model", WITH_MEMORY)
def test_a_bad_memory_value_in_a_file_is_refused_by_name(model: str) -> None:
    with pytest.raises(ConfigError, match=r"^memory\.max_frames: "):
        config_from_json(model, '{"memory": {"max_frames": 1}}')


def test_an_unknown_model_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(ConfigError, match=f"^model: wanted one of {', '.join(list_models())}"):
        entry("stmm")


def test_a_configuration_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="munet wants another class, given STMConfig"):
        build("munet", STMConfig())
