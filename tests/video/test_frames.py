"""Frames and masks: checks, and lossless conversion to and from the network."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vosengine.config import IMAGENET_MEAN, IMAGENET_STD
from vosengine.errors import InputError, VosError
from vosengine.frames import (
    check_frame,
    check_mask,
    crop,
    pad,
    prepare,
    resize_labels,
    restore,
)
from vosengine.types import Geometry

SIZE = 40, 56


def image(height: int = SIZE[0], width: int = SIZE[1], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def floats(value: float | None = None) -> np.ndarray:
    """A valid float frame, except for one number if a value is given."""
    frame = image().astype(np.float32) / 255
    if value is not None:
        frame[3, 4, 1] = value
    return frame


def mask(dtype: type = np.uint8, **ids: int) -> np.ndarray:
    """A mask with id 1 in a corner, and the value `corner` in the opposite one."""
    drawn = np.zeros(SIZE, dtype)
    drawn[:9, :9] = 1
    drawn[-9:, -9:] = ids.get("corner", 0)
    return drawn


@pytest.mark.parametrize("as_torch", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("frame", [image(), floats()], ids=["uint8", "float32"])
def test_a_valid_frame_is_passed_on_without_a_copy(frame: np.ndarray, as_torch: bool) -> None:
    given_frame = torch.from_numpy(frame) if as_torch else frame
    checked = check_frame(given_frame)
    assert checked.data_ptr() == torch.from_numpy(frame).data_ptr()
    assert np.array_equal(checked.numpy(), frame)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (image().tolist(), "given list"),
        (None, "given NoneType"),
        (image().astype(np.int64), "uint8 or float32, given int64"),
        (image().astype(np.float64), "uint8 or float32, given float64"),
        (floats().astype(">f4"), "uint8 or float32, given >f4"),
        (torch.zeros(*SIZE, 3, dtype=torch.float16), "uint8 or float32, given torch.float16"),
        (image()[:, :, 0], r"rank 3, \[H, W, 3\] RGB, given shape \[40, 56\]"),
        (image()[None], r"rank 3.*\[1, 40, 56, 3\]"),
        (np.array(7, np.uint8), r"rank 3.*\[\]"),
        (image().transpose(2, 0, 1), r"3 channels.*\[3, 40, 56\]; channels go last"),
        (np.zeros((*SIZE, 4), np.uint8), r"3 channels.*\[40, 56, 4\]$"),
        (image(31, 56), "at least 32 x 32 pixels, given 31 x 56"),
        (image(40, 31), "at least 32 x 32 pixels, given 40 x 31"),
        (image(0, 0), "at least 32 x 32 pixels, given 0 x 0"),
        (floats(np.nan), "NaN or infinity"),
        (floats(np.inf), "NaN or infinity"),
        (floats(-np.inf), "NaN or infinity"),
        (floats(1.01), r"values in 0\.\.1, given 0\.\.1\.01"),
        (floats(-0.01), r"values in 0\.\.1, given -0\.01\.\.1"),
        (floats() * 255, r"given 0\.\.255; divide by 255"),
    ],
)
def test_a_bad_frame_is_refused_by_name(frame: object, message: str) -> None:
    with pytest.raises(InputError, match="^frame: .*" + message):
        check_frame(frame)


def test_the_smallest_frame_and_the_ends_of_the_range_are_accepted() -> None:
    assert check_frame(image(32, 32)).shape == (32, 32, 3)
    assert check_frame(floats(0.0)).max() <= 1
    assert check_frame(floats(1.0)).max() == 1


def test_input_errors_are_the_engines_and_value_errors() -> None:
    assert issubclass(InputError, VosError)
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize(
    "view",
    [
        lambda frame: frame[..., ::-1],
        lambda frame: frame[::-1],
        lambda frame: frame[:, ::-1],
        lambda frame: frame[::-1, ::-1, ::-1],
        lambda frame: frame[2:38, 3:50],
        lambda frame: frame.transpose(1, 0, 2),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_any_view_of_an_array_works(view: object, read_only: bool) -> None:
    frame = image()
    wanted = view(frame).copy()
    frame.flags.writeable = not read_only
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked = check_frame(view(frame)).numpy()
    assert np.array_equal(checked, wanted)
    assert not (read_only and np.shares_memory(checked, frame))


@pytest.mark.parametrize("read_only", [False, True])
def test_a_mask_may_be_a_read_only_or_reversed_view(read_only: bool) -> None:
    drawn = mask(corner=9)
    wanted = drawn[::-1, ::-1].copy()
    drawn.flags.writeable = not read_only
    assert np.array_equal(check_mask(drawn[::-1, ::-1], SIZE).numpy(), wanted)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_masks_of_any_integer_dtype_become_uint8(dtype: type) -> None:
    drawn = mask(dtype, corner=100)
    for given_mask in (drawn, torch.from_numpy(drawn)):
        checked = check_mask(given_mask, SIZE)
        assert checked.dtype == torch.uint8
        assert checked.tolist() == drawn.tolist()


def test_a_bool_mask_is_object_1() -> None:
    for given_mask in (mask(bool), torch.from_numpy(mask(bool))):
        checked = check_mask(given_mask, SIZE)
        assert checked.dtype == torch.uint8
        assert checked.tolist() == mask().tolist()


def test_ids_up_to_255_are_accepted() -> None:
    assert check_mask(mask(np.int64, corner=255), SIZE)[-1, -1] == 255


@pytest.mark.parametrize("as_torch", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("given_mask", "message"),
    [
        (mask(np.float32), "integer dtype.*float32"),
        (mask(np.complex64), "integer dtype.*complex64"),
        (mask()[:, :-1], r"frame's size \[40, 56\], given \[40, 55\]"),
        (mask().T, r"frame's size \[40, 56\], given \[56, 40\]"),
        (mask()[..., None], r"frame's size, .* given \[40, 56, 1\]"),
        (mask(np.int64, corner=256), r"1\.\.255 .*, given 0\.\.256"),
        (mask(np.int32, corner=-1), r"1\.\.255 .*, given -1\.\.1"),
    ],
)
def test_a_bad_mask_is_refused_by_name(
    given_mask: np.ndarray, message: str, as_torch: bool
) -> None:
    with pytest.raises(InputError, match="^mask: .*" + message):
        check_mask(torch.from_numpy(given_mask.copy()) if as_torch else given_mask, SIZE)


@pytest.mark.parametrize(("given_mask", "kind"), [([[1]], "list"), (None, "NoneType")])
def test_a_mask_of_another_type_is_refused(given_mask: object, kind: str) -> None:
    with pytest.raises(InputError, match=f"^mask: wanted a numpy array .*given {kind}"):
        check_mask(given_mask, SIZE)


def test_a_480p_frame_is_padded_by_five_columns_on_either_side() -> None:
    geometry = Geometry.fit((480, 854), size=None, multiple=16)
    assert geometry == Geometry((480, 854), (480, 854), (5, 5, 0, 0))
    assert geometry.network == (480, 864)
    assert geometry.cells(16) == (30, 54)
    assert geometry.cells(4) == (120, 216)
    assert geometry.region(4) == (0, 1.25, 120, 213.5)


def test_the_odd_rest_of_the_padding_goes_right_and_to_the_bottom() -> None:
    geometry = Geometry.fit((45, 61), size=None, multiple=16)
    assert geometry.padding == (1, 2, 1, 2)
    assert geometry.network == (48, 64)
    assert geometry.region(16) == (1 / 16, 1 / 16, 45 / 16, 61 / 16)


@pytest.mark.parametrize(
    ("frame", "short_side", "resized"),
    [
        ((480, 854), 480, (480, 854)),
        ((480, 854), 240, (240, 427)),
        ((854, 480), 240, (427, 240)),
        ((60, 81), 120, (120, 162)),
        ((100, 333), 32, (32, 107)),
    ],
)
def test_the_short_side_is_met_and_the_shape_kept(
    frame: tuple[int, int], short_side: int, resized: tuple[int, int]
) -> None:
    geometry = Geometry.fit(frame, size=short_side, multiple=16)
    assert (geometry.frame, geometry.resized) == (frame, resized)
    assert all(side % 16 == 0 for side in geometry.network)
    assert 0 <= geometry.network[0] - resized[0] < 16
    assert 0 <= geometry.network[1] - resized[1] < 16


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(16, 39).map(lambda half: 2 * half + 1),
    width=st.integers(16, 39).map(lambda half: 2 * half + 1),
    seed=st.integers(0, 99),
)
def test_what_was_prepared_is_restored_exactly(height: int, width: int, seed: int) -> None:
    frame = torch.from_numpy(image(height, width, seed))
    geometry = Geometry.fit((height, width), size=None, multiple=16)
    prepared = prepare(frame, geometry, IMAGENET_MEAN, IMAGENET_STD, torch.float32)
    assert prepared.shape == (3, *geometry.network)
    assert torch.equal(restore(prepared, geometry, IMAGENET_MEAN, IMAGENET_STD), frame)


def test_a_resized_frame_is_restored_at_its_own_size() -> None:
    y, x = np.mgrid[:90, :121]
    frame = torch.from_numpy(np.stack((y, x, 255 - x), axis=2).astype(np.uint8))
    geometry = Geometry.fit((90, 121), size=45, multiple=16)
    prepared = prepare(frame, geometry, IMAGENET_MEAN, IMAGENET_STD, torch.float32)
    assert prepared.shape == (3, 48, 64)
    again = restore(prepared, geometry, IMAGENET_MEAN, IMAGENET_STD)
    assert again.shape == frame.shape
    assert (again.int() - frame.int()).abs().max() <= 2  # a ramp survives but for its ends


def test_the_padding_is_black_before_the_normalisation() -> None:
    geometry = Geometry.fit((45, 61), size=None, multiple=16)
    frame = torch.full((45, 61, 3), 255, dtype=torch.uint8)
    prepared = prepare(frame, geometry, IMAGENET_MEAN, IMAGENET_STD, torch.float32)
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        black, white = -mean / std, (1 - mean) / std
        assert prepared[channel, 0, 0].item() == pytest.approx(black)
        assert prepared[channel, 1:46, 1:62].unique().tolist() == pytest.approx([white])
        assert (prepared[channel] > 0).sum() == 45 * 61


@settings(deadline=None, max_examples=40)
@given(height=st.integers(32, 80), width=st.integers(32, 80))
def test_crop_undoes_pad(height: int, width: int) -> None:
    geometry = Geometry.fit((height, width), size=None, multiple=16)
    planes = torch.rand(2, height, width) + 1
    padded = pad(planes, geometry)
    assert padded.shape == (2, *geometry.network)
    assert torch.equal(crop(padded, geometry), planes)
    assert (padded != 0).sum() == planes.numel()
    assert crop(padded, geometry).untyped_storage().data_ptr() == padded.data_ptr()


def test_labels_of_the_same_size_are_the_same() -> None:
    labels = torch.from_numpy(mask(corner=7))
    assert resize_labels(labels, SIZE) is labels


def test_labels_are_resized_to_the_nearest_centre() -> None:
    labels = torch.arange(36, dtype=torch.uint8).reshape(6, 6)
    assert torch.equal(resize_labels(labels, (2, 2)), labels[1::3, 1::3])
    twice = labels.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
    assert torch.equal(resize_labels(labels, (12, 12)), twice)
    assert resize_labels(labels, (5, 7)).dtype == torch.uint8
    rows = [int((y + 0.5) * 6 / 5) for y in range(5)]
    columns = [int((x + 0.5) * 6 / 7) for x in range(7)]
    assert torch.equal(resize_labels(labels, (5, 7)), labels[rows][:, columns])
