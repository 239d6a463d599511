"""Files of maps, pictures whose pixels are numbers: of a class, or of a segment of the picture."""

from collections.abc import Container
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from owl_swin.errors import ImageError
from owl_swin.image import MAX_PIXELS, open_header

# Modes of pictures with one number a pixel.
LABEL_MODES = {"1", "L", "P", "I;16", "I;16L", "I;16B", "I"}


def read_label_map(path: Path) -> np.ndarray:
    """The numbers [H, W] int32 of a label map, without a look at its palette; what is none raises ImageError."""
    return _read(path, LABEL_MODES, "a label map has one number a pixel").astype(np.int32)


def read_segment_map(path: Path) -> np.ndarray:
    """The numbers [H, W] int32 of a map in COCO's panoptic form, red + 256 · green + 256² · blue; what is none raises
    ImageError."""
    return _read(path, ("RGB",), "a panoptic map is RGB").astype(np.int32) @ np.array([1, 256, 256**2], np.int32)


def _read(path: Path, modes: Container[str], wanted: str) -> np.ndarray:
    """The values of a picture of some modes; ``wanted`` says of another one what was expected."""
    try:
        with open(path, "rb") as file, open_header(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"has more than {MAX_PIXELS} pixels, the largest map that is read", of=str(path))
            if image.mode not in modes:
                raise ImageError(f"{wanted}, this is of the kind {image.mode}", of=str(path))
            return np.array(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not a picture in a format that is read here", of=str(path)) from None
    except Exception as error:  # Pillow's decoders have no root in common
        raise ImageError(f"the map is damaged or cut off ({error})", of=str(path)) from None
