"""Box mathematics. Pure functions on tensors; nothing here knows of images or models.

Two forms: ``xyxy`` is (x0, y0, x1, y1), ``cxcywh`` is (centre x, centre y, width, height). Areas and overlaps are our
own: torchvision's are negative or NaN, also in the gradient, for boxes that are empty or inverted.
"""

import torch
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] cxcywh → [..., 4] xyxy."""
    return box_convert(boxes, "cxcywh", "xyxy")


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] xyxy → [..., 4] cxcywh."""
    return box_convert(boxes, "xyxy", "cxcywh")


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] as COCO writes them (corner and size) → [..., 4] xyxy."""
    return box_convert(boxes, "xywh", "xyxy")


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """[..., 4] xyxy → [..., 4] as COCO writes them (corner and size)."""
    return box_convert(boxes, "xyxy", "xywh")


def area(boxes: Tensor) -> Tensor:
    """Areas [...] of xyxy boxes [..., 4]; an inverted box has area 0."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [N, M] of xyxy boxes [N, 4] and [M, 4]; two empty boxes have 0."""
    intersection, union = _intersection_union(a[:, None], b[None])
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [N] of xyxy boxes [N, 4], row by row."""
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
    return clip_boxes_to_image(boxes, image_hw)


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
