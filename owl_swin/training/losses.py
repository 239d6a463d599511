"""Detection losses: sigmoid focal loss on the class logits, L1 and GIoU on the boxes, focal loss on objectness."""

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.boxes import cxcywh_to_xyxy, paired_giou, pairwise_iou


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss (arXiv:1708.02002) of every element, same shape as ``logits``; targets in [0, 1].

    Targets between 0 and 1 are qualities: the loss is least where the probability equals them (arXiv:2006.04388).
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * (targets - logits.sigmoid()).abs() ** gamma * cross_entropy


def box_losses(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """L1 distance [N] (sum over the four numbers) and 1 - GIoU [N] of cxcywh boxes in [0, 1], row by row."""
    l1 = (boxes - targets).abs().sum(-1)
    return l1, 1 - paired_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))


def merge_same_boxes(
    boxes: Tensor, labels: Tensor, n_queries: int, *, scores: Tensor | None = None, iou: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Targets that overlap by more than ``iou`` become one box with several labels, as in OWL-ViT.

    ``boxes [G, 4]`` cxcywh, ``labels [G]``, ``scores [G]`` (None: all 1) → boxes [M, 4] and labels [M, Q], which hold
    the best score of each label. The first box of a group stays.
    """
    multi_hot = F.one_hot(labels, n_queries).float() if len(labels) else boxes.new_zeros(0, n_queries)
    multi_hot = multi_hot if scores is None else multi_hot * scores[:, None]
    if len(boxes) < 2:
        return boxes, multi_hot
    same = pairwise_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(boxes)) > iou
    same.fill_diagonal_(True)
    first = same.float().argmax(1)  # the earliest box that this one repeats
    while not torch.equal(first, first[first]):  # a repeats b, b repeats c: all are of c's group
        first = first[first]
    leader = first == torch.arange(len(boxes), device=boxes.device)
    merged = torch.zeros_like(multi_hot).scatter_reduce(0, first[:, None].expand_as(multi_hot), multi_hot, "amax")
    return boxes[leader], merged[leader]
