"""Pictures in and out: opening files safely, and the resize that fits the model with its inverse."""

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from owl_swin.boxes import clip, cxcywh_to_xyxy, xyxy_to_cxcywh
from owl_swin.errors import ImageError, QueryError

# Mean and deviation that torchvision, timm and the published Swin weights use.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

# Pillow's own line between a large picture and a decompression bomb.
MAX_PIXELS = 89_478_485
# A file beyond this is no picture: the largest one above, uncompressed, with 8 bytes a pixel, is smaller.
MAX_FILE_BYTES = 2**30
# Sides of the model frame are multiples of this: the stride of Swin's last stage.
FRAME_MULTIPLE = 32
MAX_FRAME_SIDE = 4096

# Formats of Pillow that are not read, whatever a file is called: EPS starts Ghostscript, WMF the drawing of Windows,
# the next three any program that was registered, and IPTC opens a file inside of it of any format.
REFUSED_FORMATS = frozenset(("EPS", "WMF", "BUFR", "GRIB", "HDF5", "IPTC"))

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray


@dataclass(frozen=True, slots=True)
class Frame:
    """How one picture lies in the model frame, and the way back.

    ``image_hw`` is the caller's picture, ``model_hw`` the frame that the network sees, ``content_hw`` the top left part
    of the frame that the picture fills (all of it, unless the frame is padded to a square). All in pixels.
    """

    image_hw: tuple[int, int]
    model_hw: tuple[int, int]
    content_hw: tuple[int, int]

    @staticmethod
    def fit(image_hw: tuple[int, int], long_side: int) -> "Frame":
        """The frame of a picture whose longer side becomes ``long_side``; both sides rounded to multiples of 32.

        Rounding moves a side by at most 16 pixels, but no side is under 32; nothing is padded.
        """
        scale = long_side / max(image_hw)
        height, width = (max(1, round(side * scale / FRAME_MULTIPLE)) * FRAME_MULTIPLE for side in image_hw)
        return Frame(image_hw, (height, width), (height, width))

    @staticmethod
    def letterbox(image_hw: tuple[int, int], side: int) -> "Frame":
        """The square frame that OWL-ViT uses: the picture at the top left, padding at the bottom or right."""
        scale = side / max(image_hw)
        height, width = (min(side, max(1, round(s * scale))) for s in image_hw)
        return Frame(image_hw, (side, side), (height, width))

    def to_image(self, boxes_cxcywh: Tensor) -> Tensor:
        """Boxes [..., 4], cxcywh in [0, 1] of the frame → xyxy pixels of the picture, clipped to it."""
        return clip(cxcywh_to_xyxy(boxes_cxcywh) * self._image_pixels(boxes_cxcywh), self.image_hw)

    def from_image(self, boxes_xyxy: Tensor) -> Tensor:
        """Boxes [..., 4], xyxy pixels of the picture → cxcywh in [0, 1] of the frame."""
        return xyxy_to_cxcywh(boxes_xyxy / self._image_pixels(boxes_xyxy))

    def _image_pixels(self, like: Tensor) -> Tensor:
        """Picture pixels that one whole frame spans, as (x, y, x, y)."""
        x = self.image_hw[1] * self.model_hw[1] / self.content_hw[1]
        y = self.image_hw[0] * self.model_hw[0] / self.content_hw[0]
        return torch.tensor([x, y, x, y], dtype=like.dtype, device=like.device)

    def pixels(self, image: Image.Image) -> Tensor:
        """The picture in the frame as normalised pixels [3, H, W]; padding is grey (0 after normalisation)."""
        height, width = self.content_hw
        content = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = normalise(torch.from_numpy(np.array(content)).permute(2, 0, 1).float() / 255)
        if self.content_hw == self.model_hw:
            return pixels
        frame = pixels.new_zeros(3, *self.model_hw)
        frame[:, :height, :width] = pixels
        return frame


def check_image_size(size: int) -> int:
    """The longer side of the model frame; anything but 32 to 4096 pixels raises QueryError."""
    if not isinstance(size, int) or not FRAME_MULTIPLE <= size <= MAX_FRAME_SIDE:
        raise QueryError(f"image_size must be a whole number from {FRAME_MULTIPLE} to {MAX_FRAME_SIDE}, got {size!r}")
    return size


def normalise(pixels: Tensor) -> Tensor:
    """Pixels [..., 3, H, W] in [0, 1] → what the encoder reads."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (pixels - mean) / std


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
