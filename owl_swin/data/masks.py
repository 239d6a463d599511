"""Masks of things as sets hold them in memory: small, and made into pixels when a picture is drawn."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from owl_swin.data.map_files import read_segment_map
from owl_swin.rle import decode_rle

# Label maps that are kept decoded: those of the pictures on one canvas.
KEPT_MAPS = 16


class Mask(Protocol):
    """The mask of one thing."""

    def pixels(self) -> np.ndarray:
        """Which pixels [H, W] of the picture it covers; H and W may be those of a smaller or larger copy of it. A file
        that cannot be read raises ImageError."""
        ...


@dataclass(frozen=True, slots=True)
class CodedMask:
    """A mask in COCO's run-length encoding: size [height, width] and the text of its counts, checked before."""

    hw: tuple[int, int]
    counts: str

    @classmethod
    def of(cls, rle: dict[str, Any]) -> "CodedMask":
        """The mask of an encoding that was checked."""
        return cls((rle["size"][0], rle["size"][1]), rle["counts"])

    def pixels(self) -> np.ndarray:
        """Which pixels [H, W] it covers."""
        return decode_rle({"size": list(self.hw), "counts": self.counts})


@dataclass(frozen=True, slots=True)
class LabelledPart:
    """The pixels of a map in COCO's panoptic form that hold ``value``."""

    source: Path
    value: int

    def pixels(self) -> np.ndarray:
        """Which pixels [H, W] it covers."""
        return _segments(self.source) == self.value


@lru_cache(maxsize=KEPT_MAPS)
def _segments(source: Path) -> np.ndarray:
    return read_segment_map(source)
