"""What a clip of cut-outs shows: a photo as background, and who moves in front of it."""

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
from .library import PhotoLibrary, Pixels

SIZE = (0.025, 0.35)  # area of an object over that of the frame, about even on a log scale
KINDS = {"objects": 0.6, "regions": 0.05, "outlines": 0.35}  # where objects come from
COUNTS = (0.4, 0.35, 0.25)  # chances of 1, 2 and 3 objects
LOOK_ALIKES = 0.25  # chance that an object comes twice
_SMALLEST = 0.005  # of the frame: a cut-out that even enlarged is less is drawn again
_TRIES = 4
_CALMER = 8  # times that a camera may be calmed
ANCHORED = 0.6  # chance that what the border of its photo cuts is cut by the frame's
CAMOUFLAGE = 0.05  # chance that an outline is filled with the background's photo

Box = tuple[NDArray[np.float64], NDArray[np.float64]]  # lowest and highest x, y


@dataclass(frozen=True)
class Difficulty:
    """How much happens in a clip; 1 is usual, chances are 0..1."""

    steps: int  # frame intervals between two frames of the clip, at most
    motion: float
    growth: float
    deformation: float
    camera: float
    leaving: float  # chance that an object leaves the frame and returns
    distractors: float  # chance of one
    occluders: float
    effects: Effects


def difficulty_at(level: float) -> Difficulty:
    """From calm clips (`level` 0) to everything at once (1)."""
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
    """Where figures go."""

    frame: Size  # (height, width)
    photo: Pixels  # the background
    colour: NDArray[np.float64]  # [3] its mean


def draw_photo_scene(
    rng: np.random.Generator, library: PhotoLibrary, frame: Size, times: Sequence[int],
    difficulty: Difficulty, labelled: bool,
) -> Scene:  # fmt: skip
    """A scene that is seen at `times`, in frames of size `frame` (height, width).

    labelled  whether all that moves by itself is an object; the background then is a photo in which
              no mask shows one
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
    """Light, lens, sensor and codec; what would hardly show is left out, which is faster."""
    look = draw_look(rng, frame, limits)
    return replace(
        look,
        noise=look.noise if look.noise > 0.7 else 0.0,
        light=look.light if rng.random() < 0.5 else None,
        quality=look.quality if rng.random() < 0.7 else None,
    )


def _within(photo: Pixels, camera: Camera, frame: Size, times: Sequence[int]) -> tuple[Camera, Box]:
    """The camera, calmed until the photo covers what it sees without being enlarged too far, and
    the box of what it sees."""
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
    """The photo as background, and the map from the world to its pixels: what is `seen` lies on
    it."""
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
    """A cut-out in the size in which it is shown."""
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
    if rng.random() < 0.5:  # in the light of the place
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
    names = [name for name in KINDS if len(kinds[name])]
    chances = np.array([KINDS[name] for name in names])
    name = names[int(rng.choice(len(names), p=chances / chances.sum()))]
    if name == "outlines":
        same = rng.random() < CAMOUFLAGE
        return draw_outline(rng, place.photo if same else library.image(library.draw(rng)), area)
    cutouts = library.objects if name == "objects" else library.regions
    return cut_out(library, cutouts.draw(rng))


def _varied(rng: np.random.Generator, figure: Figure) -> Figure:
    """The figure again, nearly: in another size, often mirrored or in another light."""
    twin = figure.scaled(float(np.exp(rng.normal(0, 0.15))))
    if rng.random() < 0.5:
        twin = twin.flipped()
    return twin.lit(np.exp(rng.normal(0, rng.choice([0.0, 0.05, 0.2]), 3)))


def _actor(
    rng: np.random.Generator, frame: Size, difficulty: Difficulty, figure: Figure, label: int,
    nearness: float,
) -> Actor:  # fmt: skip
    """The figure at a place of its own, and how it moves."""
    glow = draw_wander(rng, 0.15 * difficulty.growth, 0.006 * difficulty.growth, 1)
    part, size = figure.part(rng, glow)
    path = draw_trajectory(
        rng, frame, size, difficulty.motion, difficulty.leaving, difficulty.growth
    )
    extent = np.array(frame[::-1], np.float64)
    home = extent * rng.uniform(0.1, 0.9, 2)
    angle = rng.uniform(-np.pi, np.pi) if rng.random() < 0.12 else rng.normal(0, 0.2)
    if figure.cut.any() and rng.random() < ANCHORED:
        # Its straight edge comes to lie where the frame ends, as it did in its photo.
        angle = rng.normal(0, 0.05)
        beyond = rng.uniform(0.0, 0.25, 2) * figure.half
        low, high = figure.half - beyond, extent - figure.half + beyond
        home = np.where(figure.cut[:, 1], high, np.where(figure.cut[:, 0], low, home))
    bending = draw_bending(rng, difficulty.deformation)
    return Actor(label, (part,), path.moved(home, float(angle)), bending, nearness)


def keep_seen(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The masks without objects of which no frame shows more than a few pixels."""
    least = max(20, masks[0].size // 1000)
    counts = np.stack([count_ids(mask) for mask in masks])
    seen = counts.max(axis=0) >= least
    if seen[counts.any(axis=0)].all():
        return masks
    return np.where(seen, np.arange(256), 0).astype(np.uint8)[masks]
