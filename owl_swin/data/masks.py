"""Masks of things as sets hold them in memory: small, and made into pixels when a picture is drawn."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from owl_swin.errors import ImageError
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
    """The pixels of a label map, a picture of numbers, that hold ``value``."""

    source: Path
    value: int

    def pixels(self) -> np.ndarray:
        """Which pixels [H, W] it covers."""
        return label_map(self.source) == self.value


@lru_cache(maxsize=KEPT_MAPS)
def label_map(source: Path) -> np.ndarray:
    """The numbers [H, W] of a picture: those of its one channel, or red + 256 · green + 256² · blue, as COCO's panoptic
    form has them. One that cannot be read, or is of another kind, raises ImageError."""
    try:
        with Image.open(source) as file:
            if file.mode in ("P", "L", "1"):
                return np.array(file)
            if file.mode.startswith("I"):
                return np.array(file).astype(np.int64)
            if file.mode != "RGB":
                raise ImageError(f"{source}: a label map has one channel, or three, not the form {file.mode}")
            red, green, blue = np.moveaxis(np.array(file).astype(np.int64), -1, 0)
            return red + 256 * green + 256**2 * blue
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders have no root in common
        raise ImageError(f"{source}: cannot be read as a label map ({error})") from None
