"""Clip augmentation for every source: crop, scale, flip, time reversal, jitter and colour."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ..types import Size
from .object_ids import renumber
from .samples import Sample

Matrix = NDArray[np.float64]  # [2, 3], pixels of the augmented clip -> pixels of the source clip

SCALE = (0.4, 1.0)  # side of the crop, relative to the largest that fits
ASPECT = 0.2  # maximum change of the log aspect ratio
MARGIN = 0.15  # minimum distance of the anchor pixel from the crop's border, in crop sides
TRIES = 4
MOVING = 0.4  # probability that the crop moves and is scaled over the clip
JITTER = 0.5  # probability of a small random shift, rotation and scale per frame
FLIP = BACKWARDS = 0.5  # probabilities of a mirrored and of a reversed clip
GREY = 0.05  # probability of a greyscale clip
SATURATION = (0.2, 1.15)  # synthetic colours are more vivid than camera colours
SHRINK = 1.5  # beyond this reduction, area-average first, to avoid aliasing


def augment(sample: Sample, size: Size, rng: np.random.Generator) -> Sample:
    """Augment a clip at random, to `size` (height, width).

    Masks are warped with the frames; objects without pixels are dropped and ids renumbered without
    gaps. If the first frame shows an object that is not too small for the size, some of its pixels
    stay visible there. A `framed` clip of this size is not cropped.
    """
    frames, masks = sample.frames, sample.masks
    if rng.random() < BACKWARDS and masks[-1].any():
        frames, masks = frames[::-1], masks[::-1]
    if not sample.framed or masks.shape[1:] != size:
        frames, masks = _crop(frames, masks, size, rng)
    elif rng.random() < FLIP:
        frames, masks = frames[:, :, ::-1], masks[:, :, ::-1]
    recoloured = _recolour(np.ascontiguousarray(frames), rng)
    masks = renumber(np.ascontiguousarray(masks))
    return replace(sample, frames=recoloured, masks=masks)


def _crop(
    frames: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    size: Size,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    views = _views(masks, size, rng)
    out_frames = np.empty((len(frames), *size, 3), np.uint8)
    out_masks = np.empty((len(frames), *size), np.uint8)
    for time, view in enumerate(views):
        _warp(frames[time], view, out_frames[time], cv2.INTER_LINEAR)
        _warp(masks[time], view, out_masks[time], cv2.INTER_NEAREST)
    return out_frames, out_masks


def _views(masks: NDArray[np.uint8], size: Size, rng: np.random.Generator) -> list[Matrix]:
    """Draw the view (output pixels -> source pixels) of each frame."""
    length, *whole = masks.shape
    has_object = masks[0].any()
    flip = rng.random() < FLIP
    for _ in range(TRIES):
        anchor = _pixel_of_an_object(masks, rng)
        ends = [_draw_box((whole[0], whole[1]), size, anchor, rng)]
        if rng.random() < MOVING:
            ends.append(_draw_box((whole[0], whole[1]), size, anchor, rng))
        share = np.linspace(0, 1, length)[:, None]
        boxes = ends[0] * (1 - share) + ends[-1] * share
        views = [_view(box, size, flip) for box in boxes]
        if rng.random() < JITTER:
            views = [_jittered(view, size, rng) for view in views]
        first = np.empty(size, np.uint8)
        _warp(masks[0], views[0], first, cv2.INTER_NEAREST)
        if first.any() or not has_object:
            return views
    return [_view(np.array([0.0, 0.0, whole[1], whole[0]]), size, flip)] * length


def _pixel_of_an_object(
    masks: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[float, float] | None:
    """x, y of a random pixel of a random object in the first frame; None without objects."""
    present = np.flatnonzero(np.bincount(masks[0].ravel(), minlength=256)[1:]) + 1
    if not len(present):
        return None
    pixels = np.flatnonzero(masks[0] == rng.choice(present))
    y, x = divmod(int(rng.choice(pixels)), masks.shape[2])
    return x + 0.5, y + 0.5


def _draw_box(
    whole: Size,
    size: Size,
    anchor: tuple[float, float] | None,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Draw a crop (left, top, width, height) of frames of size `whole` (height, width)."""
    height, width = whole
    unit = min(height / size[0], width / size[1])
    scale = unit * np.exp(rng.uniform(np.log(SCALE[0]), np.log(SCALE[1])))
    stretch = np.exp(rng.uniform(-ASPECT, ASPECT) / 2)
    sides = np.minimum((size[1] * scale * stretch, size[0] * scale / stretch), (width, height))
    room = (width, height) - sides
    low, high = np.zeros(2), room
    if anchor is not None:
        low = np.clip(anchor - (1 - MARGIN) * sides, 0, room)
        high = np.clip(anchor - MARGIN * sides, 0, room)
    return np.concatenate((rng.uniform(low, high), sides))


def _view(box: NDArray[np.float64], size: Size, flip: bool) -> Matrix:
    """Affine map of pixels of `size` (height, width) to the box; pixel centres are integers."""
    x, y, width, height = box
    by_x, by_y = width / size[1], height / size[0]
    matrix = np.array([[by_x, 0, x + 0.5 * by_x - 0.5], [0, by_y, y + 0.5 * by_y - 0.5]])
    if flip:
        matrix[0] = (-by_x, 0, x + width - 0.5 * by_x - 0.5)
    return matrix


def _jittered(view: Matrix, size: Size, rng: np.random.Generator) -> Matrix:
    """Add a small random rotation, scale and shift about the image centre to the view."""
    angle, growth = rng.normal(0, 0.02), np.exp(rng.normal(0, 0.02))
    shift = rng.normal(0, 0.01, 2) * (size[1], size[0])
    centre = (np.array([size[1], size[0]]) - 1) / 2
    turn = growth * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    motion = np.column_stack((turn, centre + shift - turn @ centre))
    linear = view[:, :2]
    return np.column_stack((linear @ turn, linear @ motion[:, 2] + view[:, 2]))


def _warp(
    image: NDArray[np.uint8], view: Matrix, out: NDArray[np.uint8], interpolation: int
) -> None:
    """Warp the image by `view` into `out`, reflecting at the border."""
    reduction = float(np.sqrt(abs(np.linalg.det(view[:, :2]))))
    if interpolation == cv2.INTER_LINEAR and reduction > SHRINK:
        height, width = image.shape[:2]
        small = (max(1, round(width / reduction)), max(1, round(height / reduction)))
        scale = np.array([[small[0] / width], [small[1] / height]])
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        view = view * scale
        view[:, 2:] += 0.5 * scale - 0.5
    cv2.warpAffine(
        image, view, (out.shape[1], out.shape[0]), dst=out,
        flags=interpolation | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip


def _recolour(frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random gamma, contrast, brightness, white balance, saturation and hue; the same for all
    frames."""
    shape = frames.shape
    pixels = frames.reshape(shape[0] * shape[1], shape[2], 3)
    value = np.linspace(0, 1, 256)[:, None] ** np.exp(rng.normal(0, 0.25))
    contrast, brightness = np.exp(rng.normal(0, 0.2)), rng.normal(0, 0.08)
    balance = np.exp(rng.normal(0, 0.07, 3))
    table = ((value - 0.5) * contrast + 0.5 + brightness) * balance
    table = np.clip(255 * table + 0.5, 0, 255).astype(np.uint8)
    pixels = np.asarray(cv2.LUT(pixels, table[None]), np.uint8)
    saturation = 0.0 if rng.random() < GREY else rng.uniform(*SATURATION)
    matrix = _colour_matrix(saturation, rng.normal(0, 0.12))
    return np.asarray(cv2.transform(pixels, matrix), np.uint8).reshape(shape)


_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def _colour_matrix(saturation: float, hue: float) -> NDArray[np.float64]:
    """RGB matrix [3, 3] that scales saturation and rotates the hue (radians)."""
    cos, sin = saturation * np.cos(hue), saturation * np.sin(hue)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return np.linalg.solve(_TO_YIQ, turn @ _TO_YIQ)
