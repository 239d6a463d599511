"""Published networks with a fixed list of classes, as users hold them: of pixels, and of whole pictures."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.families.picture_settings import PictureSettings
from owl_swin.frame import FRAME_MULTIPLE, HW, Frame, check_image_size
from owl_swin.image import ImageSource, open_image
from owl_swin.models.closed_set import Classifier, Segmenter
from owl_swin.semantic_map import SemanticMap
from owl_swin.types import Classification

# No longer side than this many shorter ones of the network: the size that ADE20K is tested at, 2048 by 512.
LONGEST = 4
# Values in one band of rows while a map of logits is brought to the size of its picture.
BAND_VALUES = 2**25


@dataclass(frozen=True, slots=True)
class ImageSegmenter:
    """A network that names each pixel: ``segmenter(pixels [B, 3, H, W])`` → logits [B, classes, H, W].

    ``names`` are those of its classes; ``settings`` say how its pixels are made of a picture.
    """

    network: Segmenter
    names: tuple[str, ...]
    settings: PictureSettings

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] → logits [B, classes, H, W]."""
        return self.network(pixels)

    @torch.inference_mode()
    def segment(self, image: ImageSource, *, image_size: int | None = None) -> SemanticMap:
        """What each pixel of a picture shows, in the picture's own pixels.

        The picture keeps its shape. Its longer side becomes ``image_size``; None: its shorter side becomes that of the
        network's own frame, as ADE20K is tested.
        """
        picture = open_image(image)
        image_hw = (picture.height, picture.width)
        frame = Frame.fit(image_hw, self._long_side(image_hw) if image_size is None else check_image_size(image_size))
        shown = picture.resize(frame.model_hw[::-1], self.settings.resampling)
        pixels = self.settings.normalised(shown)[None].to(self.network.classifier.weight)
        labels, scores = winners(self.network.maps(pixels)[0].float(), image_hw)
        return SemanticMap(labels.cpu(), scores.cpu(), self.names)

    def _long_side(self, image_hw: HW) -> int:
        shorter = min(self.settings.size_hw)
        return max(FRAME_MULTIPLE, min(LONGEST * shorter, round(shorter * max(image_hw) / min(image_hw))))


@dataclass(frozen=True, slots=True)
class ImageClassifier:
    """A network that names a whole picture: ``classifier(pixels [B, 3, H, W])`` → logits [B, classes].

    ``names`` are those of its classes; ``settings`` say how its pixels are made of a picture.
    """

    network: Classifier
    names: tuple[str, ...]
    settings: PictureSettings

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] → logits [B, classes]."""
        return self.network(pixels)

    @torch.inference_mode()
    def classify(self, image: ImageSource) -> Classification:
        """The probabilities of the classes for a picture."""
        pixels = self.settings.pixels(open_image(image))[None].to(self.network.head.weight)
        return Classification(self.network(pixels)[0].float().softmax(-1).cpu(), self.names)


def winners(logits: Tensor, image_hw: HW) -> tuple[Tensor, Tensor]:
    """Logits [C, h, w] of a picture, bilinearly brought to its size → the likeliest class of each pixel and its
    probability, [H, W] both. In bands of rows: all logits of a large picture together would take gigabytes."""
    classes, rows, _ = logits.shape
    height, width = image_hw
    labels = torch.empty(height, width, dtype=torch.int16, device=logits.device)
    scores = torch.empty(height, width, device=logits.device)
    step = max(1, BAND_VALUES // (classes * width))
    for start in range(0, height, step):
        stop = min(height, start + step)
        y = torch.arange(start, stop, device=logits.device, dtype=torch.float32)
        y = ((y + 0.5) * (rows / height) - 0.5).clamp(0, rows - 1)
        above = y.long()
        part = torch.lerp(logits[:, above], logits[:, (above + 1).clamp(max=rows - 1)], (y - above)[:, None])
        band = F.interpolate(part[None], size=(stop - start, width), mode="bilinear", align_corners=False)[0]
        best, label = band.max(0)
        labels[start:stop] = label
        scores[start:stop] = band.sub_(best).exp_().sum(0).reciprocal()
    return labels, scores
