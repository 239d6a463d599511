"""True masks of a training scene, on the grid that the mask branch answers on."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.models.masks import MASK_STRIDE


@dataclass(frozen=True, slots=True)
class TrueMasks:
    """Masks of some of a scene's boxes: ``rows [K]`` of these, and ``maps [K, h, w]`` uint8, how much of each cell of
    stride 4 is covered (255: all)."""

    rows: Tensor
    maps: Tensor

    @classmethod
    def none(cls, hw: tuple[int, int]) -> "TrueMasks":
        """No masks, of a scene of ``hw`` pixels."""
        height, width = (-(-side // MASK_STRIDE) for side in hw)
        return cls(torch.zeros(0, dtype=torch.long), torch.zeros(0, height, width, dtype=torch.uint8))

    def covering(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of boxes [G]: which have a mask, and for each the place of its map (0 where it has none)."""
        same = rows[:, None] == self.rows[None]
        return same.any(1), F.pad(same.float(), (0, 1)).argmax(1) * same.any(1)
