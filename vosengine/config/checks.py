"""Checks and constants shared by all configurations."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BACKBONES = (*RESNETS, "efficientnet_lite0", "efficientnet_lite2")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LITE_MEAN = (127 / 255,) * 3  # EfficientNet-Lite: (x - 127) / 128 for x in 0..255
LITE_STD = (128 / 255,) * 3
WorkingSize = tuple[int, int] | int | str | None  # str: NATIVE; None: the model's default
NATIVE = "native"  # working size: that of the frame
SMALLEST_SIDE = 32  # minimum side of a frame and of the working size, in pixels


def check(condition: bool, name: str, wanted: str, value: object) -> None:
    """Raise ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name}: wanted {wanted}, given {value!r}")


def check_size(size: tuple[int, int] | int | None) -> None:
    """Raise ConfigError unless `size` (short side, (height, width) or None) is a working size of
    at least SMALLEST_SIDE pixels a side."""
    if size is not None:
        sides = size if isinstance(size, tuple) else (size,)
        fits = len(sides) <= 2 and min(sides, default=0) >= SMALLEST_SIDE
        check(fits, "size", f"{SMALLEST_SIDE} or more pixels", size)


def read_working_size(text: str) -> WorkingSize:
    """Parse a working size: "480" (short side), "480x854" (height x width) or "native".

    Raises  ConfigError for any other text; the range is checked by `check_working_size`.
    """
    height, cross, width = text.partition("x")
    if text == NATIVE:
        return text
    if not height.isdigit() or (cross and not width.isdigit()):
        raise ConfigError(f"size: wanted 480, 480x854 or {NATIVE}, given {text!r}")
    return (int(height), int(width)) if cross else int(height)


def check_working_size(size: WorkingSize) -> None:
    """Raise ConfigError unless `size` is valid as in `check_size`, or "native"."""
    if not isinstance(size, str):
        check_size(size)
    else:
        check(size == NATIVE, "size", f'pixels, (height, width) or "{NATIVE}"', size)


def check_positive(config: object, *names: str) -> None:
    """Raise ConfigError unless these fields are 1 or more."""
    for name in names:
        check(getattr(config, name) > 0, name, "1 or more", getattr(config, name))


def check_choice(config: object, **choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless each field is one of its choices."""
    for name, allowed in choices.items():
        check(getattr(config, name) in allowed, name, " or ".join(allowed), getattr(config, name))


@dataclass(frozen=True)
class InputConfig:
    """The backbone and input fields that every configuration has; STMConfig describes them."""

    backbone: str = "resnet50"
    width: int = 64
    norm: str = "batch"
    size: tuple[int, int] | int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        names = ", ".join(BACKBONES)
        check(self.backbone in BACKBONES, "backbone", f"one of {names}", self.backbone)
        check_positive(self, "width")
        check_choice(self, norm=("batch", "group"))
        check_size(self.size)
        check(len(self.mean) == 3, "mean", "three numbers", self.mean)
        check(len(self.std) == 3 and min(self.std) > 0, "std", "three numbers > 0", self.std)
