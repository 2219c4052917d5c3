"""Configuration of synthetic clips: fields, checks and presets."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from ...config.checks import check
from ...errors import ConfigError
from .shapes import CONTOURS
from .textures import PATTERNS

MAX_OBJECTS = 16
MIN_SIDE = 32
MIN_PIXELS_PER_OBJECT = 256  # needed to guarantee 30 visible pixels per object


@dataclass(frozen=True)
class Effects:
    """Upper limits of image effects; each clip draws its levels below them."""

    shadow: float = 0.5  # darkness of soft shadows, 0..1
    blur: float = 0.5  # shutter time of motion blur, in frame intervals, 0..1
    light: float = 0.4  # contrast of uneven lighting, fixed to the frame, 0..1
    drift: float = 0.15  # exposure and colour change over time, 0..1
    noise: float = 5.0  # sensor noise, standard deviation in grey levels, 0..64
    jpeg: tuple[int, int] | None = (50, 95)  # quality range, or None for no JPEG artefacts
    focus: float = 0.0  # lens blur, standard deviation in hundredths of the frame's side, 0..5

    def __post_init__(self) -> None:
        for name in ("shadow", "blur", "light", "drift"):
            _check_number(f"effects.{name}", getattr(self, name), 0.0, 1.0)
        _check_number("effects.noise", self.noise, 0.0, 64.0)
        _check_number("effects.focus", self.focus, 0.0, 5.0)
        if self.jpeg is not None:
            _check_range("effects.jpeg", self.jpeg, 1, 100, whole=True)

    @classmethod
    def none(cls) -> Effects:
        """No effects."""
        return cls(shadow=0.0, blur=0.0, light=0.0, drift=0.0, noise=0.0, jpeg=None)


@dataclass(frozen=True)
class ClipConfig:
    """Everything that determines a clip, except the seed. Ranges are (min, max), inclusive.

    `motion`, `growth`, `deformation`, `articulation`, `turning` and `camera` are factors on typical
    amounts: 0 is still or rigid, 1 typical, 2 strong. Probabilities are per object.

    Raises  ConfigError for values out of range.
    """

    frames: int = 24
    height: int = 240
    width: int = 432
    objects: tuple[int, int] = (1, 3)
    parts: tuple[int, int] = (1, 5)  # jointed parts of one object
    size: tuple[float, float] = (0.02, 0.2)  # area of an object relative to the frame
    holes: float = 0.15  # probability that a part has a hole
    patchwork: float = 0.0  # probability that each part has its own colours
    motion: float = 1.0
    growth: float = 1.0  # changes of objects' size
    deformation: float = 1.0
    articulation: float = 1.0
    turning: float = 0.5  # texture slides across the shape, as on a turning object
    camera: float = 1.0
    clutter: tuple[int, int] = (0, 6)  # shapes painted on the background
    distractors: tuple[int, int] = (0, 2)  # moving objects without an id
    look_alikes: float = 0.5  # probability that a distractor copies an object
    camouflage: float = 0.1  # probability that an object has the background's colours
    occluders: tuple[int, int] = (0, 1)  # bars in front of all objects
    leaving: float = 0.1  # probability that an object leaves the frame and returns
    shading: float = 0.5  # strength of light on the rims of parts, 0..1
    textures: tuple[str, ...] = tuple(name for name in PATTERNS if name != "flat")
    shapes: tuple[str, ...] = tuple(name for name in CONTOURS if name != "stick")
    effects: Effects = field(default_factory=Effects)

    def __post_init__(self) -> None:
        _check_range("frames", (self.frames, self.frames), 1, 1_000_000, whole=True)
        for name in ("height", "width"):
            side = getattr(self, name)
            _check_range(name, (side, side), MIN_SIDE, 8192, whole=True)
        _check_range("objects", self.objects, 1, MAX_OBJECTS, whole=True)
        _check_range("parts", self.parts, 1, 8, whole=True)
        _check_range("size", self.size, 0.005, 0.6)
        for name in ("clutter", "distractors", "occluders"):
            _check_range(name, getattr(self, name), 0, 32, whole=True)
        for name in ("motion", "growth", "deformation", "articulation", "turning", "camera"):
            _check_number(name, getattr(self, name), 0.0, 8.0)
        for name in ("holes", "patchwork", "look_alikes", "camouflage", "leaving", "shading"):
            _check_number(name, getattr(self, name), 0.0, 1.0)
        _check_names("textures", self.textures, PATTERNS)
        _check_names("shapes", self.shapes, CONTOURS)
        check(isinstance(self.effects, Effects), "effects", "an Effects", self.effects)
        if self.height * self.width < MIN_PIXELS_PER_OBJECT * self.objects[1]:
            raise ConfigError(
                f"objects: {self.objects[1]} need {MIN_PIXELS_PER_OBJECT} pixels each, but the"
                f" frame is {self.height}x{self.width}; enlarge it or ask for fewer objects"
            )

    @classmethod
    def plain(cls, frames: int = 24, height: int = 240, width: int = 432) -> ClipConfig:
        """Objects of one rigid part over a background, without effects."""
        return cls(
            frames, height, width, parts=(1, 1), holes=0.0, deformation=0.0, turning=0.0,
            camera=0.5, clutter=(0, 0), distractors=(0, 0), camouflage=0.0, occluders=(0, 0),
            leaving=0.0, effects=Effects.none(),
        )  # fmt: skip

    @classmethod
    def demo(cls, frames: int = 96, height: int = 240, width: int = 432) -> ClipConfig:
        """Two or three clearly visible objects that cross each other, for demonstrations."""
        return cls(
            frames, height, width, objects=(2, 3), parts=(2, 5), size=(0.04, 0.1), holes=0.05,
            motion=0.8, turning=0.3, camera=0.7, distractors=(0, 1), look_alikes=0.0,
            camouflage=0.0, occluders=(0, 0),
            leaving=0.0, effects=Effects(light=0.25, drift=0.06, noise=2.0, jpeg=None),
        )  # fmt: skip

    @classmethod
    def hard(cls, frames: int = 24, height: int = 240, width: int = 432) -> ClipConfig:
        """Fast motion, small and large objects, camouflage, occlusion, exits and look-alikes."""
        return cls(
            frames, height, width, objects=(1, 4), size=(0.008, 0.25), holes=0.25, motion=1.5,
            deformation=1.5, articulation=1.5, turning=1.5, camera=2.0, clutter=(0, 12),
            distractors=(1, 4), look_alikes=0.6, camouflage=0.25, occluders=(0, 3), leaving=0.35,
            effects=Effects(0.7, 0.9, 0.6, 0.3, 10.0, (25, 95)),
        )  # fmt: skip

    def resized(self, frames: int, height: int, width: int) -> ClipConfig:
        """The same settings for another length and size."""
        return replace(self, frames=frames, height=height, width=width)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_number(name: str, value: float, low: float, high: float) -> None:
    fits = _is_number(value) and low <= value <= high
    check(fits, name, f"a number from {low:g} to {high:g}", value)


def _check_range(
    name: str, pair: tuple[float, float], low: float, high: float, *, whole: bool = False
) -> None:
    kind = "whole number" if whole else "number"
    numbers = isinstance(pair, tuple) and len(pair) == 2 and all(map(_is_number, pair))
    fits = numbers and (not whole or all(isinstance(value, int) for value in pair))
    check(fits, name, f"one {kind} for each end", pair)
    given = pair[0] if pair[0] == pair[1] else pair
    fits = low <= pair[0] <= pair[1] <= high
    check(fits, name, f"{kind}s in order from {low:g} to {high:g}", given)


def _check_names(name: str, chosen: tuple[str, ...], known: Collection[str]) -> None:
    fits = isinstance(chosen, tuple) and chosen and set(chosen) <= set(known)
    check(bool(fits), name, f"a tuple of some of {', '.join(known)}", chosen)
