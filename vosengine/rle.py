"""COCO's run-length encoding of masks: column-major, background first, as numbers or as text.

Source: the format of the COCO data set, as pycocotools reads and writes it. Decoded here because
pycocotools (2.0.11) returns uninitialised memory for pixels that the runs do not cover.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

# A number is written as characters of 5 bits each, lowest first, offset by 48; all but the last
# have the sixth bit set. 48..79 is 0..O, 80..111 is P..o. A 32-bit number takes at most 7.
_TEXT = re.compile(r"(?:[P-o]{0,6}[0-O])*")


def decode(counts: str | Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Decode runs, as text or as numbers, to a mask, bool [H, W]; `size` is (H, W).

    Raises  ValueError, stating what is wrong with the runs.
    """
    runs = _from_text(counts) if isinstance(counts, str) else _from_numbers(counts)
    height, width = size
    if len(runs) and runs.min() < 0:
        raise ValueError(f"a run of {runs.min()} pixels; wanted 0 or more")
    if runs.max(initial=0) > height * width:  # their sum may overflow
        raise ValueError(f"a run of {runs.max()} pixels in a mask of {height * width}")
    if runs.sum() != height * width:
        raise ValueError(
            f"the runs cover {runs.sum()} pixels; wanted {height} x {width} = {height * width}"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def encode(mask: np.ndarray) -> str:
    """Encode a mask, bool [H, W], as compressed text."""
    pixels = mask.T.ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = [0] if pixels[:1].any() else []  # background first, even if its run is empty
    runs = np.diff(np.concatenate((starts, [0], edges, [pixels.size]))).astype(np.int64)
    values = runs.copy()
    values[3:] -= runs[1:-2]
    return "".join(map(_number_as_text, values.tolist()))


def _number_as_text(value: int) -> str:
    text = ""
    while True:
        bits, value = value & 31, value >> 5
        done = value == (-1 if bits & 16 else 0)
        text += chr(48 + (bits if done else bits | 32))
        if done:
            return text


def _from_numbers(counts: Sequence[int]) -> np.ndarray:
    if not all(type(count) is int and abs(count) < 1 << 32 for count in counts):
        raise ValueError("the runs are not all whole numbers of 32 bits")
    return np.array(counts, np.int64)


def _from_text(text: str) -> np.ndarray:
    """Numbers from text; from the fourth on, each is stored as the difference to the one two
    before it."""
    if not _TEXT.fullmatch(text):
        raise ValueError("the text of the runs is damaged or cut short")
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(codes < 32)
    if not len(last):
        return np.zeros(0, np.int64)
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((codes & 31) << 5 * place, first)
    negative = codes[last] & 16 != 0
    numbers -= negative * (np.int64(1) << 5 * (place[last] + 1))
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers
