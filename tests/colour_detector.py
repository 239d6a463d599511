"""A detector of colours, so that what it says of every pixel is known: the embedding of a patch is its mean colour."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from owl_swin import Detector
from owl_swin.config import CalibrationConfig
from owl_swin.frame import PIXEL_MEAN, PIXEL_STD, SwinPreprocess
from owl_swin.models.network import Pretrained, Spec
from owl_swin.types import ImageEmbeddings, MaskEmbeddings, PatchLogitInputs

STRIDE = 16
WORDS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "sky": (0, 0, 1), "yellow": (1, 1, 0)}
# Logits of the right colour, and of one that has nothing of it.
RIGHT, WRONG = 2.0, -18.0


class ColourNetwork:
    """A network with a mask branch, whose logits are (cosine of two colours - 0.9) · 20."""

    def __init__(self, calibration: CalibrationConfig):
        self.spec = Spec(
            name="colours", family="owl_swin", embed_dim=3, fingerprint="c" * 64, image_size=512, stride=STRIDE,
            any_size=True, has_objectness=True, has_image_embed=True, has_masks=True, search_norm=20.0,
            calibration=calibration, alignment_scale=1.0,
        )  # fmt: skip
        self.passes = 0

    def encode_image(self, pixels):
        """Embeddings of boxes that are the patches themselves."""
        self.passes += len(pixels)
        mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
        colours = pixels * std + mean
        patches = F.avg_pool2d(colours, STRIDE).flatten(2).transpose(1, 2)  # [B, P, 3]
        grid_hw = (pixels.shape[2] // STRIDE, pixels.shape[3] // STRIDE)
        rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in grid_hw), indexing="ij")
        size = torch.tensor([1 / grid_hw[1], 1 / grid_hw[0]])
        centres = torch.stack([columns, rows], -1).flatten(0, 1) * size
        flat = torch.ones(patches.shape[:2])
        return ImageEmbeddings(
            *(F.normalize(patches, dim=-1), -0.9 * flat, 20 * flat),
            image_embed=F.normalize(patches.mean(1), dim=-1),
            pred_boxes=torch.cat([centres, size.expand_as(centres)], -1).expand(len(pixels), -1, -1),
            objectness_logits=flat,
            grid_hw=grid_hw,
        )

    def encode_with_masks(self, pixels):
        """The same, with the colours of pixels at a stride of 4."""
        images = self.encode_image(pixels)
        dense = PatchLogitInputs(images.class_embeds, images.logit_shift, images.logit_scale)
        asked = torch.zeros(*images.logit_shift.shape, 8)
        return replace(images, masks=MaskEmbeddings(asked, F.avg_pool2d(pixels, 4), dense))

    def encode_text(self, ids):
        """The colour that a word means."""
        colours = torch.tensor(list(WORDS.values()), dtype=torch.float32)
        return F.normalize(colours[ids[:, 0]], dim=-1)


def colour_detector(calibration: CalibrationConfig | None = None) -> Detector:
    """A detector for WORDS."""

    def tokenize(texts):
        return torch.tensor([[list(WORDS).index(text)] for text in texts])

    network = ColourNetwork(calibration or CalibrationConfig())
    return Detector(Pretrained(network, SwinPreprocess(STRIDE), tokenize), device="cpu")
