"""Which patch answers for which box.

"hungarian": one patch a box, the matching of OWL-ViT (after DETR, arXiv:2005.12872).
"aligned": the few patches that already agree best in name and place, weighted by how well (TOOD, arXiv:2108.07755).
"centre": every patch in the middle of a box, as in FCOS with centre sampling (arXiv:1904.01355).
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from owl_swin.boxes import cxcywh_to_xyxy, paired_iou, pairwise_giou

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


class PatchTargets(NamedTuple):
    """What each patch answers for: the box ``owners [B, P]`` with weight ``weights [B, P]`` (0: none), and the IoU of
    its own box with that, ``overlaps [B, P]``."""

    owners: Tensor
    weights: Tensor
    overlaps: Tensor


@torch.no_grad()
def aligned_targets(
    centres: Tensor, logits: Tensor, boxes: Tensor, names: Tensor, target_boxes: Tensor, there: Tensor
) -> PatchTargets:
    """For each box of B scenes the patches inside it that agree best, at most ALIGNED_TOP_K.

    ``centres [P, 2]``, ``logits [B, P, q]``, ``boxes [B, P, 4]``; ``names [B, G, q]`` of ``target_boxes [B, G, 4]``, of
    which those that are not ``there [B, G]`` fill scenes up. Agreement is probability · IoU^ALIGNED_BETA. A patch that
    several boxes want goes to the one it overlaps most. The best patch of a box has weight 1, the others weigh as much
    less as they agree less (but at least LEAST_WEIGHT, so that all learn while nothing agrees yet); a box without a
    patch centre inside it takes the nearest one.
    """
    batch, patches = logits.shape[:2]
    if not target_boxes.shape[1]:
        nothing = logits.new_zeros(batch, patches)
        return PatchTargets(nothing.long(), nothing, nothing)
    labels = names.transpose(1, 2)  # [B, q, G]
    probability = logits.sigmoid() @ labels / labels.sum(1, keepdim=True).clamp(min=1)  # [B, P, G]
    overlap = paired_iou(cxcywh_to_xyxy(boxes)[:, :, None], cxcywh_to_xyxy(target_boxes)[:, None])
    agreement = (probability * overlap**ALIGNED_BETA).clamp(min=EPSILON)
    distance = (centres[None, :, None] - target_boxes[:, None, :, :2]).abs()  # [B, P, G, 2]
    inside = (distance <= target_boxes[:, None, :, 2:] / 2).all(-1)
    nearest = distance.square().sum(-1).argmin(1, keepdim=True)
    inside = inside.scatter(1, nearest, True) & there[:, None]
    # Where nothing agrees yet, what is nearer to the middle goes first.
    nearness = -(distance / target_boxes[:, None, :, 2:].clamp(min=EPSILON)).square().sum(-1)
    ranking = torch.where(inside, agreement.log() + 1e-3 * nearness, -torch.inf)
    best = ranking.topk(min(ALIGNED_TOP_K, patches), dim=1)
    chosen = torch.zeros_like(inside).scatter(1, best.indices, best.values.isfinite())
    owner = torch.where(chosen, overlap + 1e-6 * nearness.exp(), -1.0).max(2)
    answers, targets = owner.values >= 0, owner.indices
    own = agreement.gather(2, targets[:, :, None])[:, :, 0] * answers
    most = own.new_zeros(batch, target_boxes.shape[1]).scatter_reduce(1, targets, own, "amax")
    weights = (own / most.gather(1, targets).clamp(min=EPSILON)).clamp(min=LEAST_WEIGHT) * answers
    return PatchTargets(targets, weights, overlap.gather(2, targets[:, :, None])[:, :, 0])


def _hungarian(centres, logits, boxes, target_labels, target_boxes, settings: FocalSettings) -> Match:
    focal = {"alpha": settings.focal_alpha, "gamma": settings.focal_gamma}
    patches, targets = hungarian_match(logits, boxes, target_labels, target_boxes, **focal)
    return Match(patches, targets, torch.ones(len(patches), device=logits.device))


def _aligned(centres, logits, boxes, target_labels, target_boxes, settings: FocalSettings) -> Match:
    there = torch.ones(1, len(target_boxes), dtype=torch.bool, device=logits.device)
    scene = logits.float()[None], boxes.float()[None], target_labels.float()[None], target_boxes[None]
    owners, weights, _ = (found[0] for found in aligned_targets(centres, *scene, there))
    patches = weights.nonzero()[:, 0]
    return Match(patches, owners[patches], weights[patches])


def _centre(centres, logits, boxes, target_labels, target_boxes, settings: FocalSettings) -> Match:
    patches, targets = centre_match(centres, target_boxes)
    return Match(patches, targets, torch.ones(len(patches), device=logits.device))


# Each takes one picture's (centres [P, 2], logits [P, Q], boxes [P, 4], target_labels [G, Q], target_boxes [G, 4],
# settings).
MATCHERS: dict[str, Callable[..., Match]] = {"hungarian": _hungarian, "aligned": _aligned, "centre": _centre}
