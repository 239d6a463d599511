"""Networks whose classes are fixed: a class for each pixel, or for the whole picture."""

import torch.nn.functional as F
from torch import Tensor, nn

from owl_swin.models.pixel_decoders import PixelDecoder


class Segmenter(nn.Module):
    """``forward(pixels [B, 3, H, W])`` → logits [B, classes, H, W]: an encoder of maps, a pixel decoder, a classifier.

    The encoder may be any that gives maps [B, h, w, C], the finest first; the decoder reads those from ``first_map``.
    """

    def __init__(self, encoder: nn.Module, decoder: PixelDecoder, classes: int, *, first_map: int = 0):
        super().__init__()
        self.encoder, self.decoder, self.first_map = encoder, decoder, first_map
        self.classifier = nn.Conv2d(decoder.width, classes, 1)

    def maps(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] → logits [B, classes, h, w] at the stride of the first map read, 4 for a Swin."""
        return self.classifier(self.decoder(self.encoder(pixels)[self.first_map :]))

    def forward(self, pixels: Tensor) -> Tensor:
        return F.interpolate(self.maps(pixels), size=pixels.shape[2:], mode="bilinear", align_corners=False)


class Classifier(nn.Module):
    """``forward(pixels [B, 3, H, W])`` → logits [B, classes]: the mean of the encoder's last map, a linear layer."""

    def __init__(self, encoder: nn.Module, dim: int, classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(dim, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.encoder(pixels)[-1].mean((1, 2)))
