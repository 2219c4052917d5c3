"""Synthetic clips: reproducible, with exact masks and moving objects."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise

import cv2
import numpy as np
import pytest

from vosengine.errors import ConfigError
from vosengine.training.synthetic import Clip, ClipConfig, Effects, iterate_clip, make_clip
from vosengine.training.synthetic import scene as scene_module
from vosengine.training.synthetic.motion import draw_trajectory, draw_wander
from vosengine.training.synthetic.scene import Scene, draw_scene
from vosengine.training.synthetic.shapes import CONTOURS, rasterise
from vosengine.training.synthetic.textures import PATTERNS, paint

PRESETS = {"default": ClipConfig, "plain": ClipConfig.plain, "demo": ClipConfig.demo,
           "hard": ClipConfig.hard}  # fmt: skip
SIZES = [(32, 32), (33, 47), (61, 200), (200, 45)]
# One flat colour per object and nothing that changes colours: a pixel tells whose it is.
FLAT = replace(
    ClipConfig.plain(6, 90, 130), objects=(3, 3), size=(0.08, 0.2), textures=("flat",), shading=0.0
)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def same(a: Clip, b: Clip) -> bool:
    return np.array_equal(a.frames, b.frames) and np.array_equal(a.masks, b.masks)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


@pytest.mark.parametrize("preset", PRESETS)
def test_same_seed_same_bytes(preset: str) -> None:
    config = PRESETS[preset](3, 64, 96)
    clip = make_clip(config, 5)
    assert clip.frames.shape == (3, 64, 96, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.masks.shape == (3, 64, 96)
    assert clip.masks.dtype == np.uint8
    assert clip.seed == 5
    assert same(clip, make_clip(config, 5))
    other = make_clip(config, 6)
    assert not np.array_equal(clip.frames, other.frames)
    assert not np.array_equal(clip.masks, other.masks)


def test_global_random_state_is_neither_read_nor_changed() -> None:
    config = ClipConfig.hard(2, 48, 64)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = make_clip(config, 3)
    assert np.array_equal(before, np.random.get_state()[1])
    np.random.seed(2)
    assert same(first, make_clip(config, 3))


def test_short_clip_begins_the_long_one() -> None:
    short = make_clip(ClipConfig.hard(4, 64, 96), 2)
    long = make_clip(ClipConfig.hard(9, 64, 96), 2)
    assert np.array_equal(short.frames, long.frames[:4])
    assert np.array_equal(short.masks, long.masks[:4])


def test_stream_equals_clip() -> None:
    config = ClipConfig(5, 64, 96)
    clip = make_clip(config, 8)
    frames, masks = zip(*iterate_clip(config, 8), strict=True)
    assert np.array_equal(clip.frames, np.stack(frames))
    assert np.array_equal(clip.masks, np.stack(masks))
    endless = iterate_clip(replace(config, frames=1_000_000), 8)
    head = [mask for _, mask in islice(endless, 5)]
    assert np.array_equal(clip.masks, np.stack(head))


def test_paths_stay_bounded_and_smooth_for_ever() -> None:
    rng = generator(0)
    wander = draw_wander(rng, 10.0, 1.0, 3)
    steps = np.array([wander.at(t + 1) - wander.at(t) for t in range(0, 5000, 7)])
    assert not wander.at(0).any()
    assert 0.2 < np.abs(steps).mean() < 3
    path = draw_trajectory(rng, (100, 200), 20.0, 2.0, leaving=0.0)
    path = path.moved(np.array([190.0, 8.0]), 0.3)
    places = np.array([path.position(t) for t in range(0, 5000, 7)])
    assert np.allclose(path.position(0), (190, 8))
    assert np.abs(places - (100, 50)).max() < 250


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.slow
def test_every_object_is_visible_at_first(preset: str, height: int, width: int) -> None:
    config = replace(PRESETS[preset](1, height, width), objects=(1, 3))
    counts = set()
    for seed in range(6):
        clip = make_clip(config, seed)
        areas = np.bincount(clip.masks[0].ravel())
        counts.add(len(areas) - 1)
        assert 1 <= len(areas) - 1 <= 3
        assert areas[1:].min() >= max(30, 0.005 * height * width), (seed, areas)
    assert len(counts) > 1


@pytest.mark.parametrize(("height", "width", "count"), [(32, 32, 3), (40, 128, 16), (72, 72, 16)])
@pytest.mark.slow
def test_grid_placement_cannot_fail(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, count: int
) -> None:
    monkeypatch.setattr(scene_module, "PLACEMENTS", 0)
    config = replace(ClipConfig.hard(1, height, width), objects=(count, count))
    for seed in range(4):
        areas = np.bincount(make_clip(config, seed).masks[0].ravel(), minlength=count + 1)
        assert len(areas) == count + 1
        assert areas[1:].min() >= max(30, 0.005 * height * width), (seed, areas)


@pytest.mark.slow
def test_ids_stay_within_range() -> None:
    for seed in range(3):
        clip = make_clip(ClipConfig.hard(8, 60, 90), seed)
        assert set(np.unique(clip.masks)) <= set(range(int(clip.masks[0].max()) + 1))


def test_mask_pixels_carry_their_objects_colour() -> None:
    """Inside a mask there is one colour, which does not occur outside."""
    for seed in range(5):
        clip = make_clip(FLAT, seed)
        for frame, mask in zip(clip.frames.astype(int), clip.masks, strict=True):
            for label in range(1, 4):
                region = (mask == label).astype(np.uint8)
                inner = cv2.erode(region, np.ones((3, 3)), borderValue=1).astype(bool)
                outer = ~cv2.dilate(region, np.ones((3, 3))).astype(bool)
                if not inner.any():
                    continue
                colour = np.median(frame[inner], axis=0)
                # A tip of another object thinner than half a pixel may tint a few.
                strange = np.abs(frame[inner] - colour).max(axis=-1) > 2
                assert strange.mean() < 0.01
                alike = np.abs(frame[outer] - colour).max(axis=-1) <= 2
                assert alike.mean() < 0.01 or _shares_colour(clip, label, colour)


def _shares_colour(clip: Clip, label: int, colour: np.ndarray) -> bool:
    """Whether the background or another object has `colour` in frame 0."""
    frame, mask = clip.frames[0].astype(int), clip.masks[0]
    others = [np.median(frame[mask == i], axis=0) for i in np.unique(mask) if i != label]
    return any(np.abs(other - colour).max() <= 4 for other in others)


def alone(scene: Scene, time: int) -> list[np.ndarray]:
    """For each actor from back to front, its alpha [H, W] as if it were alone."""
    alphas = []
    for actor in scene.cast:
        alpha = np.zeros((scene.screen.height, scene.screen.width), np.float32)
        layer = actor.render(scene.camera.matrix(time, actor.nearness), time, scene.screen)
        if layer is not None:
            alpha[layer.window.slices()] = layer.alpha
        alphas.append(alpha)
    return alphas


@pytest.mark.slow
def test_front_object_takes_shared_pixels() -> None:
    """In mask and image alike, unlabelled actors included, with blur and shadow on."""
    config = replace(ClipConfig.hard(1, 90, 130), objects=(4, 4), size=(0.1, 0.2))
    shared = 0
    for seed in range(4):
        scene = draw_scene(generator(seed), config)
        for time in (0, 3, 6):
            _, mask = scene.frame(time, generator(0))
            expected = np.zeros_like(mask)
            solids = [alpha >= 0.5 for alpha in alone(scene, time)]
            for actor, solid in zip(scene.cast, solids, strict=True):
                expected[solid] = actor.label
            assert np.array_equal(mask, expected)
            shared += int((np.sum(solids, axis=0) >= 2).sum())
    assert shared > 500


def test_image_shows_the_front_object() -> None:
    shared = 0
    for seed in range(8):
        scene = draw_scene(generator(seed), FLAT)
        image, _ = scene.frame(0, generator(0))
        full = [alpha > 0.995 for alpha in alone(scene, 0)]
        for i, actor in enumerate(scene.cast):
            hidden = np.any(full[i + 1 :], axis=0) if full[i + 1 :] else np.zeros_like(full[i])
            hidden |= np.any([a > 0 for a in alone(scene, 0)[i + 1 :]] or [hidden], axis=0)
            visible = full[i] & ~hidden
            sheet = actor.parts[0].sheet[0, 0].astype(int)
            assert np.abs(image[visible].astype(int) - sheet).max(initial=0) <= 2
            shared += int((full[i] & hidden).sum())
    assert shared > 200


@pytest.mark.slow
def test_objects_move_and_deform_continuously() -> None:
    config = replace(
        ClipConfig(24, 96, 144), objects=(1, 1), leaving=0.0, distractors=(0, 0), occluders=(0, 0)
    )
    rigid = replace(config, camera=0.0, deformation=0.0, articulation=0.0)
    bending, swinging = replace(config, articulation=0.0), replace(config, deformation=0.0)
    near, far, bent, swung = [], [], [], []
    for seed in range(8):
        masks = make_clip(rigid, seed).masks == 1
        near += [overlap(a, b) for a, b in pairwise(masks) if a.any()]
        far.append(overlap(masks[0], masks[-1]))
        bent.append(_deformation(bending, seed))
        swung.append(_deformation(swinging, seed))
    assert np.median(near) > 0.75
    assert min(near) > 0.2
    assert np.median(far) < 0.6
    assert np.median(bent) > 0.01
    assert max(swung) > 0.01


def _deformation(config: ClipConfig, seed: int) -> float:
    """How much the object changes that no affine map explains: 1 - IoU in its own coordinates."""
    scene = draw_scene(generator(seed), config)
    actor = next(actor for actor in scene.cast if actor.label == 1)
    window = replace(scene.screen, x1=200, y1=200)
    centred = np.array([[60.0, 0, 100], [0, 60, 100], [0, 0, 1]])
    shapes = []
    for time in (0, 20):
        layer = actor.render(centred @ np.linalg.inv(actor.trajectory.matrix(time)), time, window)
        canvas = np.zeros((200, 200), bool)
        assert layer is not None
        canvas[layer.window.slices()] = layer.alpha >= 0.5
        shapes.append(canvas)
    return 1 - overlap(*shapes)


def test_rigid_and_still_settings_are_obeyed() -> None:
    rigid = replace(ClipConfig(), deformation=0.0, articulation=0.0, leaving=0.0)
    assert all(_deformation(rigid, seed) < 0.005 for seed in range(3))
    still = replace(ClipConfig.plain(4, 48, 64), motion=0.0, camera=0.0, articulation=0.0)
    clip = make_clip(still, 1)
    assert (clip.frames == clip.frames[0]).all()
    assert (clip.masks == clip.masks[0]).all()


def test_growth_changes_the_size_of_objects() -> None:
    """The area of an actor's square over time, alone of all its motion."""
    spread = []
    for growth in (0.0, 1.0, 3.0):
        paths = [
            draw_trajectory(generator(seed), (90, 120), 20, 1.0, 0.0, growth) for seed in range(9)
        ]
        sizes = [[np.linalg.det(path.matrix(t)[:2, :2]) for t in range(0, 60, 5)] for path in paths]
        spread.append(float(np.median([np.ptp(np.log(size)) for size in sizes])))
    assert spread[0] < 1e-9
    assert spread[2] == pytest.approx(3 * spread[1])
    config = replace(ClipConfig.plain(3, 64, 96), motion=1.0)
    assert not np.array_equal(
        make_clip(config, 0).masks[2], make_clip(replace(config, growth=4.0), 0).masks[2]
    )


def test_patchwork_gives_every_part_colours_of_its_own() -> None:
    """Flat parts of one object: how many colours they have."""
    config = replace(ClipConfig(1, 64, 96), parts=(6, 6), textures=("flat",), objects=(1, 1))
    counts = []
    for chance in (0.0, 1.0):
        colours = []
        for seed in range(8):
            scene = draw_scene(generator(seed), replace(config, patchwork=chance, camouflage=0.0))
            actor = next(actor for actor in scene.cast if actor.label)
            sheets = np.array([part.sheet[0, 0] for part in actor.parts], int)
            colours.append(float(np.std(sheets, axis=0).mean()))
        counts.append(np.mean(colours))
    assert counts[1] > 1.1 * counts[0]


@pytest.mark.slow
def test_many_objects_are_not_convex() -> None:
    solidity = []
    for seed in range(25):
        mask = make_clip(replace(ClipConfig(1, 96, 144), objects=(1, 1)), seed).masks[0] == 1
        outline, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        hull = cv2.convexHull(np.concatenate(outline))
        solidity.append(mask.sum() / max(cv2.contourArea(hull), 1.0))
    assert np.mean(np.array(solidity) < 0.85) > 0.4


def test_leaving_objects_go_and_return() -> None:
    config = replace(
        ClipConfig.plain(1, 64, 96), objects=(1, 1), leaving=1.0, camera=0.0, size=(0.05, 0.1)
    )
    for seed in range(3):
        scene = draw_scene(generator(seed), config)
        seen = np.array([scene.frame(time, generator(0))[1].any() for time in range(0, 150, 2)])
        gone = int(np.argmin(seen))
        assert seen[0]
        assert not seen[gone]
        assert seen[gone:].any()


@pytest.mark.slow
def test_each_effect_changes_the_image_but_not_the_mask() -> None:
    base = replace(ClipConfig.plain(5, 64, 96), motion=2.0, effects=Effects.none())
    levels = {"shadow": 1.0, "blur": 1.0, "light": 1.0, "drift": 1.0, "noise": 20.0,
              "jpeg": (20, 20), "focus": 2.0}  # fmt: skip
    for name, level in levels.items():
        config = replace(base, effects=replace(Effects.none(), **{name: level}))
        changed = 0
        for seed in range(3):
            without, clip = make_clip(base, seed), make_clip(config, seed)
            assert np.array_equal(without.masks, clip.masks), name
            changed += int((without.frames != clip.frames).sum())
        assert changed > 1000, name


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_fill_any_size(name: str) -> None:
    for height, width in [(7, 7), (5, 90), (41, 23)]:
        field = PATTERNS[name](generator(1), height, width)
        assert field.shape == (height, width)
        assert field.dtype == np.float32
        assert np.isfinite(field).all()
        assert field.min() >= 0
        assert field.max() <= 1.0001
        assert name == "flat" or height * width < 100 or np.ptp(field) > 0.005
        grey = np.tile(np.linspace(0, 1, 3, dtype=np.float32)[:, None], 3)
        assert paint(generator(2), height, width, [name], [grey]).shape == (height, width, 3)


@pytest.mark.parametrize("name", CONTOURS)
def test_contours_are_finite_and_of_unit_size(name: str) -> None:
    for seed in range(20):
        contour = CONTOURS[name](generator(seed))
        assert np.isfinite(contour).all()
        assert 0.8 < np.ptp(contour, axis=0).max() < 7
        assert 0.02 < cv2.contourArea(contour.astype(np.float32)) < 30


def test_rasterised_area_is_exact() -> None:
    square = np.array([[2.5, 3.25], [72.5, 3.25], [72.5, 58.25], [2.5, 58.25]])
    hole = square * 0.25 + square.mean(axis=0) * 0.75
    coverage = rasterise([square], 64, 80).astype(float) / 255
    assert coverage.sum() == pytest.approx(70 * 55, rel=0.01)
    assert coverage[30, [1, 2, 3, 71, 72, 73]] == pytest.approx([0, 0.5, 1, 1, 0.5, 0], abs=0.26)
    area = rasterise([square, hole], 64, 80).sum() / 255
    assert area == pytest.approx(70 * 55 * 15 / 16, rel=0.01)


@pytest.mark.parametrize(
    "bad",
    [
        {"frames": 0}, {"frames": 2.5}, {"height": 31}, {"width": True}, {"objects": (0, 2)},
        {"objects": (3, 2)}, {"objects": 2}, {"objects": (1, 17)}, {"parts": (0, 1)},
        {"size": (0.1, 0.9)}, {"size": (float("nan"), 0.2)}, {"holes": 1.5}, {"motion": -1.0},
        {"motion": "fast"}, {"leaving": float("inf")}, {"textures": ("marble",)},
        {"textures": ()}, {"shapes": "box"}, {"effects": None}, {"distractors": (-1, 0)},
        {"height": 32, "width": 32, "objects": (5, 5)}, {"growth": 9.0}, {"patchwork": 1.1},
    ],
)  # fmt: skip
def test_bad_configurations_are_refused_by_name(bad: dict[str, object]) -> None:
    name = list(bad)[-1]
    with pytest.raises(ConfigError, match=name):
        ClipConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad", [{"blur": 2.0}, {"noise": -1.0}, {"jpeg": (0, 50)}, {"jpeg": 80}, {"focus": 6.0}]
)
def test_bad_effects_are_refused_by_name(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"effects.{next(iter(bad))}"):
        Effects(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1.5, True, None])
def test_bad_seeds_are_refused_before_the_first_frame(seed: object) -> None:
    with pytest.raises(ConfigError, match="seed"):
        iterate_clip(ClipConfig.plain(1, 32, 32), seed)  # type: ignore[arg-type]
