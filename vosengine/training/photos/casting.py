"""What a clip of cut-outs shows: a photo as background, and who moves in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ...types import Size
from ..synthetic.actors import Actor
from ..synthetic.camera import BACKGROUND, FOREGROUND, OBJECTS, Camera, draw_camera
from ..synthetic.config import Effects
from ..synthetic.effects import draw_look
from ..synthetic.geometry import Matrix, Window, corners, invert, scale, transform, translate
from ..synthetic.motion import draw_bending, draw_trajectory
from ..synthetic.scene import Scene
from .cutouts import ENLARGED, Figure, cut_out, draw_outline
from .library import PhotoLibrary, Pixels

SIZE = (0.02, 0.3)  # area of an object over that of the frame, about even on a log scale
KINDS = {"objects": 0.5, "regions": 0.2, "outlines": 0.3}  # where objects come from
COUNTS = (0.4, 0.35, 0.25)  # chances of 1, 2 and 3 objects
LOOK_ALIKES = 0.25  # chance that an object comes twice
_SMALLEST = 0.006  # of the frame: a cut-out that even enlarged is less is drawn again
_TRIES = 4


@dataclass(frozen=True)
class Difficulty:
    """How much happens in a clip, 0 (calm) to 1 (everything at once)."""

    level: float

    @property
    def steps(self) -> int:
        """Frame intervals between two frames of the clip, at most."""
        return 2 + round(4 * self.level)

    @property
    def motion(self) -> float:
        return 0.8 + 1.0 * self.level

    @property
    def growth(self) -> float:
        return 1.0 + 1.5 * self.level

    @property
    def deformation(self) -> float:
        return 0.8 + 0.8 * self.level

    @property
    def camera(self) -> float:
        return 0.7 + 1.0 * self.level

    @property
    def leaving(self) -> float:
        return 0.05 + 0.25 * self.level

    @property
    def distractors(self) -> float:
        return 0.25 + 0.25 * self.level

    @property
    def occluders(self) -> float:
        return 0.1 + 0.3 * self.level

    @property
    def effects(self) -> Effects:
        return Effects(
            shadow=0.4, blur=0.4 + 0.4 * self.level, light=0.2, drift=0.1 + 0.2 * self.level,
            noise=4.0 + 4.0 * self.level, jpeg=(60 - round(30 * self.level), 95), focus=0.4,
        )  # fmt: skip


def draw_photo_scene(
    rng: np.random.Generator, library: PhotoLibrary, frame: Size, times: Sequence[int],
    difficulty: Difficulty, labelled: bool,
) -> Scene:  # fmt: skip
    """A scene that is seen at `times`, in frames of size `frame` (height, width).

    labelled  whether all that moves by itself is an object
    """
    camera = draw_camera(rng, frame, difficulty.camera)
    photo, to_backdrop = _draw_backdrop(rng, library, camera, frame, times)
    mean = photo.mean(axis=(0, 1))
    figures = _draw_figures(rng, library, frame, mean)
    cast = [_actor(rng, frame, difficulty, f, n + 1, OBJECTS) for n, f in enumerate(figures)]
    count = len(cast)
    if rng.random() < LOOK_ALIKES:
        twin = _varied(rng, figures[int(rng.integers(count))])
        label = count + 1 if labelled or rng.random() < 0.5 else 0
        cast.append(_actor(rng, frame, difficulty, twin, label, OBJECTS))
    if not labelled:
        if rng.random() < difficulty.distractors:
            other = _draw_figure(rng, library, frame, mean)
            cast.append(_actor(rng, frame, difficulty, other, 0, OBJECTS))
        if rng.random() < difficulty.occluders:
            other = _draw_figure(rng, library, frame, mean)
            cast.append(_actor(rng, frame, difficulty, other, 0, FOREGROUND))
    order = rng.permutation(len(cast))
    cast = sorted((cast[i] for i in order), key=lambda actor: actor.nearness)
    look = draw_look(rng, frame, difficulty.effects)
    screen = Window(0, 0, frame[1], frame[0])
    return Scene(screen, photo, to_backdrop, camera, tuple(cast), look)


def _draw_backdrop(
    rng: np.random.Generator, library: PhotoLibrary, camera: Camera, frame: Size,
    times: Sequence[int],
) -> tuple[Pixels, Matrix]:  # fmt: skip
    """A photo, and the map from the world to its pixels; it covers all that the camera sees if it
    can without being enlarged too far."""
    photo = library.image(int(rng.integers(len(library.photos))))
    if rng.random() < 0.5:
        photo = np.ascontiguousarray(photo[:, ::-1])
    screen = corners((0, 0), (frame[1], frame[0]))
    seen = np.concatenate([transform(invert(camera.matrix(t, BACKGROUND)), screen) for t in times])
    low, high = seen.min(axis=0), seen.max(axis=0)
    whole = np.array(photo.shape[1::-1], np.float64)
    zoom = float((whole / (high - low)).min()) * rng.uniform(0.6, 1.0)
    zoom = max(zoom, 1 / ENLARGED)
    if zoom > 1.2:
        size = np.ceil(whole / zoom).astype(int)
        photo = np.asarray(cv2.resize(photo, size.tolist(), interpolation=cv2.INTER_AREA), np.uint8)
        whole, zoom = size.astype(np.float64), 1.0
    room = whole - zoom * (high - low)
    start = np.where(room > 0, room * rng.random(2), room / 2)
    return photo, translate(start) @ scale(np.full(2, zoom)) @ translate(-low)


def _draw_figures(
    rng: np.random.Generator, library: PhotoLibrary, frame: Size, mean: NDArray[np.float64]
) -> list[Figure]:
    count = 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    return [_draw_figure(rng, library, frame, mean) for _ in range(count)]


def _draw_figure(
    rng: np.random.Generator, library: PhotoLibrary, frame: Size, mean: NDArray[np.float64]
) -> Figure:
    """A cut-out in the size in which it is shown; `mean` [3] is the background's colour."""
    pixels = frame[0] * frame[1]
    area = pixels * float(np.exp(rng.uniform(*np.log(SIZE))))
    for _ in range(_TRIES):
        figure = _raw_figure(rng, library, area)
        if figure.area * ENLARGED**2 >= _SMALLEST * pixels:
            break
    longest = 1.1 * max(frame) / max(figure.alpha.shape)
    figure = figure.scaled(float(min(np.sqrt(area / max(figure.area, 1)), ENLARGED, longest)))
    if rng.random() < 0.5:
        figure = figure.flipped()
    if rng.random() < 0.5:  # the light of the place
        own = figure.sheet[figure.alpha > 127]
        gains = ((mean + 20) / (own.mean(axis=0) + 20)) ** rng.uniform(0, 0.6) if len(own) else 1
        figure = figure.lit(np.clip(gains * np.ones(3), 0.5, 2))
    return figure.softened(float(rng.uniform(0.5, 1.1)))


def _raw_figure(rng: np.random.Generator, library: PhotoLibrary, area: float) -> Figure:
    sources = {"objects": library.objects, "regions": library.regions, "outlines": library.photos}
    kinds = [kind for kind in KINDS if sources[kind]]
    chances = np.array([KINDS[kind] for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=chances / chances.sum()))]
    if kind == "outlines":
        image = library.image(int(rng.integers(len(library.photos))))
        return draw_outline(rng, image, area)
    cutouts = library.objects if kind == "objects" else library.regions
    return cut_out(library, cutouts[int(rng.integers(len(cutouts)))])


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
    part, size = figure.part()
    path = draw_trajectory(
        rng, frame, size, difficulty.motion, difficulty.leaving, difficulty.growth
    )
    home = np.array([frame[1], frame[0]]) * rng.uniform(0.1, 0.9, 2)
    angle = rng.uniform(-np.pi, np.pi) if rng.random() < 0.12 else rng.normal(0, 0.2)
    bending = draw_bending(rng, difficulty.deformation)
    return Actor(label, (part,), path.moved(home, float(angle)), bending, nearness)


def keep_seen(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The masks without objects of which no frame shows more than a few pixels."""
    least = max(20, masks[0].size // 1000)
    counts = np.stack([np.bincount(mask.ravel(), minlength=256) for mask in masks])
    table = np.where(counts.max(axis=0) >= least, np.arange(256), 0).astype(np.uint8)
    return table[masks]
