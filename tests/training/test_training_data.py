"""Training data: clips by number, levels, mixtures, and batches by step."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training_augment import SIZE, coded, same

from vosengine.errors import ConfigError, InputError
from vosengine.training import synthetic_source
from vosengine.training.cached_source import CachedSource
from vosengine.training.feed import Feed, loader
from vosengine.training.mixture import DataOptions, Mixture, parse_data
from vosengine.training.samples import Sample
from vosengine.training.streams import clip_seed
from vosengine.training.synthetic import Clip, ClipConfig, levels, make_clip
from vosengine.training.synthetic.cache import write_cache
from vosengine.training.synthetic.levels import ALL_OPEN, LEVELS, make_level_clip, open_levels
from vosengine.training.synthetic_source import SyntheticSource


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_cache(folder, 10, 3, SIZE, seed=7, shard=4)
    return folder


class Counting:
    """A source whose clips contain the number and progress they were requested with."""

    def __init__(self, name: str = "") -> None:
        self.name, self.clip = name, coded(5)

    def sample(self, index: int, progress: float) -> Sample:
        return Sample(self.clip.frames, self.clip.masks, f"{self.name} {index} {progress:.3f}")


# Levels


def test_a_step_leaves_out_the_frames_between() -> None:
    config = ClipConfig.hard(3, *SIZE)
    wide, whole = make_clip(config, 4, step=3), make_clip(replace(config, frames=7), 4)
    assert np.array_equal(wide.frames, whole.frames[::3])
    assert np.array_equal(wide.masks, whole.masks[::3])
    with pytest.raises(ConfigError, match="step"):
        make_clip(config, 4, step=0)


def test_levels_open_one_after_the_other_and_stay_open() -> None:
    opened = [open_levels(progress) for progress in np.linspace(0, 1, 101)]
    assert opened[0] == 1 and opened == sorted(opened) and set(opened) == {1, 2, 3, 4}
    assert open_levels(ALL_OPEN) == len(LEVELS) == open_levels(1.0) > open_levels(ALL_OPEN - 0.01)


def test_a_level_is_drawn_at_each_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, level in enumerate(LEVELS):
        drawn = []
        monkeypatch.setattr(levels, "make_clip", lambda *call: drawn.append(call))  # noqa: B023
        for seed in range(40):
            make_level_clip(number, seed, 3, SIZE)
        config = ClipConfig(**{**vars(level.config), "frames": 3, "height": 48, "width": 64})
        assert all(call[:2] == (config, seed) for seed, call in enumerate(drawn))
        assert {call[2] for call in drawn} == set(level.steps)


# Sources


@pytest.mark.slow
def test_a_sample_is_a_function_of_its_number_and_the_progress(cache: Path) -> None:
    for source in (SyntheticSource(2, SIZE, 3), CachedSource(cache, 3)):
        forwards = [source.sample(i, 0.5) for i in range(4)]
        backwards = [source.sample(i, 0.5) for i in reversed(range(4))][::-1]
        assert all(map(same, forwards, backwards))
        assert len({clip.origin for clip in forwards}) > 1


@pytest.mark.slow
def test_another_seed_gives_other_clips(cache: Path) -> None:
    a, b = SyntheticSource(2, SIZE, 3).sample(0, 0), SyntheticSource(2, SIZE, 4).sample(0, 0)
    assert not np.array_equal(a.frames, b.frames)
    drawn = [[CachedSource(cache, s).sample(i, 1).origin for i in range(12)] for s in (0, 1)]
    assert drawn[0] != drawn[1]


def test_progress_decides_which_levels_are_drawn(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    clip = make_level_clip(0, 0, 1, SIZE)

    def record(level: int, *rest: object) -> Clip:
        drawn.append(level)
        return clip

    monkeypatch.setattr(synthetic_source, "make_level_clip", record)
    for progress, wanted in ((0.0, {0}), (0.4, {0, 1}), (1.0, {0, 1, 2, 3})):
        drawn.clear()
        for index in range(40):
            SyntheticSource(1, SIZE, 0).sample(index, progress)
        assert set(drawn) == wanted
        cached = CachedSource(cache, 0)
        numbers = [int(cached.sample(i, progress).origin.split()[-1]) for i in range(60)]
        assert {number % 4 for number in numbers} == wanted
        assert set(numbers) == {n for n in range(10) if n % 4 in wanted}  # every clip is drawn


def test_labelled_clips_hide_no_mover(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[ClipConfig] = []
    monkeypatch.setattr(levels, "make_clip", lambda config, *_: seen.append(config))
    for labelled in (False, True):
        make_level_clip(3, 0, 2, (96, 128), labelled)
    nothing = {"clutter": (0, 0), "distractors": (0, 0), "occluders": (0, 0)}
    assert all(getattr(seen[0], name) == getattr(LEVELS[3].config, name) != none
               for name, none in nothing.items())  # fmt: skip
    assert seen[1] == replace(seen[0], **nothing)
    monkeypatch.undo()
    write_cache(tmp_path / "labelled", 4, 2, SIZE, seed=3, labelled=True)
    for index in range(4):
        wanted = make_level_clip(index, clip_seed(3, index), 2, SIZE, labelled=True)
        cached = np.load(tmp_path / "labelled" / "frames-0000.npy")[index]
        np.testing.assert_array_equal(cached, wanted.frames)
    drawn = SyntheticSource(2, SIZE, 3, labelled=True).sample(0, 0.0)
    wanted = make_level_clip(0, clip_seed(3, 0), 2, SIZE, labelled=True)
    np.testing.assert_array_equal(drawn.frames, wanted.frames)
    CachedSource(tmp_path / "labelled", 0, labelled=True)
    with pytest.raises(ConfigError, match="holds another cache: labelled True"):
        write_cache(tmp_path / "labelled", 4, 2, SIZE, seed=3)


@pytest.mark.parametrize(("index", "progress"), [(-1, 0.5), (0, -0.1), (0, 1.1), (0, float("nan"))])
def test_requests_that_no_source_can_answer(cache: Path, index: int, progress: float) -> None:
    parts = [(Counting(), 1.0)]
    for source in (SyntheticSource(2, SIZE, 3), CachedSource(cache, 3), Mixture(parts, 0)):
        with pytest.raises(InputError, match="index of 0 or more"):
            source.sample(index, progress)


# Feed


def test_a_clip_of_the_feed_depends_on_seed_and_number_alone() -> None:
    feed = Feed(Counting(), SIZE, 3, 1, 10, 4)
    assert len(feed) == 40
    clips = [feed[n] for n in range(8)]
    assert all(same(feed[n], clips[n]) for n in reversed(range(8)))
    other = Feed(Counting(), SIZE, 3, 2, 10, 4)
    assert not np.array_equal(other[0].frames, clips[0].frames)
    assert not np.array_equal(clips[1].frames, clips[0].frames)
    for number in (40, -1):
        with pytest.raises(IndexError):
            feed[number]


def test_progress_is_the_steps_share_and_one_for_a_batch() -> None:
    feed = Feed(Counting(), SIZE, 3, 1, 10, 4)
    assert [feed[n].origin for n in (0, 3, 4, 39)] == [
        " 0 0.000", " 3 0.000", " 4 0.100", " 39 0.900"
    ]  # fmt: skip


def test_windows_keep_the_order_and_vary() -> None:
    """Frames of one grey each: the drawn ones are read from the clip."""
    frames = np.broadcast_to(
        np.arange(20, 220, 40, dtype=np.uint8)[:, None, None, None], (5, 48, 64, 3)
    )
    masks = np.zeros((5, 48, 64), np.uint8)
    masks[1:, 10:30, 10:40] = 1

    class Grey:
        def sample(self, index: int, progress: float) -> Sample:
            return Sample(np.array(frames), masks, "grey")

    feed, windows = Feed(Grey(), SIZE, 3, 0, 60, 1), Counter[bytes]()
    empty = 0
    for number in range(60):
        clip = feed[number]
        levels = clip.frames.mean(axis=(1, 2, 3))
        order = np.sign(np.diff(levels))
        assert abs(order.sum()) == 2, levels  # rises throughout, or falls where played backwards
        windows[clip.masks.any(axis=(1, 2)).tobytes()] += 1
        empty += not clip.masks[0].any()
    assert empty <= 6
    with pytest.raises(InputError, match="grey: has 5 frames, wanted 6"):
        Feed(Grey(), SIZE, 6, 0, 10, 1)[0]


@pytest.mark.slow
def test_batches_go_on_from_any_step_and_leave_the_global_state_alone(cache: Path) -> None:
    feed = Feed(CachedSource(cache, 2), (32, 40), 2, 5, 6, 3)
    state = torch.random.get_rng_state()
    whole = list(loader(feed))
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(whole) == 6 and whole[0].frames.shape == (3, 2, 32, 40, 3)
    assert len(list(loader(feed, 6))) == 0
    for start, workers in ((4, 0), (4, 1)):
        rest = list(loader(feed, start, workers))
        assert len(rest) == 2
        for batch, wanted in zip(rest, whole[start:], strict=True):
            assert torch.equal(batch.frames, wanted.frames)
            assert torch.equal(batch.masks, wanted.masks)
            assert batch[2:] == wanted[2:]
    assert torch.equal(state, torch.random.get_rng_state())
    assert not multiprocessing.active_children()
    for step in (-1, 7):
        with pytest.raises(ConfigError, match="first_step"):
            loader(feed, step)


@pytest.mark.parametrize("bad", [{"frames": 0}, {"steps": 0}, {"batch": 0}, {"size": (0, 9)}])
def test_bad_feeds_are_refused(bad: dict[str, object]) -> None:
    wanted = {"size": SIZE, "frames": 2, "seed": 0, "steps": 3, "batch": 1}
    with pytest.raises(ConfigError, match="wanted at least 1"):
        Feed(Counting(), **{**wanted, **bad})  # type: ignore[arg-type]


# Mixtures


def test_a_mixture_draws_by_weight() -> None:
    mixture = Mixture([(Counting("a"), 5), (Counting("b"), 1), (Counting("c"), 2)], 0)
    names = [mixture.sample(n, 0.25).origin for n in range(1600)]
    count = Counter(name[0] for name in names)
    assert [count[name] / 200 for name in "abc"] == pytest.approx([5, 1, 2], rel=0.2)
    assert names[7].endswith(" 7 0.250")
    assert [mixture.sample(n, 0.25).origin for n in (9, 3)] == [names[9], names[3]]


def test_sources_are_named_in_words(cache: Path) -> None:
    options = DataOptions(SIZE, 2, 3)
    assert isinstance(parse_data("synthetic", options), SyntheticSource)
    assert isinstance(parse_data(f"cache:{cache}", options), CachedSource)
    mixture = parse_data(f"cache:{cache} = 9, synthetic", options)
    assert isinstance(mixture, Mixture)
    lengths = Counter(len(mixture.sample(n, 0).frames) for n in range(24))
    assert set(lengths) == {2, 3} and lengths[3] > lengths[2]


@pytest.mark.parametrize(
    "text",
    ["", "film", "cache:", "cache", "davis:", "synthetic:x", "synthetic=", "synthetic=x",
     "synthetic=0", "synthetic=-1", "synthetic=nan", "synthetic=inf", "synthetic,",
     "a=b=synthetic"],
)  # fmt: skip
def test_bad_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="data: "):
        parse_data(text, DataOptions(SIZE, 2, 3))


def test_bad_mixtures_and_seeds_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one source"):
        Mixture([], 0)
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="weights above 0"):
            Mixture([(Counting(), weight)], 0)
    with pytest.raises(ConfigError, match="seed"):
        SyntheticSource(2, SIZE, -1)
