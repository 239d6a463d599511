"""Uploaded pictures: which kinds are read, how large they may be, and what of them waits for the model."""

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from PIL import ExifTags, Image

from owl_swin.encoded import EncodedImage, View
from owl_swin.errors import ImageError
from owl_swin.exemplar import check_box
from owl_swin.frame import Frame
from owl_swin.image import open_image
from owl_swin.server.problems import Problem

# Kinds of file that are read here: fewer than open_image reads, as decoders that are rarely used are rarely tried.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# A JPEG is decoded at a half, a quarter or an eighth of its size as long as so many of its pixels stand for one of the
# model's, along each side.
DRAFT_GAP = 2
# What of an exemplar's picture is kept around its box, on each side in shares of its longer side, and the fewest pixels
# to which that side is reduced: more than the model is shown of either.
MARGIN, EXEMPLAR_PX = 1.0, 256
# EXIF orientations that lay a picture on its side.
ON_ITS_SIDE = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in the size that the model sees, and the frame that leads back to the caller's pixels.

    ``key`` is the hash of its file.
    """

    key: bytes
    image: Image.Image
    frame: Frame

    @property
    def shape(self) -> tuple[int, int]:
        """Pictures of one model size share a batch."""
        return self.frame.model_hw

    def own(self, encoded: EncodedImage) -> EncodedImage:
        """The encoding of ``image`` as that of the whole picture."""
        return EncodedImage((View(encoded.embeddings, self.frame),))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a picture is by its head: all its pixels, and how many of RGB take the memory that decoding it takes."""

    pixels: int
    decoded: int


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
        pixels = image.width * image.height
        if image.mode.startswith(("I", "F")):  # becomes numbers of 8 bytes on its way to RGB
            return Cost(pixels, 4 * pixels)
        if image.format == "JPEG" and not image.info.get("progressive"):  # is decoded row by row
            return Cost(pixels, pixels // 4)
        return Cost(pixels, pixels if image.mode in ("1", "L", "RGB") else 2 * pixels)


def read_picture(content: bytes, where: str, *, image_size: int, max_pixels: int, key: bytes) -> Picture:
    """A file as the picture that the model sees; one that cannot be read raises Problem or ImageError."""
    with _opened(content, where, max_pixels) as image:
        frame = Frame.fit(_upright_hw(image), image_size)
        gap = DRAFT_GAP * max(frame.model_hw)
        image.draft(None, (gap, gap))  # of other formats than JPEG this does nothing
        # Pictures wait in the size of the model, not their own: the queue stays small, and resizing is done by the
        # threads that read. The detector then finds nothing left to resize, so that its result is the same to the bit.
        fits = Frame.fit(frame.model_hw, image_size).model_hw == frame.model_hw
        grey = image.mode == "L" and "transparency" not in image.info and _orientation(image) == 1
        if fits and grey:  # as RGB it would take three times the memory, for the same result
            image = _loaded(image, where).resize(frame.model_hw[::-1], Image.Resampling.BILINEAR)
        upright = _upright(image, where)
        if fits and not grey:
            upright = upright.resize(frame.model_hw[::-1], Image.Resampling.BILINEAR)
    return Picture(key, upright, frame)


def read_exemplar(
    content: bytes, where: str, box_xyxy: Sequence[float] | None, *, image_size: int, max_pixels: int
) -> tuple[Image.Image, tuple[float, ...] | None]:
    """What the model needs of an exemplar: without a box the picture in the model's size, else what is around the box,
    and the box in it. A box that shows nothing of the picture raises QueryError."""
    if box_xyxy is None:
        return read_picture(content, where, image_size=image_size, max_pixels=max_pixels, key=b"").image, None
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
    cut = upright.crop(crop)
    factor = max(1, int(side // EXEMPLAR_PX))
    if factor > 1:
        cut = cut.reduce(factor)
    return cut, tuple((value - start) / factor for value, start in zip(inside, (*crop[:2], *crop[:2]), strict=True))


@contextmanager
def _opened(content: bytes, where: str, max_pixels: int) -> Iterator[Image.Image]:
    """The picture of a file whose head was read and found good."""
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
        _check_head(image, where, max_pixels)
        yield image


def _check_head(image: Image.Image, where: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(where, max_pixels, f"{width}x{height} ")
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
        raise Problem("invalid_image", f"{where}: {str(error).removeprefix('picture: ')}") from None


def _loaded(image: Image.Image, where: str) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # Pillow's decoders have no error in common
        raise Problem("invalid_image", f"{where}: the picture is damaged or cut off ({error})") from None
    return image


def _orientation(image: Image.Image) -> int:
    """How EXIF says that the picture is turned, 1 for not at all; EXIF that cannot be read says nothing here."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # what is damaged is refused when the picture is opened, as the detector would
        return 1


def _upright_hw(image: Image.Image) -> tuple[int, int]:
    on_its_side = _orientation(image) in ON_ITS_SIDE
    return (image.width, image.height) if on_its_side else (image.height, image.width)
