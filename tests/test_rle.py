"""Masks as run lengths, against pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as pycocotools

from owl_swin.errors import DataError
from owl_swin.rle import compressed, decode_rle, encode_rle, rle_counts


def blocks(height, width):
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 5 : height // 2, width // 9 : width // 3] = True
    mask[height // 3 :, width // 2 :] = True
    return mask


MASKS = {
    "one outside": np.zeros((1, 1), dtype=bool),
    "one inside": np.ones((1, 1), dtype=bool),
    "all outside": np.zeros((20, 31), dtype=bool),
    "all inside": np.ones((20, 31), dtype=bool),
    "a line": blocks(1, 4000),
    "a column": blocks(4000, 1),
    "large": blocks(900, 1300),
    "noise": np.random.default_rng(0).random((37, 53)) < 0.3,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_encodings_are_those_of_pycocotools(mask):
    own, theirs = encode_rle(mask), pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert own == {"size": list(mask.shape), "counts": theirs["counts"].decode()}
    plain = {"size": own["size"], "counts": rle_counts(theirs).tolist()}
    for form in (own, theirs, plain):
        assert np.array_equal(decode_rle(form), mask)


def test_long_run_lengths_are_written_in_full():
    counts, size = [2**31, 5, 3, 2**20, 7, 1], [2**16, 2**16]
    expected = pycocotools.frPyObjects({"counts": counts, "size": size}, *size)
    assert compressed(np.array(counts)) == expected["counts"].decode()


@pytest.mark.parametrize(
    "counts", [None, {}, "", "0", "PP", "é", "~", "o" * 20 + "0", b"\xff", [], [1, 2], [7, -1], [10**30], [2.0, 4.0]]
)
def test_damaged_counts_are_said(counts):
    with pytest.raises(DataError, match="mask"):
        decode_rle({"size": [2, 3], "counts": counts})


@pytest.mark.parametrize(
    "rle", [None, [], {"counts": [6]}, {"size": [2], "counts": [2]}, {"size": [0, 3], "counts": []}]
)
def test_a_mask_without_a_size_is_said(rle):
    with pytest.raises(DataError, match=r"size \[height, width\]"):
        decode_rle(rle)
