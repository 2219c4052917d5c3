"""Procedural video with exact masks: seeded clips of moving, deforming, overlapping objects.

`textures.PATTERNS`, `shapes.CONTOURS` and `colours.ANCHORS` are tables that can be extended.
`motion` and `camera` are paths in time, `actors` moving figures, `effects` the lens, sensor and
codec, `scene` the composition. `levels` defines the difficulty of training clips; `cache` stores
clips on disk.
"""

from .clips import Clip, iterate_clip, make_clip
from .config import ClipConfig, Effects

__all__ = ["Clip", "ClipConfig", "Effects", "iterate_clip", "make_clip"]
