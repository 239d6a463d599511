"""Box mathematics. Pure functions on tensors; nothing here knows of images or models.

Two forms: ``xyxy`` is (x0, y0, x1, y1), ``cxcywh`` is (centre x, centre y, width, height). These are our own:
torchvision's areas and overlaps are negative or NaN, also in the gradient, for boxes that are empty or inverted, and
importing torchvision takes as long as importing torch.
"""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] cxcywh → [..., 4] xyxy."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] xyxy → [..., 4] cxcywh."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] as COCO writes them (corner and size) → [..., 4] xyxy."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """[..., 4] xyxy → [..., 4] as COCO writes them (corner and size)."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def area(boxes: Tensor) -> Tensor:
    """Areas [...] of xyxy boxes [..., 4]; an inverted box has area 0."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [N, M] of xyxy boxes [N, 4] and [M, 4]; two empty boxes have 0."""
    intersection, union = _intersection_union(a[:, None], b[None])
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [...] of xyxy boxes [..., 4] with those in the same place; shapes are broadcast."""
    intersection, union = _intersection_union(a, b)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU [N, M] in [-1, 1] (arXiv:1902.09630) of xyxy boxes [N, 4] and [M, 4]."""
    return _giou(a[:, None], b[None])


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU [N] of xyxy boxes [N, 4], row by row."""
    return _giou(a, b)


def clip(boxes: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """xyxy boxes [..., 4] cut to the picture, x in [0, width] and y in [0, height]."""
    height, width = image_hw
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def _intersection_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    intersection = area(torch.cat([low, high], -1))
    return intersection, area(a) + area(b) - intersection


def _giou(a: Tensor, b: Tensor) -> Tensor:
    intersection, union = _intersection_union(a, b)
    hull = area(torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1))
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
