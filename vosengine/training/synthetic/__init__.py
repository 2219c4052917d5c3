"""Procedural video with exact masks: seeded clips of moving, deforming, overlapping objects.

One module per ingredient, each with a table to extend: `textures.PATTERNS`, `shapes.CONTOURS`,
`colours.ANCHORS`; then `motion` and `camera` (paths in time), `actors` (what moves), `effects`
(what the lens and the codec add) and `scene` (who is where, and in front of whom). `levels` says
how hard clips are that networks are trained on, `cache` keeps them on disk.
"""

from .clips import Clip, iterate_clip, make_clip
from .config import ClipConfig, Effects

__all__ = ["Clip", "ClipConfig", "Effects", "iterate_clip", "make_clip"]
