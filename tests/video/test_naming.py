"""Which frame a file belongs to."""

from __future__ import annotations

import pytest

from vosengine.errors import InputError
from vosengine.naming import match_frames, numbers_of

SHOTS = [f"shot-{i}" for i in range(12)]


@pytest.mark.parametrize(
    ("stems", "names", "length", "frames", "how"),
    [
        (["shot-10", "shot-2"], SHOTS, None, [10, 2], "name"),
        (["00003", "00000"], None, 4, [3, 0], "name"),
        (["123456"], None, None, [123456], "name"),
        (["frame_000003"], None, 10, [3], "number"),
        (["frame_000003", "frame_000010"], SHOTS, None, [3, 10], "number"),
        (["0007_mask", "0009_mask"], None, 10, [7, 9], "number"),
        (["cam2_obj1_5", "cam2_obj1_11"], SHOTS, None, [5, 11], "number"),
        (["mask_30", "mask_10"], ["img_0010", "img_0020", "img_0030"], None, [2, 0], "number"),
        (["a", "0.5"], ["0", "0.25", "0.5", "a"], None, [3, 2], "name"),
        ([], SHOTS, None, [], "name"),
    ],
)
def test_by_name_or_else_by_number(
    stems: list[str], names: list[str] | None, length: int | None, frames: list[int], how: str
) -> None:
    assert match_frames(stems, names, length, "mask") == (frames, how)


@pytest.mark.parametrize(
    ("stems", "names", "length", "message"),
    [
        (["shot-3", "shot-12"], SHOTS, None, "1 of 2 match no frame: shot-12; wanted the names of"),
        (["frame_3", "frame_10"], None, 10, r"1 of 2 match no frame: frame_10; .*00000 to 00009"),
        (["first"], SHOTS, None, r"m: 1 of 1 match no frame: first; .* shot-4 and 7 more\)"),
        (["frame_3", "frame_03"], SHOTS, None, "2 of 2 match no frame: frame_3, frame_03"),
        (["1_obj1", "2_obj2"], None, 5, "2 of 2 match no frame"),  # which of the two numbers?
        (["0.25", "0.5"], None, 50, "2 of 2 match no frame"),
        (["0", "1"], ["a", "b"], None, "2 of 2 match no frame: 0, 1"),
        (["00003"], None, 3, "1 of 1 match no frame: 00003"),
        (["mask_0", "mask_1"], ["f1", "f2"], None, "1 of 2 match no frame: mask_0"),
    ],
)
def test_what_fits_not_at_all_is_named(
    stems: list[str], names: list[str] | None, length: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        match_frames(stems, names, length, "m")


def test_the_number_is_that_in_which_names_differ() -> None:
    assert numbers_of(["v2_f01_x", "v2_f10_x"]) == [1, 10]
    assert numbers_of(["v2_f01"]) == [1]
    assert numbers_of(["a1", "a"]) is None and numbers_of(["a", "b"]) is None
