"""Weighted mixture of sources, and the parser of the command line's --data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..config.checks import check
from ..errors import ConfigError
from ..types import Size
from .cached_source import CachedSource
from .folders import LAYOUTS, FolderSource
from .photos.library import PhotoLibrary, open_photos
from .photos.paste_source import PasteSource
from .photos.stills_source import StillsSource
from .samples import Sample, Source
from .streams import Stream, check_request, check_seed, generator
from .synthetic_source import SyntheticSource

MOST_OBJECTS = 6  # maximum per clip of a real video
WANTED = (
    "synthetic, cache:FOLDER, paste:FOLDER, stills:FOLDER, davis:FOLDER or youtube:FOLDER, each"
    " with =WEIGHT if you like"
)


class Mixture:
    """Source that draws each clip from one of several, with probability proportional to weight."""

    def __init__(self, parts: list[tuple[Source, float]], seed: int) -> None:
        """parts  pairs of source and weight

        Raises  ConfigError without parts, or if a weight is not above 0.
        """
        check(bool(parts), "data", "at least one source", parts)
        for _, weight in parts:
            check(math.isfinite(weight) and weight > 0, "data", "weights above 0", weight)
        self._sources = [source for source, _ in parts]
        total = sum(weight for _, weight in parts)
        self._shares = [weight / total for _, weight in parts]
        self._seed = check_seed(seed)

    def sample(self, index: int, progress: float) -> Sample:
        check_request(index, progress)
        rng = generator(Stream.MIXTURE, self._seed, index)
        chosen = int(rng.choice(len(self._sources), p=self._shares))
        return self._sources[chosen].sample(index, progress)


@dataclass(frozen=True)
class DataOptions:
    """Options of all sources.

    size          (height, width) of clips
    frames        frames per clip
    labelled      every object of procedural clips is annotated (no distractors)
    view, length  size and frames of clips that are not cropped or cut to a window; None: as `size`
                  and `frames`
    """

    size: Size
    frames: int
    seed: int
    labelled: bool = False
    view: Size | None = None
    length: int | None = None


def parse_data(text: str, options: DataOptions) -> Source:
    """Parse a source specification: one source, or several separated by commas.

    Examples: "synthetic", "cache:clips", "paste:photos=3,stills:photos",
    "davis:data/DAVIS=5,synthetic=2". The default weight is 1.

    Raises  ConfigError for an invalid specification, and the errors of the sources.
    """
    parts = [_weighted(part) for part in text.split(",")]
    # Sources of the same folder share one library.
    photos = cache(lambda folder: open_photos(Path(folder), options.view or options.size))
    sources = [(_open(name, options, photos), weight) for name, weight in parts]
    return sources[0][0] if len(sources) == 1 else Mixture(sources, options.seed)


def folders_of(text: str) -> tuple[Path, ...]:
    """Folders named in a source specification; `parse_data` checks its syntax."""
    names = (_weighted(part)[0].partition(":")[2] for part in text.split(","))
    return tuple(Path(name) for name in names if name)


def _weighted(part: str) -> tuple[str, float]:
    name, equals, weight = part.strip().rpartition("=")
    if not equals:
        return part.strip(), 1.0
    try:
        value = float(weight)
    except ValueError as error:
        raise ConfigError(f"data: {part!r}: {weight!r} is no weight; wanted {WANTED}") from error
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"data: {part!r}: wanted a weight above 0, given {weight}")
    return name.strip(), value


def _open(name: str, options: DataOptions, photos: Callable[[str], PhotoLibrary]) -> Source:
    kind, _, folder = name.partition(":")
    if name == "synthetic":
        return SyntheticSource(options.frames, options.size, options.seed, options.labelled)
    if folder and kind == "cache":
        return CachedSource(Path(folder), options.seed, options.labelled)
    if folder and kind in ("paste", "stills"):
        source = PasteSource if kind == "paste" else StillsSource
        library = photos(folder)
        size, frames = options.view or options.size, options.length or options.frames
        return source(library, frames, size, options.seed, options.labelled)
    if folder and kind in LAYOUTS:
        return FolderSource(Path(folder), kind, options.frames, options.seed, MOST_OBJECTS)
    raise ConfigError(f"data: {name!r} is no source; wanted {WANTED}")
