"""Settings: a value out of range is refused by name, and a file gives back what was put in."""

from __future__ import annotations

import dataclasses
import json

import pytest

from vosengine.config import BACKBONES, MemoryConfig, MUNetConfig, STMConfig
from vosengine.errors import ConfigError
from vosengine.registry import build, config_from_json, config_to_json, entry, list_models

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


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *[(kind, *case) for kind in (STMConfig, MUNetConfig) for case in NETWORK],
        *[(MUNetConfig, *case) for case in MOTION],
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


@pytest.mark.parametrize("config", [MemoryConfig(), STMConfig(), MUNetConfig()])
def test_settings_do_not_change(config: object) -> None:
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, getattr(config, field.name))
    assert hash(config) == hash(type(config)())


def other_than(config: object) -> dict[str, object]:
    """For every field, a valid value that is not the default."""
    values: dict[str, object] = {
        "backbone": "resnet18",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "memory": MemoryConfig("afb", 7, 1234, 0.9, 0.25),
        "outside": "exclude",
        "fusion": "add",
    }
    names = [field.name for field in dataclasses.fields(config)]
    return {n: values[n] if n in values else getattr(config, n) + 1 for n in names}


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
    assert json.loads(text)["memory"]["max_frames"] == 7
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.parametrize("model", list_models())
def test_what_a_file_leaves_out_is_the_default(model: str) -> None:
    assert config_from_json(model, "{}") == entry(model).config()


@pytest.mark.parametrize("model", list_models())
def test_a_field_that_is_not_known_is_an_error(model: str) -> None:
    fields = json.loads(config_to_json(entry(model).config()))
    with pytest.raises(ConfigError, match=f"{model}: unknown fields dilation, heads"):
        config_from_json(model, json.dumps({**fields, "heads": 8, "dilation": 2}))
    fields["memory"]["halflife"] = 3
    with pytest.raises(ConfigError, match=r"unknown fields memory\.halflife"):
        config_from_json(model, json.dumps(fields))


@pytest.mark.parametrize("model", list_models())
def test_a_bad_value_in_a_file_is_refused_by_name(model: str) -> None:
    with pytest.raises(ConfigError, match=r"^width: "):
        config_from_json(model, '{"width": 0}')
    with pytest.raises(ConfigError, match=r"^memory\.max_frames: "):
        config_from_json(model, '{"memory": {"max_frames": 1}}')


def test_an_unknown_model_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(ConfigError, match=f"^model: wanted one of {', '.join(list_models())}"):
        entry("stmm")


def test_a_configuration_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="munet wants another class, given STMConfig"):
        build("munet", STMConfig())
