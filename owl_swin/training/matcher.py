"""Which patch answers for which box.

"hungarian": one patch a box, the matching of OWL-ViT (after DETR, arXiv:2005.12872).
"centre": every patch in the middle of a box, as in FCOS with centre sampling (arXiv:1904.01355).
"""

import torch
from torch import Tensor

from owl_swin.boxes import cxcywh_to_xyxy, pairwise_giou

EPSILON = 1e-8


@torch.no_grad()
def hungarian_match(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    *,
    alpha: float = 0.3,
    gamma: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Pairs (patch [M], target [M]) of least total cost, M = min(P, G): focal class cost + L1 - GIoU, 1:1:1.

    One picture: ``logits [P, Q]``, ``boxes [P, 4]`` and ``target_boxes [G, 4]`` cxcywh in [0, 1],
    ``target_labels [G, Q]`` 1 where the target is of the query.
    """
    from scipy.optimize import linear_sum_assignment

    if not len(target_boxes):
        empty = torch.empty(0, dtype=torch.long)
        return empty, empty
    logits, boxes = logits.float(), boxes.float()
    cost = class_cost(logits, target_labels, alpha=alpha, gamma=gamma)
    cost = cost + torch.cdist(boxes, target_boxes, p=1)
    cost = cost - pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
    patches, targets = linear_sum_assignment(torch.nan_to_num(cost, nan=1e6).numpy(force=True))
    return torch.from_numpy(patches), torch.from_numpy(targets)


def class_cost(logits: Tensor, target_labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """[P, G]: focal loss that a patch would add by being the target's instead of background, mean over its queries."""
    p = logits.sigmoid()
    positive = alpha * (1 - p) ** gamma * -(p + EPSILON).log()
    negative = (1 - alpha) * p**gamma * -(1 - p + EPSILON).log()
    labels = target_labels.to(logits)  # [G, Q]
    return (positive - negative) @ labels.T / labels.sum(1).clamp(min=1)


@torch.no_grad()
def centre_match(centres: Tensor, target_boxes: Tensor, *, radius: float = 0.35) -> tuple[Tensor, Tensor]:
    """Pairs (patch [M], target [M]): patches whose centre lies within ``radius`` of a box's sides from its middle.

    ``centres [P, 2]`` (x, y) and ``target_boxes [G, 4]`` cxcywh, both in [0, 1]. The patch nearest to a box's middle
    always belongs to it; a patch in several boxes answers for the smallest.
    """
    if not len(target_boxes):
        empty = torch.empty(0, dtype=torch.long)
        return empty, empty
    distance = (centres[:, None] - target_boxes[None, :, :2]).abs()  # [P, G, 2]
    inside = (distance <= radius * target_boxes[None, :, 2:]).all(-1)
    nearest = distance.square().sum(-1).argmin(0)
    inside[nearest, torch.arange(len(target_boxes))] = True
    areas = target_boxes[:, 2] * target_boxes[:, 3]
    owner = torch.where(inside, areas[None], torch.inf).min(1)
    patches = owner.values.isfinite().nonzero()[:, 0]
    return patches, owner.indices[patches]
