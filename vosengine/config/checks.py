"""What every configuration checks, and the constants that they share."""

from __future__ import annotations

from typing import Protocol

from ..errors import ConfigError

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BACKBONES = (*RESNETS, "efficientnet_lite0", "efficientnet_lite2")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LITE_MEAN = (127 / 255,) * 3  # of EfficientNet-Lite: (x - 127) / 128 of 0..255
LITE_STD = (128 / 255,) * 3
WorkingSize = tuple[int, int] | int | str | None  # str: NATIVE; None: the model's own
NATIVE = "native"  # as a size: the frame's own
SMALLEST_SIDE = 32  # pixels of a frame, and of what a network works at


class InputConfig(Protocol):
    """What every configuration says of its backbone and of the frames that it takes."""

    @property
    def backbone(self) -> str: ...

    @property
    def norm(self) -> str: ...

    @property
    def size(self) -> tuple[int, int] | int | None: ...

    @property
    def mean(self) -> tuple[float, float, float]: ...

    @property
    def std(self) -> tuple[float, float, float]: ...


def check(condition: bool, name: str, wanted: str, given: object) -> None:
    if not condition:
        raise ConfigError(f"{name}: wanted {wanted}, given {given!r}")


def check_size(size: tuple[int, int] | int | None) -> None:
    """Raise ConfigError unless this is a size that a network can work at."""
    if size is not None:
        sides = size if isinstance(size, tuple) else (size,)
        fits = len(sides) <= 2 and min(sides, default=0) >= SMALLEST_SIDE
        check(fits, "size", f"{SMALLEST_SIDE} or more pixels", size)


def read_working_size(text: str) -> WorkingSize:
    """What a stream works at, as it is typed: 480 (the short side), 480x854 (height and width) or
    native. Raises ConfigError for other words; the numbers are `check_working_size`'s."""
    height, cross, width = text.partition("x")
    if text == NATIVE:
        return text
    if not height.isdigit() or (cross and not width.isdigit()):
        raise ConfigError(f"size: wanted 480, 480x854 or {NATIVE}, given {text!r}")
    return (int(height), int(width)) if cross else int(height)


def check_working_size(size: WorkingSize) -> None:
    """The same for what a stream may be given, where "native" stands for the frame's own size."""
    if not isinstance(size, str):
        check_size(size)
    else:
        check(size == NATIVE, "size", f'pixels, (height, width) or "{NATIVE}"', size)


def check_input(config: InputConfig) -> None:
    names = ", ".join(BACKBONES)
    check(config.backbone in BACKBONES, "backbone", f"one of {names}", config.backbone)
    check(config.norm in ("batch", "group"), "norm", "batch or group", config.norm)
    check_size(config.size)
    check(len(config.mean) == 3, "mean", "three numbers", config.mean)
    check(len(config.std) == 3 and min(config.std) > 0, "std", "three numbers > 0", config.std)


def check_positive(config: object, *names: str) -> None:
    """Raise ConfigError unless these fields are 1 or more."""
    for name in names:
        check(getattr(config, name) > 0, name, "1 or more", getattr(config, name))


def check_choice(config: object, **choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless these fields are one of their choices."""
    for name, kinds in choices.items():
        check(getattr(config, name) in kinds, name, " or ".join(kinds), getattr(config, name))
