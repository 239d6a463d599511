"""How published networks with fixed classes are shown pictures, as transformers, timm and torchvision write it down."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from owl_swin.errors import CheckpointError, brief
from owl_swin.frame import PIXEL_MEAN, PIXEL_STD

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class PictureSettings:
    """``size_hw`` in pixels is what the network sees. ``cropped`` is the share of the shorter side that this shows, in
    the middle of the picture; None: the whole picture, stretched to that size. ``mean`` and ``std`` are of pixels in
    0 to 1."""

    size_hw: tuple[int, int] = (224, 224)
    cropped: float | None = None
    resampling: Image.Resampling = Image.Resampling.BICUBIC
    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD

    def __post_init__(self) -> None:
        if min(self.size_hw) < 1 or len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise CheckpointError(f"says of its pictures what makes no sense: {brief(self)}")
        if self.cropped is not None and not 0 < self.cropped <= 1:
            raise CheckpointError(f"shows a share of its pictures that lies in 0 to 1, got {self.cropped}")

    def pixels(self, image: Image.Image) -> Tensor:
        """An RGB picture as the network reads it: [3, H, W]."""
        height, width = self.size_hw
        box = None
        if self.cropped is not None:
            # Cut before it is resized: a strip of 1x4000 would be made as long as it is thin.
            unit = self.cropped * min(image.width / width, image.height / height)
            left, top = (image.width - unit * width) / 2, (image.height - unit * height) / 2
            box = (left, top, left + unit * width, top + unit * height)
        return self.normalised(image.resize((width, height), self.resampling, box))

    def normalised(self, image: Image.Image) -> Tensor:
        """An RGB picture of the network's size: [3, H, W]."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


def of_transformers(
    settings: Mapping[str, Any], side: int, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> PictureSettings:
    """What preprocessor_config.json says; {} where there is none. ``side`` and ``resampling`` are what a model of its
    kind has where it does not say."""
    try:
        size = settings.get("size", side)
        if isinstance(size, Mapping) and "shortest_edge" in size:
            crop = settings.get("crop_size", size["shortest_edge"]) if settings.get("do_center_crop", True) else None
            shorter = int(size["shortest_edge"])
            crop = shorter if crop is None else crop
            size_hw = _pair(crop)
            # Its own extractors cut nothing off sizes below the crop, so no more than the picture is shown.
            share: float | None = min(1.0, min(size_hw) / shorter)
        else:
            size_hw, share = _pair(size), None
        made = PictureSettings(size_hw, share, Image.Resampling(int(settings.get("resample", resampling))))
        if settings.get("do_normalize", True):
            return _with_colours(made, settings.get("image_mean"), settings.get("image_std"))
        return replace(made, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise _unreadable(error) from None


def of_timm(settings: Mapping[str, Any]) -> PictureSettings:
    """What timm's pretrained_cfg says."""
    try:
        _, *size_hw = settings.get("input_size", (3, 224, 224))
        share = None if settings.get("crop_mode") == "squash" else float(settings.get("crop_pct", 0.875))
        resampling = RESAMPLING[str(settings.get("interpolation", "bicubic"))]
        made = PictureSettings(_pair(size_hw), share, resampling)
        return _with_colours(made, settings.get("mean"), settings.get("std"))
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise _unreadable(error) from None


def of_torchvision(transforms: Any) -> PictureSettings:
    """What torchvision's transforms of a classifier do."""
    made = PictureSettings(
        _pair(transforms.crop_size[0]),
        transforms.crop_size[0] / transforms.resize_size[0],
        RESAMPLING[transforms.interpolation.value],
    )
    return _with_colours(made, transforms.mean, transforms.std)


def _with_colours(made: PictureSettings, mean: Any, std: Any) -> PictureSettings:
    own_mean = made.mean if mean is None else tuple(map(float, mean))
    return replace(made, mean=own_mean, std=made.std if std is None else tuple(map(float, std)))


def _pair(size: Any) -> tuple[int, int]:
    """Height and width of a number, of two, or of an object that names them."""
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    height, width = (size, size) if isinstance(size, (int, float)) else size
    return int(height), int(width)


def _unreadable(error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(f"says of its pictures what cannot be read ({brief(error)})")
