"""Smooth random motion: trajectories, swings and deformations as functions of time.

A path is a sum of a few sinusoids of random rate and phase, not a random walk: any frame can be
computed without the previous ones, and paths are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .geometry import Matrix, rotate, scale, translate

Vector = NDArray[np.float64]
_WAVES = 4
GRID_SIDE = 5  # control points of a deformation, per side


@dataclass(frozen=True)
class Wander:
    """Smooth path in D dimensions, 0 at time 0."""

    amplitude: Vector  # [_WAVES, D]
    rate: Vector  # [_WAVES, D], radians per frame
    phase: Vector  # [_WAVES, D]

    def at(self, time: float) -> Vector:
        """Value [D] at `time` (frames)."""
        swing = np.sin(self.rate * time + self.phase) - np.sin(self.phase)
        return np.asarray((self.amplitude * swing).sum(axis=0), np.float64)


def draw_wander(
    rng: np.random.Generator, reach: ArrayLike, speed: ArrayLike, dimensions: int
) -> Wander:
    """Draw a path; `reach`: typical distance from the mean; `speed`: typical change per frame."""
    reach, speed = np.asarray(reach, np.float64), np.asarray(speed, np.float64)
    pace = np.exp(rng.uniform(-1.0, 1.0, (_WAVES, dimensions)))
    rate = np.divide(speed, reach, out=np.zeros_like(reach * speed), where=reach > 0) * pace
    # Amplitudes are inversely proportional to rates: all waves have about the same speed.
    amplitude = reach / pace / np.sqrt(_WAVES) * np.ones((_WAVES, dimensions))
    return Wander(amplitude, rate, rng.uniform(0, 2 * np.pi, (_WAVES, dimensions)))


@dataclass(frozen=True)
class Excursion:
    """Periodic motion out of the frame and back."""

    offset: Vector  # [2], pixels; displacement after half a period
    period: float  # frames

    def at(self, time: float) -> Vector:
        """Displacement [2] in pixels at `time` (frames)."""
        away = 0.5 - 0.5 * float(np.cos(2 * np.pi * time / self.period))
        return self.offset * away


@dataclass(frozen=True)
class Trajectory:
    """Map over time from an actor's coordinates (-1..1) to the world, in pixels of frame 0."""

    home: Vector  # [2] position at time 0
    size: Vector  # [2] pixels per unit at time 0
    angle: float  # at time 0, radians
    place: Wander  # 2: pixels
    pose: Wander  # 4: turn, log size, log aspect, shear
    centre: Vector  # [2] centre of the region that the path stays in
    bounds: Vector  # [2] half extent of that region
    excursion: Excursion | None = None

    def matrix(self, time: float) -> Matrix:
        """Actor's coordinates to world pixels at `time` (frames)."""
        turn, growth, aspect, shear = self.pose.at(time)
        size = self.size * np.exp((growth + aspect, growth - aspect))
        return translate(self.position(time)) @ rotate(self.angle + turn, shear) @ scale(size)

    def position(self, time: float) -> Vector:
        """World position [2] of the actor's origin at `time` (frames)."""
        start = self._held(self.home)
        position = self.home + self._held(self.home + self.place.at(time)) - start
        return position + self.excursion.at(time) if self.excursion else position

    def moved(self, home: Vector, angle: float, size: Vector | None = None) -> Trajectory:
        """Change the start position, angle and size; an excursion then leaves by the nearest
        side."""
        size = self.size if size is None else size
        excursion = self.excursion
        if excursion:
            outward = np.copysign(excursion.offset, home - self.centre)
            excursion = replace(excursion, offset=outward)
        return replace(self, home=home, angle=angle, size=size, excursion=excursion)

    def _held(self, point: Vector) -> Vector:
        """Soft clamp of `point` to the region."""
        reach = (point - self.centre) / self.bounds
        excess = np.maximum(np.abs(reach) - 0.7, 0)
        pressed = np.sign(reach) * (np.minimum(np.abs(reach), 0.7) + 0.3 * np.tanh(excess / 0.3))
        return np.asarray(self.centre + pressed * self.bounds, np.float64)


def draw_trajectory(
    rng: np.random.Generator, frame: tuple[int, int], size: float, motion: float, leaving: float,
    growth: float = 1.0,
) -> Trajectory:  # fmt: skip
    """Draw a trajectory from the centre of the frame, for an actor of `size` pixels per unit.

    frame    (height, width)
    motion   factor on the speed
    leaving  probability of an excursion out of the frame
    growth   factor on changes of size
    """
    height, width = frame
    unit = np.sqrt(height * width)
    pace = motion * np.exp(rng.normal(0, 0.5))
    place = draw_wander(rng, unit * rng.uniform(0.08, 0.25, 2), 0.012 * unit * pace, 2)
    pose = draw_wander(
        rng,
        np.array([0.4, 0.18 * growth, 0.1, 0.12]),
        np.array([0.03, 0.012 * growth, 0.008, 0.01]) * pace,
        4,
    )
    excursion = None
    if motion > 0 and rng.random() < leaving:
        aside = rng.uniform(0, 0.2) * height
        beyond = np.array([0.9 * width + 1.5 * size, aside])
        if rng.random() < 0.25:
            beyond = np.array([aside, 0.9 * height + 1.5 * size])
        excursion = Excursion(beyond, rng.uniform(28, 90) / motion)
    middle = np.array([width, height]) / 2
    return Trajectory(middle, np.full(2, size), 0.0, place, pose, middle, 0.85 * middle, excursion)


def draw_bending(rng: np.random.Generator, amount: float) -> Wander | None:
    """Draw a smooth non-rigid deformation: the displacements [GRID_SIDE, GRID_SIDE, 2] of control
    points over -1.2..1.2, flat, in the actor's units; None if `amount` is 0."""
    if amount == 0:
        return None
    strength = amount * rng.uniform(0.3, 1.3)
    return draw_wander(rng, 0.06 * strength, 0.008 * strength, 2 * GRID_SIDE**2)


def draw_swing(rng: np.random.Generator, amount: float) -> Wander:
    """Draw the angle (radians) of a limb about its joint."""
    amount *= rng.uniform(0.1, 1.6)
    return draw_wander(rng, 0.3 * amount, 0.05 * amount, 1)
