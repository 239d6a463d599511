"""Logits and boxes of patches → Detections in pixels of the caller's picture. The one place where frames change."""

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from owl_swin.boxes import area
from owl_swin.errors import QueryError
from owl_swin.frame import Frame
from owl_swin.types import Detection, Detections

# Candidates that compete in non-maximum suppression: its cost is quadratic.
NMS_CANDIDATES = 3000


def detections_from_logits(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    frame: Frame,
    names: Sequence[str],
    *,
    threshold: float | Sequence[float],
    nms_iou: float | None = None,
    top_k: int = 300,
) -> Detections:
    """Every (patch, query) pair whose score reaches its threshold, best first, at most ``top_k``.

    ``logits [P, Q]`` and ``boxes_cxcywh [P, 4]`` in the model frame. A patch may answer several queries; a logit of
    -inf never answers, nor does a box that lies outside the picture. ``threshold`` is one number in [0, 1] or one a
    query; ``nms_iou`` drops a box that overlaps a better one of the same query by more.
    """
    thresholds = check_threshold(threshold, len(names)).to(logits)
    if nms_iou is not None:
        check_fraction("nms_iou", nms_iou)
    if not isinstance(top_k, Integral) or top_k < 1:
        raise QueryError(f"top_k must be a whole number, at least 1, got {top_k!r}")
    boxes = frame.to_image(boxes_cxcywh)
    scores = logits.sigmoid()
    possible = (logits > -torch.inf) & (area(boxes) > 0)[:, None]  # [P, Q]
    best = _best(scores, boxes, possible, names)
    patches, labels = (possible & (scores >= thresholds)).nonzero(as_tuple=True)
    scores, boxes = scores[patches, labels], boxes[patches]
    # A stable order: equal scores keep the order of patches and queries on every machine.
    order = scores.argsort(descending=True, stable=True)
    if nms_iou is not None:
        order = order[: max(NMS_CANDIDATES, 10 * top_k)]
        # It moves the boxes of each label to a place of their own: far out, float32 has no pixels left for the 1000th.
        kept = batched_nms(boxes[order].double(), scores[order].double(), labels[order], nms_iou)
        order = order[kept.sort().values]
    order = order[:top_k]
    return Detections(boxes[order], scores[order], labels[order], tuple(names), frame.image_hw, patches[order], best)


def _best(scores: Tensor, boxes: Tensor, possible: Tensor, names: Sequence[str]) -> Detection | None:
    """The answer of the highest score, whatever the threshold; of equals the first."""
    if not possible.any():
        return None
    patch, label = divmod(int(scores.where(possible, -1).argmax()), len(names))
    x0, y0, x1, y1 = boxes[patch].tolist()
    return Detection(names[label], float(scores[patch, label]), (x0, y0, x1, y1), label)


def check_fraction(name: str, value: float) -> None:
    """Refuses a setting that is no number in [0, 1]."""
    if not isinstance(value, Real) or not 0 <= value <= 1:  # NaN fails this too
        raise QueryError(f"{name} must be a number in [0, 1], got {value!r}")


def check_threshold(threshold: float | Sequence[float], n_queries: int) -> Tensor:
    """Thresholds [Q] from one number or one a query; anything outside [0, 1] raises QueryError."""
    try:
        thresholds = torch.as_tensor(threshold, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise QueryError(f"threshold must be a number in [0, 1] or one a query, got {threshold!r}") from None
    if thresholds.ndim > 1 or (thresholds.ndim == 1 and len(thresholds) != n_queries):
        raise QueryError(f"threshold must be one number, or one for each of the {n_queries} queries, got {threshold!r}")
    if not ((thresholds >= 0) & (thresholds <= 1)).all():  # NaN fails this too
        raise QueryError(f"threshold must lie in [0, 1], got {threshold!r}")
    return thresholds.expand(n_queries)
