"""Pictures in one of a few stated frames."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor

from owl_swin.errors import QueryError
from owl_swin.frame import HW, Crop, Frame, Preprocess, crop_hw


@dataclass(frozen=True, slots=True)
class StatedFrames:
    """Another preprocessing, kept to frames of the stated ``sizes`` (height, width).

    A picture whose own frame is none of them is shown in the one where it is largest, padded right or below.
    """

    own: Preprocess
    sizes: tuple[HW, ...]

    @property
    def oversampling(self) -> int | None:
        """As in the other preprocessing."""
        return self.own.oversampling

    def frame(self, image_hw: HW, image_size: int, crop_xyxy: Crop | None = None) -> Frame:
        """The frame of a picture, or of a crop of it, among those whose longer side is ``image_size``; where there is
        none, raises QueryError."""
        own = self.own.frame(image_hw, image_size, crop_xyxy)
        if own.model_hw in self.sizes:
            return own
        fitting = [size for size in self.sizes if max(size) == image_size]
        if not fitting:
            known = ", ".join(f"{height}x{width}" for height, width in self.sizes)
            raise QueryError(
                f"this export has frames (height x width) of {known}, and none for image_size {image_size}"
            )
        shown = crop_hw(crop_xyxy) if crop_xyxy else image_hw
        scale, _, model_hw = max((min(h / shown[0], w / shown[1]), -h * w, (h, w)) for h, w in fitting)
        height, width = (min(side, max(1, round(s * scale))) for s, side in zip(shown, model_hw, strict=True))
        return replace(own, model_hw=model_hw, content_hw=(height, width))

    def exemplar(self, image_hw: HW, box_xyxy: Sequence[float], image_size: int) -> Frame:
        """The frame in which an exemplar's box is shown: a size of its own, that every export has."""
        return self.own.exemplar(image_hw, box_xyxy, image_size)

    def pixels(self, image: Image.Image, frame: Frame) -> Tensor:
        """uint8 [3, H, W]."""
        return self.own.pixels(image, frame)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Such pixels [B, 3, H, W] as the network reads them."""
        return self.own.normalise(pixels)
