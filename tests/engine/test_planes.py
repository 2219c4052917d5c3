"""Prompt masks as planes, one per object, soft or binary, in both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from quick_streams import assert_same, begin, play

from vosengine.errors import InputError
from vosengine.frames import check_mask
from vosengine.onnx import pictures
from vosengine.training.synthetic import Clip

SIZE = 40, 56
READERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "numpy": lambda planes: check_mask(planes, SIZE).numpy(),
    "torch": lambda planes: check_mask(torch.from_numpy(planes.copy()), SIZE).numpy(),
    "without torch": lambda planes: pictures.check_mask(planes, SIZE).labels,
}


@pytest.fixture(params=READERS)
def read(request: pytest.FixtureRequest) -> Callable[[np.ndarray], np.ndarray]:
    return READERS[request.param]


def planes_of(labels: np.ndarray, count: int, dtype: Any = np.uint8) -> np.ndarray:
    return (labels == np.arange(1, 1 + count)[:, None, None]).astype(dtype)


def slow_labels(planes: np.ndarray) -> np.ndarray:
    """Return labels pixel by pixel: the first maximum, with a background of 0.5."""
    labels = np.zeros(planes.shape[1:], np.uint8)
    for place in np.ndindex(*labels.shape):
        best = 0.5
        for row, value in enumerate(planes[(slice(None), *place)].tolist()):
            if value > best:
                labels[place], best = row + 1, value
    return labels


@pytest.mark.parametrize("count", [1, 3, 255])
@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32])
def test_planes_of_0_and_1_are_the_labels(
    read: Callable[..., np.ndarray], dtype: Any, count: int
) -> None:
    labels = np.random.default_rng(0).integers(0, 1 + count, SIZE).astype(np.uint8)
    result = read(planes_of(labels, count, dtype))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, labels)


@pytest.mark.parametrize("count", [1, 4])
def test_of_soft_planes_the_greatest_counts_against_the_background(
    read: Callable[..., np.ndarray], count: int
) -> None:
    """Values are multiples of 1/8, so that many are equal, and many are 0.5."""
    planes = np.random.default_rng(1).integers(0, 9, (count, *SIZE)).astype(np.float32) / 8
    np.testing.assert_array_equal(read(planes), slow_labels(planes))
    np.testing.assert_array_equal(read(planes[:, ::-1, ::-1]), slow_labels(planes)[::-1, ::-1])


def test_a_plane_without_a_pixel_names_no_object(read: Callable[..., np.ndarray]) -> None:
    planes = np.zeros((3, *SIZE), np.float32)
    planes[0, :9], planes[1, 4:20], planes[2, 30:] = 0.5, 0.51, 1
    assert np.unique(read(planes)).tolist() == [0, 2, 3]
    assert pictures.check_mask(planes, SIZE).ids == (2, 3)
    assert not read(planes * 0).any()


def spoilt(value: float) -> np.ndarray:
    planes = np.full((2, *SIZE), 0.25, np.float32)
    planes[1, 3, 4] = value
    return planes


BAD = {
    "NaN": (spoilt(np.nan), "a soft mask holds NaN or infinity"),
    "infinity": (spoilt(np.inf), "a soft mask holds NaN or infinity"),
    "above": (spoilt(1.5), r"wanted 0\.\.1 in a soft mask, given 0\.25\.\.1\.5; scale it"),
    "below": (spoilt(-0.5), r"wanted 0\.\.1 in a soft mask, given -0\.5\.\.0\.25"),
    "255": (np.full((1, *SIZE), 255, np.uint8), r"wanted 0 and 1 in \[O, H, W\], given 255"),
    "overlap": (np.pad(np.ones((2, 5, 4), bool), ((0, 0), (0, 35), (0, 52))), "^mask: 20 pixels"),
    "float64": (spoilt(0.5).astype(np.float64), r"float32 \(soft\), uint8 or bool .*given float64"),
    "int64": (np.ones((1, *SIZE), np.int64), "given int64"),
    "size": (spoilt(0)[:, :-1], r"\[40, 56\] .* or \[O, 40, 56\] .* given \[2, 39, 56\]"),
    "planes last": (spoilt(0).transpose(1, 2, 0), r"given \[40, 56, 2\]"),
    "no plane": (spoilt(0)[:0], r"each of 1\.\.255 objects, given 0"),
    "256 planes": (np.zeros((256, *SIZE), bool), r"each of 1\.\.255 objects, given 256"),
    "one soft": (spoilt(0)[0], r"integer dtype .*float32; a soft mask is float32 \[O, H, W\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_planes_are_refused_by_name(read: Callable[..., np.ndarray], name: str) -> None:
    planes, message = BAD[name]
    with pytest.raises(InputError, match=message) as caught:
        read(planes)
    assert str(caught.value).startswith("mask: ")


def test_a_stream_takes_planes_as_it_takes_labels(prompted_model: str, small: Clip) -> None:
    """Two objects at first; both are corrected, then one."""
    prompts = {0: small.masks[0], 2: small.masks[2], 3: small.masks[3] * (small.masks[3] == 2)}
    wanted = play(begin(prompted_model), small.frames[:5], prompts)
    hard = {index: planes_of(mask, 2) for index, mask in prompts.items()}
    soft = {index: (0.25 + planes.astype(np.float32) / 2) for index, planes in hard.items()}
    for planes in (hard, soft):
        assert_same(play(begin(prompted_model), small.frames[:5], planes), wanted)
