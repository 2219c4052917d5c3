"""Caches of synthetic clips: written atomically, resumed to the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vosengine.errors import ConfigError, InputError, OutputError
from vosengine.training.cached_source import CachedSource
from vosengine.training.streams import clip_seed
from vosengine.training.synthetic import Clip
from vosengine.training.synthetic import cache as cache_module
from vosengine.training.synthetic.cache import write_cache
from vosengine.training.synthetic.levels import make_level_clip

SIZE = (48, 64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "clips"
    write_cache(folder, 10, 3, SIZE, seed=7, shard=4)
    return folder


@pytest.mark.slow
def test_a_cache_holds_the_clips_of_its_seed(cache: Path) -> None:
    source = CachedSource(cache, 0)
    for index in range(4):
        clip = source.sample(index, 1.0)
        number = int(clip.origin.split()[-1])
        wanted = make_level_clip(number % 4, clip_seed(7, number), 3, SIZE)
        assert np.array_equal(clip.frames, wanted.frames)
        assert np.array_equal(clip.masks, wanted.masks)
    assert len(np.load(cache / "masks-0002.npy")) == 2  # the rest of 10 in shards of 4
    assert sorted(p.name for p in cache.iterdir())[0] == "cache.json"  # nothing hidden is left


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.mark.parametrize("stop", range(1, 8))
def test_an_interrupted_cache_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Stopped at each rename in turn: description, then masks and frames of three shards."""
    drawn = Counter[int]()

    def draw(level: int, seed: int, frames: int, size: tuple[int, int], _: bool) -> Clip:
        drawn[seed] += 1
        rng = np.random.default_rng((seed, level))
        clip, masks = (rng.integers(0, 4, (frames, *size, *c), np.uint8) for c in ((3,), ()))
        return Clip(clip, masks, seed)

    def write(name: str) -> Path:
        write_cache(tmp_path / name, 10, 3, (32, 32), seed=7, shard=4)
        return tmp_path / name

    monkeypatch.setattr(cache_module, "make_level_clip", draw)
    monkeypatch.setattr(cache_module, "check_levels", lambda *_: None)
    wanted = bytes_of(write("whole"))
    assert len(wanted) == 7 and set(drawn.values()) == {1}
    drawn.clear()
    names: list[Path] = []
    replace = os.replace

    def stopping(source: Path, target: Path) -> None:
        names.append(target)
        if len(names) == stop:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            write("cut")
    assert set(bytes_of(tmp_path / "cut")) == {path.name for path in names[:-1]}
    with pytest.raises(InputError, match=r"cannot be read|holds no cache"):
        CachedSource(tmp_path / "cut", 0)
    before = sum(drawn.values())
    assert bytes_of(write("cut")) == wanted
    whole = max(0, stop - 2) // 2  # shards
    assert sum(drawn.values()) - before == 10 - 4 * whole
    write("cut")
    assert sum(drawn.values()) - before == 10 - 4 * whole  # nothing is left to draw


@pytest.mark.slow
def test_worker_processes_write_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    write_cache(tmp_path, 10, 3, SIZE, workers=2, seed=7, shard=4)
    assert bytes_of(tmp_path) == bytes_of(cache)


@pytest.mark.slow
def test_a_killed_worker_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    def kill(*_: int) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(OutputError, match="was killed"):
        write_cache(tmp_path, 40, 2, SIZE, workers=2, shard=1, on_shard=kill)
    assert not multiprocessing.active_children()
    assert 0 < len(list(tmp_path.glob("frames-*.npy"))) < 40


@pytest.mark.parametrize(
    ("name", "value"),
    [("clips", 11), ("frames", 4), ("height", 50), ("seed", 8), ("shard", 5), ("generator", 99)],
)
def test_a_cache_of_another_description_is_refused(
    cache: Path, tmp_path: Path, name: str, value: int
) -> None:
    description = json.loads((cache / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps({**description, name: value}))
    with pytest.raises(ConfigError, match=rf"another cache: {name} {value} \(wanted"):
        write_cache(tmp_path, 10, 3, SIZE, seed=7, shard=4)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


def test_what_is_no_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"wanted a folder with cache\.json"):
        CachedSource(tmp_path, 0)
    for text in ("{", "[]", '{"clips": 3}', '{"clips": "3"}'):
        (tmp_path / "cache.json").write_text(text)
        with pytest.raises(ConfigError, match="does not describe a cache"):
            CachedSource(tmp_path, 0)
    for name, data in bytes_of(cache).items():
        (tmp_path / name).write_bytes(data)
    CachedSource(tmp_path, 0)
    np.save(tmp_path / "masks-0001.npy", np.zeros((4, 3, 9, 9), np.uint8))
    with pytest.raises(InputError, match=r"masks-0001\.npy: wanted uint8 \(4, 3, 48, 64\)"):
        CachedSource(tmp_path, 0)
    (tmp_path / "masks-0001.npy").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"masks-0001\.npy: cannot be read"):
        CachedSource(tmp_path, 0)


@pytest.mark.parametrize(
    "bad", [{"clips": 3}, {"frames": 0}, {"size": (8, 64)}, {"workers": 0}, {"seed": -1}]
)
def test_bad_caches_are_refused_before_anything_is_written(
    tmp_path: Path, bad: dict[str, object]
) -> None:
    wanted = {"clips": 8, "frames": 2, "size": SIZE, "workers": 1, "seed": 0}
    with pytest.raises(ConfigError):
        write_cache(tmp_path / "new", **{**wanted, **bad})  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="run it again"):
        write_cache(tmp_path / "file", 8, 2, SIZE)
