"""Where a picture, or a part of it, lies in the frame that a network sees, and the way back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from owl_swin.boxes import clip, cxcywh_to_xyxy, xyxy_to_cxcywh
from owl_swin.errors import QueryError, brief

# Mean and deviation that torchvision, timm and the published Swin weights use.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
# What padding is filled with: the mean colour, which is nearly 0 after normalisation.
PADDING = tuple(round(255 * value) for value in PIXEL_MEAN)
# Sides of the model frame are multiples of this: the stride of Swin's last stage.
FRAME_MULTIPLE = 32
MAX_FRAME_SIDE = 4096
# An exemplar's box is shown with these surroundings, in shares of its longer side on each side, its longer side so many
# patches long: the size of the boxes that the heads start from.
EXEMPLAR_MARGIN = 0.25
EXEMPLAR_PATCHES = 4

HW = tuple[int, int]
Crop = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """How a picture, or a crop or tile of it, lies in the model frame, and the way back.

    ``image_hw`` is the caller's picture, of which ``crop_xyxy`` is shown (None: all); ``model_hw`` is the frame that
    the network sees and ``content_hw`` its top left part that is filled (all of it, unless the frame is padded). All in
    whole pixels. ``padded_hw``: the frame's sides in longer sides of what is shown, where content ends within a pixel.
    """

    image_hw: HW
    model_hw: HW
    content_hw: HW
    crop_xyxy: Crop | None = None
    padded_hw: tuple[float, float] | None = None

    @staticmethod
    def fit(image_hw: HW, long_side: int, crop_xyxy: Crop | None = None) -> "Frame":
        """The frame whose longer side is ``long_side``; both sides rounded to multiples of 32.

        Rounding moves a side by at most 16 pixels, but no side is under 32; nothing is padded.
        """
        shown_hw = crop_hw(crop_xyxy) if crop_xyxy else image_hw
        scale = long_side / max(shown_hw)
        height, width = (max(1, round(side * scale / FRAME_MULTIPLE)) * FRAME_MULTIPLE for side in shown_hw)
        return Frame(image_hw, (height, width), (height, width), crop_xyxy)

    @staticmethod
    def letterbox(image_hw: HW, side: int, crop_xyxy: Crop | None = None, *, scale: float | None = None) -> "Frame":
        """The square frame with what is shown at the top left, padding at the bottom or right.

        ``scale``: frame pixels a pixel of the picture; None makes the longer side fill the frame.
        """
        shown_hw = crop_hw(crop_xyxy) if crop_xyxy else image_hw
        scale = side / max(shown_hw) if scale is None else scale
        height, width = (min(side, max(1, round(s * scale))) for s in shown_hw)
        return Frame(image_hw, (side, side), (height, width), crop_xyxy)

    @property
    def shown_hw(self) -> HW:
        """Height and width, in pixels of the picture, of what is shown."""
        return crop_hw(self.crop_xyxy) if self.crop_xyxy else self.image_hw

    def to_image(self, boxes_cxcywh: Tensor) -> Tensor:
        """Boxes [..., 4], cxcywh in [0, 1] of the frame → xyxy pixels of the picture, clipped to it.

        Around a crop in a padded frame the picture goes on and was not seen: there boxes are clipped to the crop.
        """
        boxes = cxcywh_to_xyxy(boxes_cxcywh) * self._image_pixels(boxes_cxcywh)
        if self.padded_hw is not None:
            boxes = clip(boxes, self.shown_hw)
        return clip(boxes + self._origin(boxes) if self.crop_xyxy else boxes, self.image_hw)

    def from_image(self, boxes_xyxy: Tensor) -> Tensor:
        """Boxes [..., 4], xyxy pixels of the picture → cxcywh in [0, 1] of the frame."""
        boxes = boxes_xyxy - self._origin(boxes_xyxy) if self.crop_xyxy else boxes_xyxy
        return xyxy_to_cxcywh(boxes / self._image_pixels(boxes))

    def _image_pixels(self, like: Tensor) -> Tensor:
        """Picture pixels that one whole frame spans, as (x, y, x, y)."""
        y, x = self.spans_hw
        return like.new_tensor([x, y, x, y])

    @property
    def spans_hw(self) -> tuple[float, float]:
        """Pixels of the picture that the frame's sides are long, padding included."""
        if self.padded_hw is not None:
            longer = max(self.shown_hw)
            return longer * self.padded_hw[0], longer * self.padded_hw[1]
        (height, width), model, content = self.shown_hw, self.model_hw, self.content_hw
        return height * model[0] / content[0], width * model[1] / content[1]

    def _origin(self, like: Tensor) -> Tensor:
        x, y = self.crop_xyxy[:2] if self.crop_xyxy else (0, 0)
        return like.new_tensor([x, y, x, y])

    def pixels(self, image: Image.Image) -> Tensor:
        """The picture in the frame: uint8 [3, H, W], padded with the mean colour."""
        height, width = self.content_hw
        content = image.crop(self.crop_xyxy) if self.crop_xyxy else image
        if content.size != (width, height):
            content = content.resize((width, height), Image.Resampling.BILINEAR)
        if self.content_hw != self.model_hw:
            frame = Image.new("RGB", self.model_hw[::-1], PADDING)
            frame.paste(content)
            content = frame
        return torch.from_numpy(np.array(content)).permute(2, 0, 1).contiguous()


class Preprocess(Protocol):
    """How a family of models shows pictures to its network."""

    @property
    def oversampling(self) -> int | None:
        """A picture that is shown whole may come with so many pixels a pixel of its frame instead of all; None where it
        may not."""
        ...

    def frame(self, image_hw: HW, image_size: int, crop_xyxy: Crop | None = None) -> Frame:
        """The frame of a picture, or of a crop of it, whose longer side becomes ``image_size``."""
        ...

    def exemplar(self, image_hw: HW, box_xyxy: Sequence[float], image_size: int) -> Frame:
        """The frame in which an exemplar's box is shown."""
        ...

    def pixels(self, image: Image.Image, frame: Frame) -> Tensor:
        """The picture in its frame, [3, H, W], in a form that is cheap to keep."""
        ...

    def normalise(self, pixels: Tensor) -> Tensor:
        """Such pixels [B, 3, H, W] as the network reads them."""
        ...


@dataclass(frozen=True, slots=True)
class SwinPreprocess:
    """Our own: the whole frame is filled, with sides that are multiples of 32, and of an exemplar only its box and what
    is around it is shown."""

    stride: int

    @property
    def oversampling(self) -> int | None:
        """Twice the frame is as good as all pixels."""
        return 2

    def frame(self, image_hw: HW, image_size: int, crop_xyxy: Crop | None = None) -> Frame:
        """The frame of a picture, or of a crop of it, whose longer side becomes ``image_size``."""
        return Frame.fit(image_hw, image_size, crop_xyxy)

    def exemplar(self, image_hw: HW, box_xyxy: Sequence[float], image_size: int) -> Frame:
        """The frame in which an exemplar's box is shown, whatever the size of pictures."""
        return exemplar_frame(image_hw, box_xyxy, exemplar_side(self.stride))

    def pixels(self, image: Image.Image, frame: Frame) -> Tensor:
        """uint8 [3, H, W]."""
        return frame.pixels(image)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [B, 3, H, W] as the encoder reads them."""
        return normalise(pixels.float() / 255)


def exemplar_side(stride: int) -> int:
    """Side in pixels of the square frame in which exemplars are shown to a model with patches of this stride."""
    return round(EXEMPLAR_PATCHES * stride * (1 + 2 * EXEMPLAR_MARGIN) / FRAME_MULTIPLE) * FRAME_MULTIPLE


def exemplar_frame(image_hw: HW, box_xyxy: Sequence[float], side: int, margin: float = EXEMPLAR_MARGIN) -> Frame:
    """The square frame that shows an exemplar's box with its surroundings, in detection and in training.

    At the border of the picture the square moves inside; a picture that is too small for it leaves the frame padded,
    and nothing is stretched.
    """
    crop = square_around(box_xyxy, image_hw, margin)
    return Frame.letterbox(image_hw, side, crop, scale=side / _square(box_xyxy, margin)[2])


def square_around(box_xyxy: Sequence[float], image_hw: HW, margin: float) -> Crop:
    """The square around a box, wider than it by ``margin`` of its longer side on every side, moved into the picture and
    cut to it where the picture is smaller. Whole pixels."""
    x, y, side = _square(box_xyxy, margin)
    height, width = image_hw
    x, y = (min(max(0, start), max(0, size - side)) for start, size in ((x, width), (y, height)))
    return x, y, min(width, x + side), min(height, y + side)


def _square(box_xyxy: Sequence[float], margin: float) -> tuple[int, int, int]:
    """Left, top and side of that square, wherever it lies."""
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    half = max(x1 - x0, y1 - y0) * (0.5 + margin)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    left, top = math.floor(x - half), math.floor(y - half)
    return left, top, max(1, math.ceil(x + half) - left, math.ceil(y + half) - top)


def crop_hw(crop_xyxy: Crop) -> HW:
    """Height and width of a crop."""
    return crop_xyxy[3] - crop_xyxy[1], crop_xyxy[2] - crop_xyxy[0]


def check_image_size(size: int) -> int:
    """The longer side of the model frame; anything but 32 to 4096 pixels raises QueryError."""
    if not isinstance(size, Integral) or isinstance(size, bool) or not FRAME_MULTIPLE <= size <= MAX_FRAME_SIDE:
        raise QueryError(
            f"image_size must be a whole number from {FRAME_MULTIPLE} to {MAX_FRAME_SIDE}, got {brief(size)}"
        )
    return int(size)


def normalise(pixels: Tensor) -> Tensor:
    """Pixels [..., 3, H, W] in [0, 1] → what the encoder reads."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (pixels - mean) / std
