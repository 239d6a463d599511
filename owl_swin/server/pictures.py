"""Uploaded pictures: which kinds are read, how large they may be, and what of them waits for the model."""

import hashlib
import io
import warnings
from dataclasses import dataclass, replace
from functools import cache

from PIL import Image

from owl_swin.detector import EncodedImage
from owl_swin.frame import Frame
from owl_swin.image import open_image
from owl_swin.server.problems import Problem

# Kinds of file that are read here: fewer than open_image reads, as decoders that are rarely used are rarely tried.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


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
        return replace(encoded, frame=self.frame)


def content_key(content: bytes) -> bytes:
    """SHA-256 of a file."""
    return hashlib.sha256(content).digest()


@cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)


def check_picture(content: bytes, where: str, *, max_pixels: int) -> None:
    """Looks at the head of a file only; one of another kind, animated, or too large raises Problem."""
    if not content:
        raise Problem("invalid_image", f"{where}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow only warns of is measured here
            with Image.open(io.BytesIO(content), formats=formats()) as image:
                _check_head(image, where, max_pixels)
    except Problem:
        raise
    except Image.DecompressionBombError:
        raise _too_large(where, max_pixels) from None
    except Exception:  # Pillow's plugins have no error in common
        raise Problem(
            "invalid_image", f"{where}: not a picture of a kind that is read here ({', '.join(FORMATS)})"
        ) from None


def read_picture(content: bytes, where: str, *, image_size: int, max_pixels: int, key: bytes) -> Picture:
    """A file as the picture that the model sees; one that cannot be read raises Problem or ImageError."""
    check_picture(content, where, max_pixels=max_pixels)
    try:
        image = open_image(content)
    except ValueError as error:
        raise Problem("invalid_image", f"{where}: {str(error).removeprefix('picture: ')}") from None
    frame = Frame.fit((image.height, image.width), image_size)
    # Pictures wait in the size of the model, not their own: the queue stays small, and resizing is done by the threads
    # that read. The detector then finds nothing left to resize, so that its result is the same to the bit.
    if Frame.fit(frame.model_hw, image_size).model_hw == frame.model_hw:
        height, width = frame.model_hw
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return Picture(key, image, frame)


def _check_head(image: Image.Image, where: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(where, max_pixels, f"{width}x{height} ")
    # A photo of a telephone may carry a second picture (MPO); of an animation nobody can say which frame is meant.
    # Not n_frames, for which Pillow walks through the whole file: 5 s for a GIF of 32 MB.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise Problem("invalid_image", f"{where}: has several frames; send one of them as a picture of its own")


def _too_large(where: str, max_pixels: int, size: str = "") -> Problem:
    return Problem("image_too_large", f"{where}: {size}is more than {max_pixels} pixels, the largest that is read here")
