"""Opening pictures safely, whatever they come as."""

import io
import logging
import os
import stat
import struct
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Union

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from owl_swin.errors import ImageError
from owl_swin.orientation import SWAPS_SIDES
from owl_swin.tiff import tile_pixels

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("owl_swin")

# Pillow's own line between a large picture and a decompression bomb.
MAX_PIXELS = 89_478_485
# The longest side of a JPEG, and of what is read: to shrink a longer one takes many times the memory of its pixels.
MAX_SIDE = 65_535
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

# Of HEIC, as it stands in the file; AVIF's, which Pillow reads, are others.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

ImageSource = Union[str, os.PathLike, bytes, bytearray, memoryview, BinaryIO, Image.Image, np.ndarray, "torch.Tensor"]
# Bits a pixel of grey that cameras and scanners put into 16: the least that hold the brightest pixel are taken.
GREY_BITS = (8, 12, 16)
# Floats of a picture that was resampled or brought back from a network's form may lie a little above white.
OVERSHOOT = 1.05
# What Pillow keeps of 16-bit colours is the upper 8 bits: of colours that are of 12 bits, values up to this.
HIGHEST_OF_12_BITS = 15
# In what Pillow knows of a picture, that it had colours of 16 bits.
DEEP = "owl_swin: 16-bit colours"


def is_picture_name(path: str | os.PathLike[str]) -> bool:
    """Whether a file is called as pictures are, whatever is in it."""
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def open_reduced(source: ImageSource, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """A picture as ``open_image`` gives it, but a JPEG smaller by 2, 4 or 8 where its longer side still keeps ``side``
    pixels, which costs as much less to decode; and the height and width of the whole, upright."""
    return _open(source, MAX_PIXELS, side)


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as RGB, upright (EXIF orientation applied), of a path, bytes, an open file, PIL, an array or a tensor.

    Arrays are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] and tensors [H, W] or [C, H, W]: uint8, uint16, or floats in
    [0, 1] or up to 255. Transparent parts become white; of 16 bits become 8, or of 12 where no value needs more.
    Whatever cannot be read, or has more than ``max_pixels``, raises ImageError with one sentence.
    """
    return _open(source, max_pixels)[0]


def _open(source: ImageSource, max_pixels: int, side: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    name = str(source) if isinstance(source, (str, os.PathLike)) else "picture"
    content = b""
    try:
        with warnings.catch_warnings():
            # What Pillow warns of (large pictures, damaged EXIF) is read all the same, or refused below.
            warnings.simplefilter("ignore")
            if "torch" in sys.modules and isinstance(source, sys.modules["torch"].Tensor):
                return _with_size(rgb_of(_from_array(_of_tensor(source), max_pixels)))
            if isinstance(source, np.ndarray):
                return _with_size(rgb_of(_from_array(source, max_pixels)))
            if isinstance(source, Image.Image):
                image = _checked_size(source, name, max_pixels)
                mark_deep_colours(image)  # for the next time: once it is decoded nothing tells
                deep = _has_deep_colours(image)
                opened = rgb_of(_brightened(image, name, deep))
                if deep:
                    opened = opened.copy() if opened is image else opened
                    opened.info.pop(DEEP, None)
                return _with_size(opened)
            content = file_content(source)
            if not content:
                raise ImageError("the file is empty", of=name)
            with open_header(io.BytesIO(content)) as image:
                _checked_size(image, name, max_pixels)
                height, width = image.height, image.width
                deep = _has_deep_colours(image)
                if side is not None:
                    decode_smaller(image, side)
                image.load()
                lies = image.getexif().get(ExifTags.Base.Orientation) in SWAPS_SIDES
                return rgb_of(_brightened(image, name, deep)), (width, height) if lies else (height, width)
    except ImageError:
        raise
    except Image.DecompressionBombError:  # within a file of several sizes, as icons are
        raise ImageError(f"has more than {max_pixels} pixels, the largest picture that is read", of=name) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"not a picture in a format that is read here (JPEG, PNG, WebP, …){_hint(content)}", of=name
        ) from None
    except Exception as error:  # Pillow's decoders have no root in common: OSError, SyntaxError, struct.error, …
        raise ImageError(f"the picture is damaged or cut off ({error})", of=name) from None


def _hint(content: bytes) -> str:
    """What a file is instead, if its first bytes say so, and what helps."""
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS:
        return ", but HEIC, as phones take it: export it as JPEG"
    if start.startswith(b"%pdf"):
        return ", but a PDF: export its pages as PNG"
    if b"<svg" in start:
        return ", but an SVG drawing: export it as PNG"
    return ", but a web page" if start.startswith((b"<!doctype html", b"<html")) else ""


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of a file's picture as it is stored. Pillow says those of the upright picture of a TIFF, and the
    orientation nevertheless."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return image.size
    return tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]


def decode_smaller(image: Image.Image, side: int) -> None:
    """Has a JPEG, of which only the head was read, decoded smaller by 2, 4 or 8 where its longer side still keeps
    ``side`` pixels; other formats stay whole."""
    share = side / max(image.size)
    image.draft(None, (max(1, int(image.width * share)), max(1, int(image.height * share))))  # type: ignore[arg-type]


def _with_size(image: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    return image, (image.height, image.width)


def open_header(file: BinaryIO) -> Image.Image:
    """A picture of any size of which nothing is decoded; what is in none of readable_formats() raises
    UnidentifiedImageError. Image.open would refuse large ones before anyone can say how they are to be read."""
    start = file.read(16)
    for form in readable_formats():
        factory, accept = Image.OPEN[form]
        try:
            verdict = accept is None or accept(start)
            if isinstance(verdict, str) or not verdict:  # a text is why not
                continue
            file.seek(0)
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # as Image.open takes them: of another format
            continue
    raise UnidentifiedImageError


def pixels_to_decode(image: Image.Image) -> int:
    """Pixels of the picture, or of one tile of its file where that is larger: a tile is decoded whole."""
    pixels = image.width * image.height
    file = getattr(image, "fp", None)
    return max(pixels, tile_pixels(file)) if image.format == "TIFF" and file is not None else pixels


def file_content(source: Any) -> bytes:
    """The bytes of a file, from its path, an open binary file or a buffer."""
    if isinstance(source, (str, os.PathLike)):
        return _read(Path(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if not callable(getattr(source, "read", None)):
        raise ImageError(
            "a picture is a path, the bytes of a file, an open file, a PIL picture, an array or a tensor, "
            f"got {type(source).__name__}"
        )
    content = source.read(MAX_FILE_BYTES + 1)
    if not isinstance(content, bytes):
        raise ImageError('the open file gives no bytes; open it in binary mode, open(path, "rb")')
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"the open file has more than {MAX_FILE_BYTES} bytes, the largest picture file that is read")
    return content


def readable_formats() -> list[str]:
    """What Pillow reads, also what was registered with it by now, but for REFUSED_FORMATS."""
    Image.init()
    return [form for form in Image.ID if form not in REFUSED_FORMATS]


def _read(path: Path) -> bytes:
    try:
        found = path.stat()
        if found.st_size > MAX_FILE_BYTES:
            raise ImageError(f"has more than {MAX_FILE_BYTES} bytes, the largest picture file that is read", of=path)
        if stat.S_ISREG(found.st_mode):
            return path.read_bytes()
        with path.open("rb") as file:  # a pipe or a device, which says no size and may have no end
            return file_content(file)
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"cannot read this file ({reason})", of=path) from None


def _checked_size(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if pixels_to_decode(image) > max_pixels:
        raise ImageError(
            f"{width}x{height} is more than {max_pixels} pixels, the largest picture that is read", of=name
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{width}x{height} has a side of more than {MAX_SIDE} pixels, the longest that is read", of=name
        )
    if not width or not height:
        raise ImageError(f"the picture has no pixels ({width}x{height})", of=name)
    return image


def _of_tensor(tensor: "torch.Tensor") -> np.ndarray[Any, Any]:
    """A tensor [H, W] or [C, H, W] of any device as an array [H, W] or [H, W, C]."""
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise ImageError(
            f"a tensor picture must be [H, W], [1, H, W], [3, H, W] or [4, H, W], got {list(tensor.shape)}"
        )
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy knows no bfloat16
    return (tensor if tensor.ndim == 2 else tensor.permute(1, 2, 0)).numpy()


def _from_array(array: np.ndarray[Any, Any], max_pixels: int) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"an array picture must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {array.dtype} {list(array.shape)}"
        )
    if 0 in array.shape:
        raise ImageError(f"the picture has no pixels ({array.shape[1]}x{array.shape[0]})")
    if array.shape[0] * array.shape[1] > max_pixels:  # before any copy
        height, width = array.shape[:2]
        raise ImageError(f"{width}x{height} is more than {max_pixels} pixels, the largest picture that is read")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype.newbyteorder("=") == np.uint16:  # TIFF and PGM readers give the byte order of the file
        array = to_8_bits(array)
    elif array.dtype.kind == "f":
        array = _of_floats(array)
    elif array.dtype != np.uint8:
        raise ImageError(f"an array picture must be uint8, uint16 or floats, got {array.dtype} {list(array.shape)}")
    return Image.fromarray(array)


def _of_floats(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Fractions, or values up to 255, as uint8; what was normalised for a network, or is no number, is refused."""
    low, high = float(array.min()), float(array.max())
    if not 0 <= low <= high <= 255:  # NaN fails this too
        raise ImageError(f"a picture of floats must hold values in [0, 1], or in [0, 255], got {low:g} to {high:g}")
    return _shades(array, high)


def _shades(values: np.ndarray[Any, Any], high: float) -> np.ndarray[Any, Any]:
    """Floats, of which ``high`` is the highest, as uint8: fractions, or values of 8, 12 or 16 bits."""
    white = next((white for white in (1, *(2**bits - 1 for bits in GREY_BITS)) if high <= white * OVERSHOOT), None)
    if white is None:
        raise ImageError(f"a picture of floats must hold values in [0, 1], or of 8, 12 or 16 bits, got up to {high:g}")
    return (values.astype(np.float32) * np.float32(255 / white)).clip(0, 255).round().astype(np.uint8)


def mark_deep_colours(image: Image.Image) -> None:
    """Has a file, of which only the head was read, remember that its colours are of 16 bits; of one that was decoded
    nothing tells."""
    if _has_deep_colours(image):
        image.info[DEEP] = True


def _has_deep_colours(image: Image.Image) -> bool:
    """Whether a file, of which only the head was read, has colours of 16 bits: Pillow keeps the upper 8 of each."""
    tile: Any = next(iter(getattr(image, "tile", ())), None)
    deep = DEEP in image.info or (tile is not None and ";16" in str(tile[3]))
    return deep and image.mode in ("RGB", "RGBA")


def _brightened(image: Image.Image, name: str, deep: bool) -> Image.Image:
    """The picture, brightened where its 16-bit colours, which are ``deep``, hold 12 bits: it would be black. Of these,
    four bits are left."""
    highest = max(high for _, high in image.getextrema()[:3]) if deep else 255  # type: ignore[misc]
    if not 0 < highest <= HIGHEST_OF_12_BITS:
        return image
    logger.warning("%s: its 16-bit colours are dark, or of 12 bits; read with 16 shades of each, brightened", name)
    curve = [min(255, value * 17) for value in range(256)]
    return image.point(curve * 3 + list(range(256)) * (image.mode == "RGBA"))


def to_8_bits(values: np.ndarray[Any, Any], highest: int | None = None) -> np.ndarray[Any, Any]:
    """16-bit values as uint8; values that are all of 12 or 8 bits are taken as such, or they would be black.

    ``highest`` is that of the whole picture, where these are a part of one.
    """
    highest = int(values.max(initial=0)) if highest is None else highest
    bits = next((bits for bits in GREY_BITS if highest < 2**bits), GREY_BITS[-1])
    scaled = values.astype(np.float32) * np.float32(255 / (2**bits - 1))
    return scaled.clip(0, 255).round().astype(np.uint8)


def rgb_of(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, upright."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey, as PNG and TIFF hold it
        return Image.fromarray(to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        known = values[np.isfinite(values)]
        high = float(known.max(initial=0))
        return Image.fromarray(_shades(np.nan_to_num(values, nan=0.0, posinf=high, neginf=0.0), high)).convert("RGB")
    if image.mode == "La":  # Pillow takes premultiplied grey no further than this
        image = image.convert("LA")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
