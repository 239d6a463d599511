"""Opening pictures safely, whatever they come as."""

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from owl_swin.errors import ImageError

# Pillow's own line between a large picture and a decompression bomb.
MAX_PIXELS = 89_478_485
# A file beyond this is no picture: the largest one above, uncompressed, with 8 bytes a pixel, is smaller.
MAX_FILE_BYTES = 2**30

# Formats of Pillow that are not read, whatever a file is called: EPS starts Ghostscript, WMF the drawing of Windows,
# the next three any program that was registered, and IPTC opens a file inside of it of any format.
REFUSED_FORMATS = frozenset(("EPS", "WMF", "BUFR", "GRIB", "HDF5", "IPTC"))

# Endings of picture files in a folder: what Pillow reads and cameras, phones and the web write, the common ones first.
PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jpe", ".jfif", ".mpo", ".avif", ".heic"),
    *(".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
)

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray


def is_picture_name(path: str | os.PathLike[str]) -> bool:
    """Whether a file is called as pictures are, whatever is in it."""
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def open_image(source: ImageSource) -> Image.Image:
    """A picture as RGB, upright (EXIF orientation applied), from a path, file bytes, a PIL picture or an array.

    Arrays are [H, W], [H, W, 3] or [H, W, 4], uint8. Transparent parts become white, 16-bit grey becomes 8-bit.
    Whatever cannot be read raises ImageError with one sentence.
    """
    if not isinstance(source, (str, os.PathLike, bytes, Image.Image, np.ndarray)):
        raise ImageError(
            f"a picture is a path, the bytes of a file, a PIL picture or a uint8 array, got {type(source).__name__}"
        )
    name = str(source) if isinstance(source, (str, os.PathLike)) else "picture"
    try:
        with warnings.catch_warnings():
            # What Pillow warns of (large pictures, damaged EXIF) is read all the same, or refused below.
            warnings.simplefilter("ignore")
            if isinstance(source, np.ndarray):
                return _to_rgb(_from_array(source))
            if isinstance(source, Image.Image):
                return _to_rgb(_checked_size(source, name))
            content = source if isinstance(source, bytes) else _read(Path(source))
            if not content:
                raise ImageError(f"{name}: the file is empty")
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                _checked_size(image, name)
                image.load()
                return _to_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: has more than {MAX_PIXELS} pixels, the largest picture that is read") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture in a format that is read here (JPEG, PNG, WebP, …)") from None
    except Exception as error:  # Pillow's decoders have no root in common: OSError, SyntaxError, struct.error, …
        raise ImageError(f"{name}: the picture is damaged or cut off ({error})") from None


def _formats() -> list[str]:
    """What Pillow reads, also what was registered with it by now, but for REFUSED_FORMATS."""
    Image.init()
    return [form for form in Image.ID if form not in REFUSED_FORMATS]


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"{path}: has more than {MAX_FILE_BYTES} bytes, the largest picture file that is read")
        return path.read_bytes()
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{path}: cannot read this file ({reason})") from None


def _checked_size(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}x{height} is more than {MAX_PIXELS} pixels, the largest picture that is read")
    if not width or not height:
        raise ImageError(f"{name}: the picture has no pixels ({width}x{height})")
    return image


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(
            f"an array picture must be uint8 [H, W], [H, W, 3] or [H, W, 4], got {array.dtype} {list(array.shape)}"
        )
    if 0 in array.shape:
        raise ImageError(f"the picture has no pixels ({array.shape[1]}x{array.shape[0]})")
    return _checked_size(Image.fromarray(array), "picture")


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey, as PNG and TIFF hold it
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray((values / 257).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0, posinf=255.0, neginf=0.0)
        values = values * 255 if values.max(initial=0) <= 1 else values
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode == "La":  # Pillow takes premultiplied grey no further than this
        image = image.convert("LA")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
