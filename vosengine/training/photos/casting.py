"""Scenes of pasted cut-outs: a photo background, a camera and moving figures."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ...types import Size
from ..object_ids import count_ids
from ..synthetic.actors import Actor
from ..synthetic.camera import BACKGROUND, FOREGROUND, OBJECTS, Camera, draw_camera
from ..synthetic.config import Effects
from ..synthetic.effects import Look, draw_look
from ..synthetic.geometry import (
    Matrix,
    Window,
    corners,
    invert,
    scale,
    transform,
    translate,
)
from ..synthetic.motion import draw_bending, draw_trajectory, draw_wander
from ..synthetic.scene import Scene
from .cutouts import ENLARGED, Figure, cut_out, draw_outline
from .library import PhotoLibrary, Pixels, draw_kind

SIZE = (0.025, 0.35)  # area of an object relative to the frame, log-uniform
KINDS = {"objects": 0.6, "regions": 0.05, "outlines": 0.35}  # probabilities of figure sources
COUNTS = (0.4, 0.35, 0.25)  # probabilities of 1, 2 and 3 objects
LOOK_ALIKES = 0.25  # probability that an object is duplicated
_SMALLEST = 0.005  # minimum area, relative to the frame, of an enlarged cut-out; else drawn again
_TRIES = 4
_CALMER = 8  # maximum number of times that a camera's motion is reduced
ANCHORED = 0.6  # probability that a figure cut by its photo's border is placed at the frame's
CAMOUFLAGE = 0.05  # probability that an outline is filled from the background photo

Box = tuple[NDArray[np.float64], NDArray[np.float64]]  # lowest and highest x, y


@dataclass(frozen=True)
class Difficulty:
    """Amounts of motion and effects in a clip (1 is typical), and probabilities in 0..1."""

    steps: int  # maximum number of frame intervals between two frames of the clip
    motion: float
    growth: float
    deformation: float
    camera: float
    leaving: float  # probability that an object leaves the frame and returns
    distractors: float  # probability of one
    occluders: float  # likewise
    effects: Effects


def difficulty_at(level: float) -> Difficulty:
    """Difficulty at `level` 0 (calm) to 1 (hard)."""
    return Difficulty(
        steps=3 + round(9 * level),
        motion=0.8 + 1.0 * level,
        growth=1.0 + 1.5 * level,
        deformation=0.8 + 0.8 * level,
        camera=0.7 + 1.0 * level,
        leaving=0.05 + 0.25 * level,
        distractors=0.25 + 0.25 * level,
        occluders=0.1 + 0.3 * level,
        effects=Effects(
            shadow=0.4, blur=0.4 + 0.4 * level, light=0.2, drift=0.1 + 0.2 * level,
            noise=4.0 + 4.0 * level, jpeg=(60 - round(30 * level), 95), focus=0.4,
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Frame and background that figures are placed on."""

    frame: Size  # (height, width)
    photo: Pixels  # [h, w, 3], the background
    colour: NDArray[np.float64]  # [3], the background's mean


def draw_photo_scene(
    rng: np.random.Generator, library: PhotoLibrary, frame: Size, times: Sequence[int],
    difficulty: Difficulty, labelled: bool,
) -> Scene:  # fmt: skip
    """Draw a scene for frames of size `frame` (height, width) at `times`.

    labelled  all moving figures are annotated, and the background is a photo without objects in its
              mask
    """
    photo = library.image(library.draw_bare(rng) if labelled else library.draw(rng))
    camera = draw_camera(rng, frame, difficulty.camera)
    camera, seen = _within(photo, camera, frame, times)
    sheet, to_backdrop = _draw_backdrop(rng, photo, seen)
    place = Place(frame, photo, photo[::4, ::4].mean(axis=(0, 1)))

    cast: list[Actor] = []

    def enter(figure: Figure, label: int, nearness: float = OBJECTS) -> None:
        cast.append(_actor(rng, frame, difficulty, figure, label, nearness))

    count = 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    figures = [_draw_figure(rng, library, place) for _ in range(count)]
    for number, figure in enumerate(figures):
        enter(figure, number + 1)
    if rng.random() < LOOK_ALIKES:
        known = labelled or rng.random() < 0.5
        enter(_varied(rng, figures[int(rng.integers(count))]), count + 1 if known else 0)
    if not labelled and rng.random() < difficulty.distractors:
        enter(_draw_figure(rng, library, place), 0)
    if not labelled and rng.random() < difficulty.occluders:
        enter(_draw_figure(rng, library, place), 0, FOREGROUND)
    order = rng.permutation(len(cast))
    cast = sorted((cast[i] for i in order), key=lambda actor: actor.nearness)
    look = _draw_look(rng, frame, difficulty.effects)
    screen = Window(0, 0, frame[1], frame[0])
    return Scene(screen, sheet, to_backdrop, camera, tuple(cast), look)


def _draw_look(rng: np.random.Generator, frame: Size, limits: Effects) -> Look:
    """Draw the image effects; barely visible ones are left out for speed."""
    look = draw_look(rng, frame, limits)
    return replace(
        look,
        noise=look.noise if look.noise > 0.7 else 0.0,
        light=look.light if rng.random() < 0.5 else None,
        quality=look.quality if rng.random() < 0.7 else None,
    )


def _within(photo: Pixels, camera: Camera, frame: Size, times: Sequence[int]) -> tuple[Camera, Box]:
    """Reduce the camera's motion until the photo covers its view without too much enlargement.

    Returns  the camera, and the box of its view over `times`
    """
    screen = corners((0, 0), (frame[1], frame[0]))
    largest = np.maximum(np.array(photo.shape[1::-1]) * ENLARGED, 1.1 * screen[2])
    for _ in range(_CALMER):
        views = [invert(camera.matrix(time, BACKGROUND)) for time in times]
        points = np.concatenate([transform(view, screen) for view in views])
        low, high = points.min(axis=0), points.max(axis=0)
        if (high - low <= largest).all():
            break
        path = replace(camera.path, amplitude=camera.path.amplitude * 0.6)
        camera = replace(camera, path=path)
    return camera, (low, high)


def _draw_backdrop(rng: np.random.Generator, photo: Pixels, seen: Box) -> tuple[Pixels, Matrix]:
    """Fit the photo to the visible box `seen`; returns the backdrop and the map from world to its
    pixels."""
    if rng.random() < 0.5:
        photo = np.ascontiguousarray(photo[:, ::-1])
    low, extent = seen[0], seen[1] - seen[0]
    whole = np.array(photo.shape[1::-1], np.float64)
    covers = float((whole / extent).min())
    zoom = min(max(covers * rng.uniform(0.6, 1.0), 1 / ENLARGED), covers)
    if zoom > 1.2:
        size = np.ceil(whole / zoom).astype(int)
        photo = np.asarray(cv2.resize(photo, size.tolist(), interpolation=cv2.INTER_AREA), np.uint8)
        whole, zoom = size.astype(np.float64), 1.0
    start = (whole - zoom * extent) * rng.random(2)
    return photo, translate(start) @ scale(np.full(2, zoom)) @ translate(-low)


def _draw_figure(rng: np.random.Generator, library: PhotoLibrary, place: Place) -> Figure:
    """Draw a figure, scaled to its size in the frame."""
    pixels = place.frame[0] * place.frame[1]
    area = pixels * float(np.exp(rng.uniform(*np.log(SIZE))))
    for _ in range(_TRIES):
        figure = _raw_figure(rng, library, place, area)
        if figure.area * ENLARGED**2 >= _SMALLEST * pixels:
            break
    longest = 1.1 * max(place.frame) / max(figure.alpha.shape)
    figure = figure.scaled(float(min(np.sqrt(area / max(figure.area, 1)), ENLARGED, longest)))
    if rng.random() < 0.5:
        figure = figure.flipped()
    if rng.random() < 0.5:  # match the background's colours
        own = figure.sheet[figure.alpha > 127]
        if len(own):
            gains = ((place.colour + 20) / (own.mean(axis=0) + 20)) ** rng.uniform(0, 0.6)
            figure = figure.lit(np.clip(gains, 0.5, 2))
    return figure.softened(float(rng.uniform(0.5, 1.1)))


def _raw_figure(
    rng: np.random.Generator, library: PhotoLibrary, place: Place, area: float
) -> Figure:
    kinds: dict[str, Sized] = {
        "objects": library.objects, "regions": library.regions, "outlines": library.photos,
    }  # fmt: skip
    name = draw_kind(rng, {name: share for name, share in KINDS.items() if len(kinds[name])})
    if name == "outlines":
        same = rng.random() < CAMOUFLAGE
        return draw_outline(rng, place.photo if same else library.image(library.draw(rng)), area)
    cutouts = library.objects if name == "objects" else library.regions
    return cut_out(library, cutouts.draw(rng))


def _varied(rng: np.random.Generator, figure: Figure) -> Figure:
    """A look-alike of the figure: rescaled, perhaps mirrored or recoloured."""
    twin = figure.scaled(float(np.exp(rng.normal(0, 0.15))))
    if rng.random() < 0.5:
        twin = twin.flipped()
    return twin.lit(np.exp(rng.normal(0, rng.choice([0.0, 0.05, 0.2]), 3)))


def _actor(
    rng: np.random.Generator, frame: Size, difficulty: Difficulty, figure: Figure, label: int,
    nearness: float,
) -> Actor:  # fmt: skip
    """Make an actor of a figure, with a position and motion."""
    glow = draw_wander(rng, 0.15 * difficulty.growth, 0.006 * difficulty.growth, 1)
    part, size = figure.part(rng, glow)
    path = draw_trajectory(
        rng, frame, size, difficulty.motion, difficulty.leaving, difficulty.growth
    )
    extent = np.array(frame[::-1], np.float64)
    home = extent * rng.uniform(0.1, 0.9, 2)
    angle = rng.uniform(-np.pi, np.pi) if rng.random() < 0.12 else rng.normal(0, 0.2)
    if figure.cut.any() and rng.random() < ANCHORED:
        # The edge cut by the photo's border is aligned with the frame's border.
        angle = rng.normal(0, 0.05)
        beyond = rng.uniform(0.0, 0.25, 2) * figure.half
        low, high = figure.half - beyond, extent - figure.half + beyond
        home = np.where(figure.cut[:, 1], high, np.where(figure.cut[:, 0], low, home))
    bending = draw_bending(rng, difficulty.deformation)
    return Actor(label, (part,), path.moved(home, float(angle)), bending, nearness)


def keep_seen(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Remove objects from masks [T, H, W] that have only a few pixels in every frame."""
    least = max(20, masks[0].size // 1000)
    counts = np.stack([count_ids(mask) for mask in masks])
    seen = counts.max(axis=0) >= least
    if seen[counts.any(axis=0)].all():
        return masks
    return np.where(seen, np.arange(256), 0).astype(np.uint8)[masks]
