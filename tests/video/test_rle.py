"""Run-length encoded masks, against pycocotools, and damaged ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from vosengine.rle import decode, encode


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    return random.random((height, width)) < draw(st.sampled_from((0.0, 0.02, 0.5, 0.97, 1.0)))


@settings(max_examples=200, deadline=None)
@given(mask=masks())
def test_text_is_what_pycocotools_writes_and_comes_back(mask: np.ndarray) -> None:
    wanted = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert encode(mask) == wanted
    np.testing.assert_array_equal(decode(wanted, mask.shape), mask)


def test_long_runs_take_several_characters() -> None:
    mask = np.zeros((2000, 1500), bool)
    mask[700:, 900:] = True
    wanted = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert encode(mask) == wanted
    np.testing.assert_array_equal(decode(wanted, mask.shape), mask)


def test_numbers_are_runs_down_the_columns() -> None:
    wanted = np.array([[0, 1, 1], [0, 1, 0]], bool)
    np.testing.assert_array_equal(decode([2, 3, 1], (2, 3)), wanted)
    np.testing.assert_array_equal(decode([0, 6], (2, 3)), np.ones((2, 3), bool))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "the runs cover 0 pixels; wanted 5 x 7 = 35"),
        (";2300", "the runs cover 21 pixels"),
        (";2300095", "the runs cover"),
        ("0", "the runs cover 0 pixels"),
        (";230009P", "damaged or cut short"),  # the last number goes on
        ("zz", "damaged or cut short"),
        ("é", "damaged or cut short"),
        ("PPPPPPPP1", "damaged or cut short"),  # more than 32 bits
        ("OO", "a run of -1 pixels"),
        ([10, 5], "the runs cover 15 pixels"),
        ([40, -5], "a run of -5 pixels"),
        ([34.0, 1], "not all whole numbers"),
        (["35"], "not all whole numbers"),
        ([1 << 40], "not all whole numbers"),
    ],
)
def test_damaged_runs_are_refused(counts: str | list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(counts, (5, 7))
