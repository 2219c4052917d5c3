"""Masks from prompts by GrabCut (Rother et al., SIGGRAPH 2004), OpenCV's implementation."""

from __future__ import annotations

import cv2
import numpy as np

from .hints import BACKGROUND, OBJECT, Hints, Pixels

ROUNDS = 5
DISC = 3  # radius of a point in pixels of the working size
SPREAD = 0.12  # radius of probable foreground around points / short side
SMALL = 32  # pixels: no downsampling if the box's or frame's short side is below this
LEAST = 5  # minimum pixels per class: components of OpenCV's mixtures


def grabcut(frame: np.ndarray, hints: Hints) -> Pixels:
    """Mask uint8 [H, W], 0 or 1, computed at half size except for small objects.

    frame  uint8 [H, W, 3] RGB

    Outside the box, only pixels marked as object are foreground. If foreground or background have
    fewer than LEAST pixels, no colour model can be fitted and the initial trimap is returned.
    """
    height, width = hints.size
    shortest = min(hints.size if hints.box is None else hints.box[2:])
    factor = 1 if shortest < SMALL else 2
    small = (-(-height // factor), -(-width // factor))
    plan = _plan(hints, small, factor)
    inside = np.isin(plan, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if LEAST <= np.count_nonzero(inside) <= inside.size - LEAST:
        shrunk = cv2.resize(frame, small[::-1], interpolation=cv2.INTER_AREA)
        cv2.setRNGSeed(0)  # its initial clusters are random
        colours = np.ascontiguousarray(shrunk[..., ::-1])
        background, objects = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(colours, plan, (0, 0, 0, 0), background, objects, ROUNDS, cv2.GC_INIT_WITH_MASK)
        inside = np.isin(plan, (cv2.GC_FGD, cv2.GC_PR_FGD))
    whole = cv2.resize(inside.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(whole >= 0.5, np.uint8)


def _plan(hints: Hints, small: tuple[int, int], factor: int) -> Pixels:
    """Initial trimap [h, w] of GrabCut's four values: the hints, and a guess for the rest."""
    plan = np.full(small, cv2.GC_PR_BGD, np.uint8)
    if hints.previous is not None:
        shrunk = cv2.resize(hints.previous, small[::-1], interpolation=cv2.INTER_AREA)
        plan[shrunk > 0] = cv2.GC_PR_FGD
    elif hints.box is not None:
        plan[:] = cv2.GC_PR_FGD
    else:
        reach = max(DISC + 1, round(SPREAD * min(small)))
        for x, y, positive in hints.points:
            if positive:
                cv2.circle(plan, (x // factor, y // factor), reach, cv2.GC_PR_FGD, cv2.FILLED)
    if hints.box is not None:
        x, y, wide, high = hints.box
        outside = np.ones(small, bool)
        rows = slice(y // factor, -(-(y + high) // factor))
        outside[rows, x // factor : -(-(x + wide) // factor)] = False
        plan[outside] = cv2.GC_BGD
    if hints.scribbles is not None:
        for mark, value in ((OBJECT, cv2.GC_FGD), (BACKGROUND, cv2.GC_BGD)):
            marked = np.where(hints.scribbles == mark, np.uint8(255), np.uint8(0))
            plan[cv2.resize(marked, small[::-1], interpolation=cv2.INTER_AREA) > 0] = value
    for x, y, positive in hints.points:
        value = cv2.GC_FGD if positive else cv2.GC_BGD
        cv2.circle(plan, (x // factor, y // factor), DISC, value, cv2.FILLED)
    return plan
