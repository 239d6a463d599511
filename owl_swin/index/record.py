"""All that a region has but its vector in one value of bytes: a column store reads one column sooner than a dozen."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from owl_swin.index.store import Regions

NUMBERS = np.dtype(
    [
        ("number", "<i4"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("modified", "<f8"),
        ("objectness", "<f4"),
        ("shift", "<f4"),
        ("scale", "<f4"),
        ("boxes", "<f4", 4),
    ]
)
# After the numbers, with a zero byte between any two: only the last, the path, might hold one.
TEXTS = ("picture", "image_id", "path")


def pack(regions: Regions) -> list[bytes]:
    """One record a region."""
    numbers = np.zeros(len(regions), NUMBERS)
    for name in NUMBERS.names or ():
        numbers[name] = getattr(regions, name)
    texts = zip(*(getattr(regions, name) for name in TEXTS), strict=True)
    return [row.tobytes() + "\0".join(text).encode() for row, text in zip(numbers, texts, strict=True)]


def unpack(records: Sequence[bytes]) -> dict[str, np.ndarray[Any, Any]]:
    """The columns of Regions out of their records, all but ``embeds``."""
    size = NUMBERS.itemsize
    numbers = np.frombuffer(b"".join(record[:size] for record in records), NUMBERS)
    columns = {name: np.ascontiguousarray(numbers[name]) for name in NUMBERS.names or ()}
    texts = np.empty((len(records), len(TEXTS)), object)
    for row, record in enumerate(records):
        texts[row] = record[size:].decode().split("\0", len(TEXTS) - 1)
    return columns | dict(zip(TEXTS, texts.T, strict=True))
