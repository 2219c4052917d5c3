"""Several sources as one, and the words by which the command line names them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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

WANTED = (
    "synthetic, cache:FOLDER, paste:FOLDER, stills:FOLDER, davis:FOLDER or youtube:FOLDER, each"
    " with =WEIGHT if you like"
)


class Mixture:
    """Each clip comes from one of the sources, chosen with a chance in proportion to its weight."""

    def __init__(self, parts: list[tuple[Source, float]], seed: int) -> None:
        """Raises ConfigError without parts, or where a weight is not above 0."""
        if not parts:
            raise ConfigError("data: wanted at least one source, given none")
        for _, weight in parts:
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(f"data: wanted weights above 0, given {weight}")
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
    """What every source is asked for: (height, width) and frames of clips; objects at most; and
    whether all that looks like an object in drawn clips must be one. `view` and `length`: the size
    and frames of clips of which no crop or window is taken; None: the same."""

    size: Size
    frames: int
    seed: int
    most_objects: int = 6
    labelled: bool = False
    view: Size | None = None
    length: int | None = None


def parse_data(text: str, options: DataOptions) -> Source:
    """The source that `text` names: one, or several with commas between them.

    "synthetic", "cache:clips", "paste:photos=3,stills:photos", "davis:data/DAVIS=5,synthetic=2"; a
    weight is 1 where none is given. Raises ConfigError for other words, and what the sources raise.
    """
    parts = [_weighted(part) for part in text.split(",")]
    # Sources of one folder share what is read.
    photos = cache(lambda folder: open_photos(Path(folder), options.view or options.size))
    sources = [(_open(name, options, photos), weight) for name, weight in parts]
    return sources[0][0] if len(sources) == 1 else Mixture(sources, options.seed)


def folders_of(text: str) -> tuple[Path, ...]:
    """The folders that such a text names; other words are for `parse_data` to refuse."""
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
        return FolderSource(Path(folder), kind, options.frames, options.seed, options.most_objects)
    raise ConfigError(f"data: {name!r} is no source; wanted {WANTED}")
