"""Which patch answers for which box.

"hungarian": one patch a box, the matching of OWL-ViT (after DETR, arXiv:2005.12872).
"aligned": the few patches that already agree best in name and place, weighted by how well (TOOD, arXiv:2108.07755).
"centre": every patch in the middle of a box, as in FCOS with centre sampling (arXiv:1904.01355).
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from owl_swin.boxes import cxcywh_to_xyxy, pairwise_giou, pairwise_iou

EPSILON = 1e-8
# Of "aligned": patches of a box, the power of the overlap in the agreement, and the least weight of a patch.
ALIGNED_TOP_K, ALIGNED_BETA, LEAST_WEIGHT = 9, 4.0, 0.1


class Match(NamedTuple):
    """Pairs: patch [M] answers for target [M] with weight [M] in (0, 1]; no patch stands twice."""

    patches: Tensor
    targets: Tensor
    weights: Tensor


class FocalSettings(Protocol):
    """The form of the classification loss, which the class cost repeats."""

    @property
    def focal_alpha(self) -> float: ...

    @property
    def focal_gamma(self) -> float: ...


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
        empty = torch.empty(0, dtype=torch.long, device=logits.device)
        return empty, empty
    logits, boxes = logits.float(), boxes.float()
    cost = class_cost(logits, target_labels, alpha=alpha, gamma=gamma)
    cost = cost + torch.cdist(boxes, target_boxes, p=1)
    cost = cost - pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
    patches, targets = linear_sum_assignment(torch.nan_to_num(cost, nan=1e6).numpy(force=True))
    return torch.from_numpy(patches).to(logits.device), torch.from_numpy(targets).to(logits.device)


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
        empty = torch.empty(0, dtype=torch.long, device=centres.device)
        return empty, empty
    distance = (centres[:, None] - target_boxes[None, :, :2]).abs()  # [P, G, 2]
    inside = (distance <= radius * target_boxes[None, :, 2:]).all(-1)
    nearest = distance.square().sum(-1).argmin(0)
    inside[nearest, torch.arange(len(target_boxes), device=centres.device)] = True
    areas = target_boxes[:, 2] * target_boxes[:, 3]
    owner = torch.where(inside, areas[None], torch.inf).min(1)
    patches = owner.values.isfinite().nonzero()[:, 0]
    return patches, owner.indices[patches]


@torch.no_grad()
def aligned_match(
    centres: Tensor,
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    *,
    top_k: int = ALIGNED_TOP_K,
    alpha: float = 1.0,
    beta: float = ALIGNED_BETA,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (patch [M], target [M]) and weights [M]: for each target the ``top_k`` patches inside it that agree best.

    Agreement is probability^alpha * IoU^beta. A patch that several targets want goes to the one it overlaps most. The
    best patch of a target has weight 1, the others weigh as much less as they agree less (but at least 0.1, so that
    all learn while nothing agrees yet); a target without a patch centre inside it takes the nearest one.
    """
    if not len(target_boxes):
        empty = torch.empty(0, dtype=torch.long, device=logits.device)
        return empty, empty, logits.new_empty(0)
    labels = target_labels.to(logits)
    probability = logits.float().sigmoid() @ labels.T / labels.sum(1).clamp(min=1)  # [P, G]
    overlap = pairwise_iou(cxcywh_to_xyxy(boxes.float()), cxcywh_to_xyxy(target_boxes))  # [P, G]
    agreement = (probability**alpha * overlap**beta).clamp(min=EPSILON)
    distance = (centres[:, None] - target_boxes[None, :, :2]).abs()  # [P, G, 2]
    inside = (distance <= target_boxes[None, :, 2:] / 2).all(-1)
    inside[distance.square().sum(-1).argmin(0), torch.arange(len(target_boxes), device=logits.device)] = True
    # Where nothing agrees yet, what is nearer to the middle goes first.
    nearness = -(distance / target_boxes[None, :, 2:].clamp(min=EPSILON)).square().sum(-1)
    ranking = torch.where(inside, agreement.log() + 1e-3 * nearness, -torch.inf)
    best = ranking.topk(min(top_k, len(ranking)), dim=0)
    chosen = torch.zeros_like(inside).scatter_(0, best.indices, best.values.isfinite())
    owner = torch.where(chosen, overlap + 1e-6 * nearness.exp(), -1.0).max(1)
    patches = (owner.values >= 0).nonzero()[:, 0]
    targets = owner.indices[patches]
    own = agreement[patches, targets]
    most = torch.zeros(len(target_boxes), device=logits.device).scatter_reduce(0, targets, own, "amax")
    return patches, targets, (own / most[targets]).clamp(min=LEAST_WEIGHT)


def _hungarian(centres, logits, boxes, target_labels, target_boxes, settings: FocalSettings) -> Match:
    focal = {"alpha": settings.focal_alpha, "gamma": settings.focal_gamma}
    patches, targets = hungarian_match(logits, boxes, target_labels, target_boxes, **focal)
    return Match(patches, targets, torch.ones(len(patches), device=logits.device))


def _aligned(centres, logits, boxes, target_labels, target_boxes, settings: FocalSettings) -> Match:
    return Match(*aligned_match(centres, logits, boxes, target_labels, target_boxes))


def _centre(centres, logits, boxes, target_labels, target_boxes, settings: FocalSettings) -> Match:
    patches, targets = centre_match(centres, target_boxes)
    return Match(patches, targets, torch.ones(len(patches), device=logits.device))


# Each takes one picture's (centres [P, 2], logits [P, Q], boxes [P, 4], target_labels [G, Q], target_boxes [G, 4],
# settings).
MATCHERS: dict[str, Callable[..., Match]] = {"hungarian": _hungarian, "aligned": _aligned, "centre": _centre}
