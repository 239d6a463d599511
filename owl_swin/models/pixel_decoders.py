"""Pixel decoders: the maps of an encoder's stages become one map of features, a vector for each pixel of the first.

What is made of the vectors, by a classifier or by a product with embeddings of names, is not theirs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Sides, in cells, of the grids that UPerNet's pyramid pools the last map into.
POOL_SIDES = (1, 2, 3, 6)


class PixelDecoder(nn.Module):
    """``forward(maps)``: maps [B, h, w, C] of an encoder, the finest first, → features [B, width, h, w] of the first.

    There may be any number of maps, of any sizes. An encoder has normalised its last map; the others are normalised
    here, each on its own.
    """

    def __init__(self, dims: Sequence[int], width: int):
        super().__init__()
        self.width = width
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims[:-1])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        normed = [norm(x) for norm, x in zip(self.norms, maps[:-1], strict=True)]
        return self.decode([x.permute(0, 3, 1, 2) for x in (*normed, maps[-1])])

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Normalised maps [B, C, h, w] → features [B, width, h, w] of the first."""
        raise NotImplementedError


class UperDecoder(PixelDecoder):
    """UPerNet (arXiv:1807.10221): the last map is pooled in a pyramid (PSPNet's), and what it says flows down to the
    finer ones as in a feature pyramid network; all of them together make the features."""

    def __init__(self, dims: Sequence[int], width: int, pool_sides: Sequence[int] = POOL_SIDES):
        super().__init__(dims, width)
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), *_conv(dims[-1], width, 1)) for side in pool_sides
        )
        self.pyramid = _conv(dims[-1] + len(pool_sides) * width, width, 3)
        self.laterals = nn.ModuleList(_conv(dim, width, 1) for dim in dims[:-1])
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in dims[:-1])
        self.fuse = _conv(len(dims) * width, width, 3)

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Normalised maps [B, C, h, w] → features [B, width, h, w] of the first."""
        last = maps[-1]
        pooled = [_resized(pool(last), last) for pool in self.pools]
        down = [self.pyramid(torch.cat([last, *pooled], 1))]  # the coarsest first
        for lateral, x in zip(reversed(self.laterals), reversed(maps[:-1]), strict=True):
            down.append(lateral(x) + _resized(down[-1], x))
        coarsest, *finer = down
        smoothed = [smooth(x) for smooth, x in zip(self.smooth, reversed(finer), strict=True)]
        return self.fuse(torch.cat([_resized(x, maps[0]) for x in (*smoothed, coarsest)], 1))


class SsformerDecoder(PixelDecoder):
    """SSformer (arXiv:2208.02034): every map through one linear layer to the same width, brought to the size of the
    first, and one linear layer over all of them. As its authors trained it, with batch normalisation and ReLU."""

    def __init__(self, dims: Sequence[int], width: int):
        super().__init__(dims, width)
        self.laterals = nn.ModuleList(_conv(dim, width, 1) for dim in dims)
        self.fuse = _conv(len(dims) * width, width, 1)

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Normalised maps [B, C, h, w] → features [B, width, h, w] of the first."""
        same = [_resized(lateral(x), maps[0]) for lateral, x in zip(self.laterals, maps, strict=True)]
        return self.fuse(torch.cat(same, 1))


# By name, with the width that each was published with.
DECODERS: dict[str, tuple[type[PixelDecoder], int]] = {"uper": (UperDecoder, 512), "ssformer": (SsformerDecoder, 256)}


def make_decoder(name: str, dims: Sequence[int], width: int | None = None) -> PixelDecoder:
    """The decoder of that name in DECODERS for maps of ``dims`` channels; None: as wide as it was published."""
    kind, published = DECODERS[name]
    return kind(dims, width or published)


def _conv(dim: int, width: int, side: int) -> nn.Sequential:
    """A convolution that keeps the size, with batch normalisation in place of its bias, and ReLU."""
    conv = nn.Conv2d(dim, width, side, padding=side // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """A map [B, C, ., .] brought to the height and width of another."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
