"""Masks in COCO's run-length encoding: column by column, how many pixels are outside, inside, outside, ….

``{"size": [height, width], "counts": …}``, where counts are whole numbers, or the text that pycocotools makes of them
("compressed"): each number less the one two before it, from the fourth on, in digits of five bits, the lowest first.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from owl_swin.errors import DataError

# Bits of a digit, that which says that another digit follows, and the character of the digit 0.
DIGIT_BITS, MORE, ZERO = 5, 32, 48
# No number of a picture has more digits.
MOST_DIGITS = 12


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """The compressed encoding of a mask [H, W]."""
    height, width = mask.shape
    pixels = np.asarray(mask, dtype=bool).ravel(order="F")
    ends = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    first = [0, 0] if pixels.size and pixels[0] else [0]
    counts = np.diff(np.concatenate([first, ends, [pixels.size]]))
    return {"size": [height, width], "counts": compressed(counts)}


def decode_rle(rle: Any) -> np.ndarray:
    """The mask [H, W] of an encoding, compressed or not; a damaged one raises DataError."""
    height, width = rle_size(rle)
    counts = rle_counts(rle)
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def rle_area(rle: Any) -> int:
    """How many pixels are inside."""
    return int(rle_counts(rle)[1::2].sum())


def rle_size(rle: Any) -> tuple[int, int]:
    """(height, width) of an encoding; DataError where it says none."""
    size = rle.get("size") if isinstance(rle, Mapping) else None
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise DataError(f"a mask needs a size [height, width] in pixels, got {size!r}")
    return size[0], size[1]


def rle_counts(rle: Any) -> np.ndarray:
    """The counts of an encoding as whole numbers, which together are all its pixels; else DataError."""
    height, width = rle_size(rle)
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        numbers = _decompressed(counts.encode() if isinstance(counts, str) else counts)
    elif isinstance(counts, (list, tuple)) and all(type(n) is int and abs(n) < 2**62 for n in counts):
        numbers = np.array(counts, dtype=np.int64)
    else:
        raise DataError("the counts of a mask must be whole numbers, or the text that COCO makes of them")
    if ((numbers < 0) | (numbers > height * width)).any() or numbers.sum() != height * width:
        raise DataError(f"a mask of {width}x{height} pixels has {height * width}, its counts say otherwise")
    return numbers


def compressed(counts: np.ndarray) -> str:
    """The text of counts, as pycocotools writes it."""
    rest = np.array(counts, dtype=np.int64)
    rest[3:] -= counts[1:-2]
    digits = np.zeros((len(rest), MOST_DIGITS), dtype=np.uint8)
    used = np.zeros(digits.shape, dtype=bool)
    open_ = np.ones(len(rest), dtype=bool)
    for place in range(MOST_DIGITS):
        if not open_.any():
            break
        digit, rest = rest & (MORE - 1), rest >> DIGIT_BITS
        # The highest bit of the last digit is the sign.
        goes_on = np.where(digit & (MORE >> 1), rest != -1, rest != 0)
        digits[:, place] = digit + MORE * goes_on + ZERO
        used[:, place] = open_
        open_ = open_ & goes_on
    return digits[used].tobytes().decode("ascii")


def _decompressed(text: bytes) -> np.ndarray:
    digits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - ZERO
    if len(digits) and not (digits.min() >= 0 and digits.max() < 2 * MORE and digits[-1] < MORE):
        raise DataError("the counts of a mask are no text of COCO's run-length encoding")
    ends = np.flatnonzero(digits < MORE)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if len(place) and place.max() >= MOST_DIGITS:
        raise DataError("the counts of a mask are no text of COCO's run-length encoding")
    values = np.add.reduceat((digits & (MORE - 1)) << DIGIT_BITS * place, starts) if len(ends) else ends
    negative = digits[ends] & (MORE >> 1) != 0
    numbers = values - (negative.astype(np.int64) << DIGIT_BITS * (place[ends] + 1)) if len(ends) else values
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers
