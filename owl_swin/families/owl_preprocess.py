"""How OWL-ViT and OWLv2 see pictures, to the pixel as transformers shows them to them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from owl_swin.frame import HW, Crop, Frame, crop_hw

# OpenAI's CLIP.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
STRIP_PIXELS = 4_000_000


@dataclass(frozen=True, slots=True)
class OwlVitPreprocess:
    """OWL-ViT: the picture squashed to a square. Of an exemplar the whole picture is shown."""

    patch_size: int
    trained_size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @property
    def oversampling(self) -> int | None:
        """The pixels are to be those of transformers, which reads all of them."""
        return None

    def frame(self, image_hw: HW, image_size: int, crop_xyxy: Crop | None = None) -> Frame:
        """The square of a picture, or of a crop of it; its side is ``image_size`` in whole patches."""
        side = _side(image_size, self.patch_size, self.trained_size)
        return Frame(image_hw, (side, side), (side, side), crop_xyxy)

    def exemplar(self, image_hw: HW, box_xyxy: Sequence[float], image_size: int) -> Frame:
        """The frame of the whole picture."""
        return self.frame(image_hw, image_size)

    def pixels(self, image: Image.Image, frame: Frame) -> Tensor:
        """uint8 [3, S, S]."""
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import resize

        content = torch.from_numpy(_content(image, frame)).permute(2, 0, 1)
        return resize(content, list(frame.model_hw), InterpolationMode.BICUBIC, antialias=True).contiguous()

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [B, 3, S, S] as the network reads them."""
        return _normalise(pixels.float() / 255, self.mean, self.std)


@dataclass(frozen=True, slots=True)
class Owlv2Preprocess:
    """OWLv2: the picture padded with black to a square, right or below, then resized. Of an exemplar the whole picture
    is shown.

    With ``content_only`` the rows or columns of patches that show nothing but padding are left out of the frame.
    """

    patch_size: int
    trained_size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    content_only: bool = False

    @property
    def oversampling(self) -> int | None:
        """None, as for OWL-ViT."""
        return None

    def frame(self, image_hw: HW, image_size: int, crop_xyxy: Crop | None = None) -> Frame:
        """The square of a picture, or of a crop of it; its side is ``image_size`` in whole patches."""
        side = _side(image_size, self.patch_size, self.trained_size)
        shown_hw = crop_hw(crop_xyxy) if crop_xyxy else image_hw
        longer = max(shown_hw)
        height, width = (min(side, math.ceil(shown * side / longer)) for shown in shown_hw)
        if not self.content_only or side % self.patch_size:
            return Frame(image_hw, (side, side), (height, width), crop_xyxy, (1.0, 1.0))
        cells = side // self.patch_size
        rows, columns = (min(cells, math.ceil(length / self.patch_size)) for length in (height, width))
        model_hw = (rows * self.patch_size, columns * self.patch_size)
        content_hw = (min(height, model_hw[0]), min(width, model_hw[1]))
        return Frame(image_hw, model_hw, content_hw, crop_xyxy, (rows / cells, columns / cells))

    def exemplar(self, image_hw: HW, box_xyxy: Sequence[float], image_size: int) -> Frame:
        """The frame of the whole picture."""
        return self.frame(image_hw, image_size)

    def pixels(self, image: Image.Image, frame: Frame) -> Tensor:
        """float32 [3, H, W] in [0, 1]: shades between those of uint8 count."""
        content = torch.from_numpy(_content(image, frame))
        height, width = frame.shown_hw
        square, side = max(height, width), max(frame.model_hw)
        strips = content.split(max(1, STRIP_PIXELS // height), 1)  # a huge picture is never whole in float32
        rows = torch.cat(
            [
                _resample(strip.flatten(1).float().div_(255), square, side, frame.model_hw[0]).unflatten(1, (-1, 3))
                for strip in strips
            ],
            1,
        )
        columns = _resample(rows.transpose(0, 1).flatten(1), square, side, frame.model_hw[1])
        return columns.unflatten(1, (frame.model_hw[0], 3)).permute(2, 1, 0).contiguous()

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [0, 1] as the network reads them."""
        return _normalise(pixels, self.mean, self.std)


def _side(image_size: int, patch_size: int, trained_size: int) -> int:
    """The side of a square of whole patches; the size that the model was made for is kept as it is."""
    return image_size if image_size == trained_size else max(1, round(image_size / patch_size)) * patch_size


def _content(image: Image.Image, frame: Frame) -> np.ndarray:
    """What is shown, uint8 [H, W, 3]."""
    return np.array(image.crop(frame.crop_xyxy) if frame.crop_xyxy else image)


def _normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    shift, scale = (pixels.new_tensor(values)[:, None, None] for values in (mean, std))
    return (pixels - shift) / scale


def _resample(rows: Tensor, length: int, side: int, kept: int) -> Tensor:
    """The first ``kept`` of ``side`` rows that stand for ``length``: those given [n, C], and zeros after them.

    Each is a blur, where there are fewer than before, and then a linear interpolation of the blurred rows, joined in
    one weighted sum: neither padding nor what lies between the new rows is ever made.
    """
    kernel = _blur(length, side)
    reach = len(kernel) // 2
    place = ((torch.arange(kept, dtype=torch.float64) + 0.5) * length / side - 0.5).clamp(0, length - 1)
    first = place.floor()
    share = (place - first)[:, None]
    weights = (1 - share) * F.pad(kernel, (0, 1)) + share * F.pad(kernel, (1, 0))  # [kept, taps]
    taps = first.long()[:, None] + torch.arange(-reach, reach + 2)
    taps = taps.abs()
    taps = (length - 1) - ((length - 1) - taps).abs()  # the edges of the square are mirrors
    weights = weights.masked_fill((taps >= len(rows)) | (taps < 0), 0).float()
    return F.embedding_bag(taps.clamp(0, len(rows) - 1), rows, mode="sum", per_sample_weights=weights)


def _blur(length: int, side: int) -> Tensor:
    """Gaussian [2r + 1] that scikit-image smooths with before it makes ``side`` of ``length`` rows."""
    sigma = (torch.tensor(length) / torch.tensor(side) - 1) / 2  # in float32, as its width was chosen
    if sigma <= 0:
        return torch.ones(1, dtype=torch.float64)
    reach = int(torch.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / float(sigma)) ** 2)
    return kernel / kernel.sum()
