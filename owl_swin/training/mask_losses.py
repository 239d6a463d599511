"""Mask losses: dice and focal loss against true masks, and what a box alone says of its mask (BoxInst).

All are of cells of a map of stride 4, over windows around the boxes; nothing here knows of a model.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.boxes import cxcywh_to_xyxy
from owl_swin.training.losses import focal_loss

# Cells along a side of a window; of a larger one, so many are looked at, evenly spread.
WINDOW = 32
# Cells around the smallest boxes: without a border there is nothing that a mask must not reach.
LEAST_BORDER = 2.0
# How fast affinity falls with the distance of colours in CIELAB (arXiv:2012.02310).
COLOUR_SCALE = 0.5
# Neighbours (down, right) of a cell; the other four are the same pairs.
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True, slots=True)
class Windows:
    """Where n masks are looked at: cells ``rows [n, S]`` and ``columns [n, S]`` of a map, of which those count that
    ``valid [n, S, S]`` says; ``inside_rows [n, S]`` and ``inside_columns [n, S]`` are those of the boxes."""

    rows: Tensor
    columns: Tensor
    valid: Tensor
    inside_rows: Tensor
    inside_columns: Tensor

    def look(self, maps: Tensor, whose: Tensor) -> Tensor:
        """The cells [n, ..., S, S] of maps [m, ..., h, w]; ``whose [n]`` says in which map each mask is looked at."""
        cells = maps.movedim((-2, -1), (1, 2))[whose[:, None, None], self.rows[:, :, None], self.columns[:, None, :]]
        return cells.movedim((1, 2), (-2, -1))

    def __getitem__(self, chosen: Tensor) -> "Windows":
        """Some of them."""
        return Windows(*(getattr(self, name)[chosen] for name in self.__slots__))


def windows_around(boxes: Tensor, map_hw: tuple[int, int], margin: float) -> Windows:
    """Windows around boxes [n, 4], cxcywh in [0, 1], with ``margin`` of their sides all around, as far as the map of
    ``map_hw`` cells reaches. A cell is inside where its middle is, and the one nearest to the box's middle always."""
    corners = cxcywh_to_xyxy(boxes)
    columns, has_column, inside_columns = _along(corners[:, 0], corners[:, 2], map_hw[1], margin)
    rows, has_row, inside_rows = _along(corners[:, 1], corners[:, 3], map_hw[0], margin)
    return Windows(rows, columns, has_row[:, :, None] & has_column[:, None, :], inside_rows, inside_columns)


def _along(low: Tensor, high: Tensor, cells: int, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cells [n, S] along one axis around low to high [n] in [0, 1]: their places, which count, which are inside."""
    low, high = low * cells, high * cells
    border = ((high - low) * margin).clamp(min=LEAST_BORDER)
    first = (low - border).floor().clamp(0, cells - 1)
    last = (high + border).ceil().clamp(1, cells)
    count = (last - first).clamp(min=1)
    steps = torch.arange(WINDOW, device=low.device)
    stride = (count / WINDOW).clamp(min=1)
    counts = steps < count[:, None]
    places = (first[:, None] + (steps * stride[:, None]).floor()).clamp(max=cells - 1)
    middles = places + 0.5
    inside = (middles >= low[:, None]) & (middles <= high[:, None])
    nearest = (middles - (low + high)[:, None] / 2).abs().masked_fill(~counts, torch.inf).argmin(1)
    inside = inside.scatter(1, nearest[:, None], True) & counts
    return places.long(), counts, inside


def true_mask_losses(logits: Tensor, truth: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Dice loss [n] and focal loss [n], a mean over cells, of logits [n, S, S] against ``truth``: the share of each
    cell that the mask covers."""
    valid = windows.valid.to(logits)
    dice = _dice_loss((logits.sigmoid() * valid).flatten(1), (truth * valid).flatten(1))
    focal = focal_loss(logits, truth, alpha=0.5, gamma=2.0) * valid
    return dice, focal.sum((1, 2)) / valid.sum((1, 2))


def projection_loss(logits: Tensor, windows: Windows) -> Tensor:
    """[n]: dice losses of the masks' shadows on both axes against those of the boxes (arXiv:2012.02310)."""
    masks = logits.sigmoid() * windows.valid
    across, down = windows.inside_columns.to(masks), windows.inside_rows.to(masks)
    return _dice_loss(masks.amax(1), across) + _dice_loss(masks.amax(2), down)


def affinity_loss(logits: Tensor, lab: Tensor, windows: Windows, threshold: float) -> Tensor:
    """[n]: mean -log probability that two neighbouring cells of like colours are both of the mask or both not, over
    pairs of which one lies in the box (arXiv:2012.02310). ``lab`` [n, 3, S, S] are colours in CIELAB."""
    inside = windows.inside_rows[:, :, None] & windows.inside_columns[:, None, :]
    own, other = F.logsigmoid(logits), F.logsigmoid(-logits)
    total, pairs = logits.new_zeros(len(logits)), logits.new_zeros(len(logits))
    for down, right in NEIGHBOURS:
        (ax, bx), (ay, by) = _shifted(right), _shifted(down)
        first, second = (..., ay, ax), (..., by, bx)
        distance = (lab[first] - lab[second]).square().sum(1).sqrt()
        alike = torch.exp(-COLOUR_SCALE * distance) >= threshold
        alike &= windows.valid[first] & windows.valid[second] & (inside[first] | inside[second])
        agree = torch.logaddexp(own[first] + own[second], other[first] + other[second])
        total = total - (agree * alike).sum((1, 2))
        pairs = pairs + alike.sum((1, 2))
    return total / pairs.clamp(min=1)


def rgb_to_lab(pixels: Tensor) -> Tensor:
    """sRGB [..., 3, h, w] in [0, 1] → CIELAB of white D65: lightness 0 to 100, a and b about -100 to 100."""
    linear = torch.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    to_xyz = pixels.new_tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    )
    white = pixels.new_tensor([0.95047, 1.0, 1.08883])
    xyz = torch.einsum("dc,...chw->...dhw", to_xyz / white[:, None], linear)
    f = torch.where(xyz > 216 / 24389, xyz.clamp(min=1e-6) ** (1 / 3), xyz * (841 / 108) + 4 / 29)
    x, y, z = f.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def _dice_loss(masks: Tensor, truth: Tensor) -> Tensor:
    """[n] of [n, m] each; squares in the denominator, as V-Net has it (arXiv:1606.04797)."""
    common = 2 * (masks * truth).sum(1)
    return 1 - common / (masks.square().sum(1) + truth.square().sum(1)).clamp(min=1e-5)


def _shifted(step: int) -> tuple[slice, slice]:
    """Slices along an axis that stand ``step`` (-1, 0 or 1) apart."""
    if step == 0:
        return slice(None), slice(None)
    return (slice(None, -1), slice(1, None)) if step > 0 else (slice(1, None), slice(None, -1))
