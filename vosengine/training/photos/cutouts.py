"""Cut-outs: figures made from a photo and its mask, its regions or a drawn outline."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ..synthetic.actors import Part
from ..synthetic.geometry import scale, translate
from ..synthetic.motion import Wander, draw_swing, draw_wander
from ..synthetic.shapes import CONTOURS, Contour, draw_figure, rasterise
from .library import Cutout, PhotoLibrary, Pixels

RIM = 4  # margin in pixels around a figure, for interpolation and soft edges
ENLARGED = 2.0  # maximum enlargement of a cut-out; more is visible as blur
_CUT = 0.3  # a cut-out counts as cut where this share of its side is at the photo's border
_SHAPES = tuple(name for name in CONTOURS if name != "stick")


@dataclass(frozen=True)
class Figure:
    """A piece of a photo and the shape cut out of it."""

    sheet: Pixels  # [h, w, 3]
    alpha: Pixels  # [h, w] coverage 0..255; 0 along the edges
    cut: NDArray[np.bool_]  # [2, 2] (x, y) x (low, high side): cut by the photo's border there
    slides: bool = False  # the texture may slide across the shape

    @property
    def half(self) -> NDArray[np.float64]:
        """Half extent [2] (x, y) in pixels."""
        return np.array(self.alpha.shape[::-1]) / 2 - RIM

    @property
    def area(self) -> float:
        """Area in pixels."""
        return float(self.alpha.sum()) / 255

    def scaled(self, factor: float) -> Figure:
        """Resize by `factor`; unchanged if it is within 5% of 1."""
        if factor > 0.95 and factor < 1.05:
            return self
        height, width = self.alpha.shape
        size = (max(2 * RIM, round(width * factor)), max(2 * RIM, round(height * factor)))
        mode = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        return replace(
            self,
            sheet=np.asarray(cv2.resize(self.sheet, size, interpolation=mode), np.uint8),
            alpha=np.asarray(cv2.resize(self.alpha, size, interpolation=mode), np.uint8),
        )

    def flipped(self) -> Figure:
        """Mirror horizontally."""
        cut = np.stack([self.cut[0, ::-1], self.cut[1]])
        return replace(
            self, sheet=self.sheet[:, ::-1].copy(), alpha=self.alpha[:, ::-1].copy(), cut=cut
        )

    def softened(self, blur: float) -> Figure:
        """Blur the edge like a lens; `blur` is the standard deviation in pixels."""
        alpha = np.asarray(cv2.GaussianBlur(self.alpha, (0, 0), blur), np.uint8)
        return replace(self, alpha=alpha)

    def lit(self, gains: NDArray[np.float64]) -> Figure:
        """Multiply the colours by `gains` [3]."""
        levels = np.arange(256)[:, None] * gains
        table = np.clip(levels + 0.5, 0, 255).astype(np.uint8)
        return replace(self, sheet=np.asarray(cv2.LUT(self.sheet, table[None]), np.uint8))

    def part(self, rng: np.random.Generator, glow: Wander) -> tuple[Part, float]:
        """Convert to the single part of an actor; also returns its pixels per unit of -1..1."""
        height, width = self.alpha.shape
        size = float(self.half.max())
        middle = np.array([width - 1, height - 1]) / 2
        stencil = np.dstack([self.alpha, np.full_like(self.alpha, 128)])
        to_sprite = translate(middle) @ scale(np.full(2, size))
        still = draw_swing(rng, 0.0)
        slide = draw_wander(rng, 0.2 * size, 0.01 * size, 1) if self.slides else None
        part = Part(self.sheet, stencil, to_sprite, -1, np.zeros(2), still, slide, 0.0, glow)
        return part, size


def cut_out(library: PhotoLibrary, cutout: Cutout) -> Figure:
    """Cut an object out of its photo."""
    image, labels = library.image(cutout.number), library.labels(cutout.number)
    inside = np.where(labels == cutout.label, np.uint8(255), np.uint8(0))
    x, y, width, height = cv2.boundingRect(inside)
    rows, columns = slice(y, y + height), slice(x, x + width)
    sheet = _with_rim(image, rows, columns)
    alpha = cv2.copyMakeBorder(inside[rows, columns], *(RIM,) * 4, cv2.BORDER_CONSTANT, value=0)
    # Pixels along the outline are mixed with the background: remove one.
    alpha = cv2.erode(alpha, np.ones((3, 3), np.uint8))
    return Figure(sheet, np.asarray(alpha, np.uint8), _cut_sides(inside, (width, height)))


def _cut_sides(inside: Pixels, extent: tuple[int, int]) -> NDArray[np.bool_]:
    """[2, 2] bool: the shape is cut by the photo's left, right; upper, lower border (`_CUT`)."""
    lines = ((inside[:, 0], inside[:, -1]), (inside[0], inside[-1]))
    return np.array(
        [
            [np.count_nonzero(line) > _CUT * extent[1 - axis] for line in pair]
            for axis, pair in enumerate(lines)
        ]
    )


def draw_outline(rng: np.random.Generator, image: Pixels, area: float) -> Figure:
    """Draw a random shape of about `area` pixels, filled with a piece of the photo."""
    limbs = draw_figure(rng, _SHAPES, (1, 3), 0.05)
    contours: list[tuple[Contour, ...]] = [(limb.contour, *limb.holes) for limb in limbs]
    points = np.concatenate([outer[0] for outer in contours])
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.array(image.shape[1::-1]) - 1
    size = float(min(np.sqrt(area / (0.5 * np.prod(high - low))), *(room / (high - low))))
    width, height = np.ceil((high - low) * size).astype(int) + 1
    alpha = np.zeros((height + 2 * RIM, width + 2 * RIM), np.uint8)
    for limb in contours:
        placed = [(contour - low) * size + RIM for contour in limb]
        alpha = np.maximum(alpha, rasterise(placed, *alpha.shape))
    x, y = rng.integers(0, np.maximum(1, room + 1 - (width, height))).tolist()
    sheet = _with_rim(image, slice(y, y + height), slice(x, x + width))
    return Figure(sheet, alpha, np.zeros((2, 2), bool), slides=True)


def _with_rim(image: Pixels, rows: slice, columns: slice) -> Pixels:
    """Crop a photo with a margin of RIM pixels, replicating its border."""
    ranges = (
        np.clip(np.arange(part.start - RIM, part.stop + RIM), 0, side - 1)
        for part, side in zip((rows, columns), image.shape[:2], strict=True)
    )
    return np.asarray(image[np.ix_(*ranges)], np.uint8)
