"""Masks from the same pass: an embedding for every pixel of a fine map, and what every patch asks of it.

The mask of a patch is one product of its embedding with those of the pixels, as in YOLACT (arXiv:1904.02689), plus a
quadratic form of the place in its box, which stands for the coordinates of CondInst (arXiv:2003.05664). What a pixel
shows is scored like what a patch's box holds, by a class head of its own that learns from every patch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_swin.config import MasksConfig
from owl_swin.models.heads import ClassHead
from owl_swin.types import MaskEmbeddings, PatchLogitInputs

# Side in input pixels of what one pixel embedding stands for.
MASK_STRIDE = 4
# Coefficients of the place in a box: 1, u, v, u², v², where u and v go from -1 to 1 across it.
PLACES = 5
# Before it has learned, the mask of a box is the ellipse that touches it.
INITIAL_PLACE = (2.0, 0.0, 0.0, -2.0, -2.0)


class MaskBranch(nn.Module):
    """Maps of the encoder and fused patches → the mask embeddings of a batch of pictures."""

    def __init__(self, dims: Sequence[int], patch_width: int, embed_dim: int, config: MasksConfig):
        """``dims``: channels of the encoder's maps, the finest, of stride 4, first."""
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.laterals = nn.ModuleList(nn.Linear(dim, config.width) for dim in dims)
        self.mix_norm = nn.LayerNorm(config.width)
        self.mix = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.norm = nn.LayerNorm(config.width)
        self.pixels = nn.Linear(config.width, config.dim)
        self.ask = nn.Sequential(nn.Linear(patch_width, patch_width), nn.GELU())
        self.mask = nn.Linear(patch_width, config.dim + PLACES)
        self.dense_head = ClassHead(patch_width, embed_dim)
        nn.init.trunc_normal_(self.mask.weight, std=0.02)
        nn.init.zeros_(self.mask.bias)
        with torch.no_grad():
            self.mask.bias[-PLACES:] = torch.tensor(INITIAL_PLACE)

    def forward(self, maps: Sequence[Tensor], patches: Tensor) -> MaskEmbeddings:
        """Maps [B, h, w, C] of strides 4, 8, 16 and 32, and fused patches [B, h, w, D]."""
        finest = maps[0]
        fused = None
        for norm, lateral, x in zip(self.norms, self.laterals, maps, strict=True):
            x = lateral(norm(x)).permute(0, 3, 1, 2)
            if x.shape[2:] != finest.shape[1:3]:
                x = F.interpolate(x, size=finest.shape[1:3], mode="bilinear", align_corners=False)
            fused = x if fused is None else fused + x
        assert fused is not None
        fused = fused.permute(0, 2, 3, 1)
        mixed = self.mix(self.mix_norm(fused).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        pixels = self.pixels(self.norm(fused + F.gelu(mixed))).float()
        flat = patches.flatten(1, 2)
        return MaskEmbeddings(
            mask_embeds=_in_float32(self.mask(self.ask(flat))),
            pixel_embeds=pixels.permute(0, 3, 1, 2),
            dense=PatchLogitInputs(*self.dense_head(flat)),
        )


def _in_float32(values: Tensor) -> Tensor:
    """The values in float32; those that are get no cast, which quantisation refuses as the end of a graph."""
    return values if values.dtype == torch.float32 else values.float()


def mask_logits(mask_embeds: Tensor, pixel_embeds: Tensor, boxes: Tensor) -> Tensor:
    """Logits [N, h, w] of the masks of ``mask_embeds`` [N, K + 5], over the whole model frame.

    ``pixel_embeds`` [K, h, w]; ``boxes`` [N, 4] cxcywh in [0, 1] of the frame. Outside its box a mask has no meaning.
    """
    dim, height, width = pixel_embeds.shape
    x, y = ((torch.arange(n, device=boxes.device, dtype=boxes.dtype) + 0.5) / n for n in (width, height))
    return _of_pixels(mask_embeds, pixel_embeds) + _of_places(mask_embeds[:, dim:], boxes, x, y)


def mask_logits_at(mask_embeds: Tensor, pixel_embeds: Tensor, boxes: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """As mask_logits, but [N, S, T] at places ``x`` [N, T] and ``y`` [N, S] in [0, 1] of the frame, a grid of its own
    for each mask; pixels answer between their middles."""
    logits = sampled(_of_pixels(mask_embeds, pixel_embeds)[:, None], x, y)
    return logits + _of_places(mask_embeds[:, len(pixel_embeds) :], boxes, x, y)


def sampled(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values [N, S, T] of maps [N, 1, h, w] at places ``x`` [N, T] and ``y`` [N, S] in [0, 1] of them; beyond, those of
    the border."""
    shape = (len(maps), y.shape[1], x.shape[1])
    places = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1) * 2 - 1
    return F.grid_sample(maps, places, align_corners=False, padding_mode="border")[:, 0]


def _of_pixels(mask_embeds: Tensor, pixel_embeds: Tensor) -> Tensor:
    """What all pixels answer, [N, h, w]."""
    dim, height, width = pixel_embeds.shape
    return (mask_embeds[:, :dim] @ pixel_embeds.flatten(1)).view(-1, height, width)


def _of_places(coefficients: Tensor, boxes: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The quadratic form [N, S, T] of ``coefficients`` [N, 5], at places [T] or [N, T] and [S] or [N, S]."""
    u = (x - boxes[:, None, 0]) * 2 / boxes[:, None, 2].clamp(min=1e-6)  # [N, T]
    v = (y - boxes[:, None, 1]) * 2 / boxes[:, None, 3].clamp(min=1e-6)
    one, first_u, first_v, second_u, second_v = coefficients[:, :, None].unbind(1)  # [N, 1] each
    across = one + first_u * u + second_u * u.square()
    down = first_v * v + second_v * v.square()
    return across[:, None, :] + down[:, :, None]
