"""True masks of a training scene, on the grid that the mask branch answers on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.models.masks import MASK_STRIDE
from owl_swin.training.augment import MaskPiece


@dataclass(frozen=True, slots=True)
class TrueMasks:
    """Masks of some of a scene's boxes: ``rows [K]`` of these, and ``maps [K, h, w]`` uint8, how much of each cell of
    stride 4 is covered (255: all)."""

    rows: Tensor
    maps: Tensor

    @classmethod
    def of(cls, pieces: Sequence[MaskPiece], hw: tuple[int, int]) -> "TrueMasks":
        """The masks of a canvas of ``hw`` pixels."""
        height, width = (-(-side // MASK_STRIDE) for side in hw)
        maps = np.zeros((len(pieces), height, width), dtype=np.uint8)
        for own, piece in zip(maps, pieces, strict=True):
            top, left = piece.y // MASK_STRIDE, piece.x // MASK_STRIDE
            before = piece.y % MASK_STRIDE, piece.x % MASK_STRIDE
            after = (-(start + side) % MASK_STRIDE for start, side in zip(before, piece.covered.shape, strict=True))
            padded = np.pad(piece.covered, list(zip(before, after, strict=True)))
            rows, columns = (side // MASK_STRIDE for side in padded.shape)
            cells = padded.reshape(rows, MASK_STRIDE, columns, MASK_STRIDE).mean((1, 3)).round()
            own[top : top + rows, left : left + columns] = cells
        return cls(torch.tensor([piece.row for piece in pieces], dtype=torch.long), torch.from_numpy(maps))

    def covering(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of boxes [G]: which have a mask, and for each the place of its map (0 where it has none)."""
        same = rows[:, None] == self.rows[None]
        return same.any(1), F.pad(same.float(), (0, 1)).argmax(1) * same.any(1)
