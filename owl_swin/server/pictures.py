"""Uploaded pictures: which kinds are read, how large they may be, and what of them waits for the model."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

from PIL import ExifTags, Image

from owl_swin.detector import Detector
from owl_swin.encoded import PreparedImage
from owl_swin.errors import ImageError
from owl_swin.exemplar import check_box
from owl_swin.huge import open_parts
from owl_swin.image import (
    MAX_PIXELS,
    MAX_SIDE,
    decode_smaller,
    mark_deep_colours,
    open_header,
    open_image,
    open_reduced,
    pixels_to_decode,
    stored_size,
)
from owl_swin.server.problems import Problem
from owl_swin.tiling import Tiles

# Kinds of file that are read here: fewer than open_image reads, as decoders that are rarely used are rarely tried.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# A JPEG is decoded at a half, a quarter or an eighth of its size as long as so many of its pixels stand for one of the
# model's, along each side.
DRAFT_GAP = 2
# What of an exemplar's picture is kept around its box, on each side in shares of its longer side, and the fewest pixels
# to which that side is reduced: more than the model is shown of either.
MARGIN, EXEMPLAR_PX = 1.0, 256
# Longer side of a picture on which something is drawn, as a screen shows it.
DRAWN_PX = 2048
# EXIF orientations that lay a picture on its side.
ON_ITS_SIDE = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in the size of the model; ``key`` is the hash of its file. What becomes of it may be kept, but not of a
    tile, of which there are too many. With ``masks`` it is encoded for those too."""

    key: bytes
    prepared: PreparedImage
    keep: bool = True
    masks: bool = False

    @property
    def shape(self) -> tuple[int, int, bool]:
        """Pictures of one model size that are encoded for the same share a batch."""
        return *self.prepared.frames[0].model_hw, self.masks


@dataclass(frozen=True, slots=True)
class Cost:
    """What a picture is by its head: all its pixels, how many of RGB take the memory that decoding it takes, and its
    sides as they are stored, upright or not."""

    pixels: int
    decoded: int
    sides: tuple[int, int] = (0, 0)


def content_key(content: bytes) -> bytes:
    """SHA-256 of a file."""
    return hashlib.sha256(content).digest()


@cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)


def check_picture(content: bytes, where: str, *, max_pixels: int) -> Cost:
    """Looks at the head of a file only; one of another kind, animated, or too large raises Problem."""
    with _opened(content, where, max_pixels) as image:
        _check_kind(image, where)
        return _cost(image)


def check_archived(source: bytes | str, where: str) -> Cost:
    """The same of a picture of an archive, bytes or a file: it may be all that ``open_image`` reads, and of an archive
    in tiles also larger."""
    try:
        with open(source, "rb") if isinstance(source, str) else io.BytesIO(source) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _cost(open_header(file))
    except Exception:  # Pillow's plugins have no error in common
        raise Problem("invalid_image", f"{where}: its file cannot be read as a picture any more") from None


def _cost(image: Image.Image) -> Cost:
    pixels = pixels_to_decode(image)
    if image.mode.startswith(("I", "F")):  # becomes numbers of 8 bytes on its way to RGB
        return Cost(pixels, 4 * pixels, image.size)
    if image.format == "JPEG" and not image.info.get("progressive"):  # is decoded row by row
        return Cost(pixels, pixels // 4, image.size)
    return Cost(pixels, pixels if image.mode in ("1", "L", "RGB") else 2 * pixels, image.size)


def read_picture(
    detector: Detector, content: bytes, where: str, *, max_pixels: int, key: bytes, masks: bool = False
) -> Picture:
    """A file as the picture that the model is given; one that cannot be read raises Problem.

    Pictures wait in the size of the model, not their own: the queue stays small, and the threads of the model only run
    the model. But for JPEGs that were decoded at a part of their size it is to the bit what the detector makes itself.
    """
    with _opened(content, where, max_pixels) as image:
        image_hw = _upright_hw(image)
        decode_smaller(image, DRAFT_GAP * detector.image_size)
        prepared = detector.prepare(_upright(image, where))
    frames = tuple(replace(frame, image_hw=image_hw) for frame in prepared.frames)
    return Picture(key, PreparedImage(frames, prepared.pixels), masks=masks)


def read_tiles(
    detector: Detector, content: bytes, where: str, tiles: Tiles, *, max_pixels: int, key: bytes, masks: bool = False
) -> Iterator[tuple[int, Picture]]:
    """A file as the picture and the tiles of it that the model is given, numbered as ``Detector.views`` numbers them.

    It is decoded at once and whole; one that cannot be read raises Problem.
    """
    with _opened(content, where, max_pixels) as image:
        upright = _upright(image, where)
    shown = detector.prepare_views(upright, tiles=tiles)
    return ((n, Picture(b"%b %d" % (key, n), prepared, keep=False, masks=masks)) for n, prepared in shown)


def read_thumbnail(source: bytes | str, where: str, size_px: int, cost: Cost) -> bytes:
    """A picture of an archive as a JPEG of at most so many pixels a side; one that cannot be read raises Problem."""
    try:
        if cost.pixels > MAX_PIXELS:
            with open_parts(source) as parts:
                small = parts.reduced(size_px)
        else:
            small, _ = open_reduced(source, DRAFT_GAP * size_px)
    except ImageError as error:
        raise Problem("invalid_image", f"{where}: {error.reason}") from None
    small.thumbnail((size_px, size_px))
    made = io.BytesIO()
    small.save(made, "JPEG", quality=85)
    return made.getvalue()


def draw_on(
    content: bytes,
    where: str,
    paint: Callable[[Image.Image], Image.Image],
    *,
    max_pixels: int,
    side_px: int = DRAWN_PX,
    form: str = "PNG",
) -> bytes:
    """What ``paint`` makes of a picture, or of a copy of at most so many pixels a side, as PNG or JPEG."""
    with _opened(content, where, max_pixels) as image:
        decode_smaller(image, DRAFT_GAP * side_px)
        small = _upright(image, where)
    small.thumbnail((side_px, side_px))
    return image_file(paint(small), form)


def image_file(image: Image.Image, form: str) -> bytes:
    """A picture as a file, PNG or JPEG."""
    made = io.BytesIO()
    image.save(made, form, compress_level=3, quality=90)
    return made.getvalue()


def read_exemplar(
    content: bytes, where: str, box_xyxy: Sequence[float] | None, *, image_size: int, max_pixels: int
) -> tuple[Image.Image, tuple[float, ...] | None]:
    """What the model needs of an exemplar: a picture not much larger than the model's, and the box in it.

    With a box it is what is around the box. A box that shows nothing of the picture raises QueryError.
    """
    if box_xyxy is None:
        with _opened(content, where, max_pixels) as image:
            decode_smaller(image, DRAFT_GAP * image_size)
            upright = _upright(image, where)
        return upright.reduce(max(1, max(upright.size) // (DRAFT_GAP * image_size))), None
    with _opened(content, where, max_pixels) as image:
        upright = _upright(image, where)
    inside = check_box(box_xyxy, (upright.height, upright.width)).tolist()
    x0, y0, x1, y1 = inside
    side = max(x1 - x0, y1 - y0)
    reach = MARGIN * side + 2
    crop = (
        max(0, int(x0 - reach)),
        max(0, int(y0 - reach)),
        min(upright.width, int(x1 + reach) + 1),
        min(upright.height, int(y1 + reach) + 1),
    )
    factor = max(1, int(side // EXEMPLAR_PX))
    corners = zip(inside, (*crop[:2], *crop[:2]), strict=True)
    return upright.crop(crop).reduce(factor), tuple((value - start) / factor for value, start in corners)


@contextmanager
def _opened(content: bytes, where: str, max_pixels: int) -> Iterator[Image.Image]:
    """The picture of a file whose head was read, of one of FORMATS, and not too large."""
    if not content:
        raise Problem("invalid_image", f"{where}: the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow only warns of is measured here
        try:
            image = Image.open(io.BytesIO(content), formats=formats())
        except Image.DecompressionBombError:
            raise _too_large(where, max_pixels) from None
        except Exception:  # Pillow's plugins have no error in common
            raise Problem(
                "invalid_image", f"{where}: not a picture of a kind that is read here ({', '.join(FORMATS)})"
            ) from None
    with image:
        mark_deep_colours(image)
        _check_size(image, where, max_pixels)
        yield image


def _check_size(image: Image.Image, where: str, max_pixels: int) -> None:
    width, height = image.size
    if pixels_to_decode(image) > max_pixels:
        raise _too_large(where, max_pixels, f"{width}x{height} ")
    if max(width, height) > MAX_SIDE:
        detail = f"{where}: {width}x{height} has a side of more than {MAX_SIDE} pixels, the longest that is read here"
        raise Problem("image_too_large", detail)


def _check_kind(image: Image.Image, where: str) -> None:
    # A step of a few bytes may skip hundreds of rows, which Pillow fills in one by one.
    if any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", ())):
        raise Problem("invalid_image", f"{where}: a compressed BMP is not read here; send it uncompressed, or as PNG")
    # A photo of a telephone may carry a second picture (MPO); of an animation nobody can say which frame is meant.
    # Not n_frames, for which Pillow walks through the whole file.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise Problem("invalid_image", f"{where}: has several frames; send one of them as a picture of its own")


def _too_large(where: str, max_pixels: int, size: str = "") -> Problem:
    return Problem("image_too_large", f"{where}: {size}is more than {max_pixels} pixels, the largest that is read here")


def _upright(image: Image.Image, where: str) -> Image.Image:
    """The picture as the detector reads it."""
    try:
        return open_image(image)
    except ImageError as error:
        raise Problem("invalid_image", f"{where}: {error.reason}") from None


def _orientation(image: Image.Image) -> int:
    """How EXIF says that the picture is turned, 1 for not at all; EXIF that cannot be read says nothing here."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # what is damaged is refused when the picture is opened, as the detector would
        return 1


def _upright_hw(image: Image.Image) -> tuple[int, int]:
    width, height = stored_size(image)
    return (width, height) if _orientation(image) in ON_ITS_SIDE else (height, width)
