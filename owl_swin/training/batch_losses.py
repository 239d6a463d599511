"""The box and name losses of all scenes of a batch at once: the same numbers as scene by scene, in a few large steps.

A scene's losses are some hundred small operations. On a graphics card starting them takes longer than doing them, so
there the scenes are padded to a common number of boxes and names and go through each operation together.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from owl_swin.boxes import cxcywh_to_xyxy, paired_iou
from owl_swin.scoring import raw_logits
from owl_swin.training.config import DetectConfig
from owl_swin.training.losses import box_losses, focal_loss
from owl_swin.training.matcher import PatchTargets, aligned_targets
from owl_swin.training.naming import name_loss
from owl_swin.types import ImageEmbeddings

# Boxes that overlap by more are one box with several names.
SAME_BOX = 0.9
# A patch whose box is worse than this has to reach this score all the same.
LEAST_QUALITY = 0.1
# A logit of a name that is not asked: nothing is left of it in a softmax.
NOT_ASKED = -1e4


@dataclass(frozen=True, slots=True)
class PaddedScenes:
    """B scenes with up to G boxes, q names and V vague boxes each: ``boxes [B, G, 4]`` cxcywh in [0, 1], how sure each
    is of each name ``names [B, G, q]`` and which of them are ``there [B, G]``; the names as columns of the batch's
    classes ``asked [B, q]``, which of them are asked ``is_asked [B, q]``, and how much they count ``rare [B, q]``;
    ``vague_boxes [B, V, 4]``, which of the asked names they are of ``vague_names [B, V, q]`` and which are there
    ``is_vague [B, V]``."""

    boxes: Tensor
    names: Tensor
    there: Tensor
    asked: Tensor
    is_asked: Tensor
    rare: Tensor
    vague_boxes: Tensor
    vague_names: Tensor
    is_vague: Tensor


def pad_scenes(
    boxes: list[Tensor], labels: list[Tensor], scores: list[Tensor], asked: list[Tensor], rare: Tensor, device
) -> PaddedScenes:
    """The scenes of a batch, as DetectBatch has them, on ``device``; boxes that are the same are merged. ``rare [Q]``
    says how much each class of the batch counts."""
    sure = [own > 0 for own in scores]

    def padded(parts: list[Tensor], fill: float = 0) -> Tensor:
        return pad_sequence(parts, batch_first=True, padding_value=fill).to(device, non_blocking=True)

    columns = padded(asked, -1)
    own = padded([x[k] for x, k in zip(labels, sure, strict=True)], -2)
    strength = padded([x[k] for x, k in zip(scores, sure, strict=True)])
    places = padded([x[k] for x, k in zip(boxes, sure, strict=True)])
    vague = padded([x[~k] for x, k in zip(labels, sure, strict=True)], -2)
    names = (own[:, :, None] == columns[:, None, :]) * strength[:, :, None]
    names, leads = _merged(places, names, own >= 0)
    return PaddedScenes(
        boxes=places,
        names=names,
        there=leads,
        asked=columns.clamp(min=0),
        is_asked=columns >= 0,
        rare=rare.to(device)[columns.clamp(min=0)],
        vague_boxes=padded([x[~k] for x, k in zip(boxes, sure, strict=True)]),
        vague_names=(vague[:, :, None] == columns[:, None, :]).float(),
        is_vague=vague >= 0,
    )


def _merged(boxes: Tensor, names: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Names [B, G, q] of the boxes [B, G, 4] that lead a group of the same box, and which do, [B, G]."""
    if not boxes.shape[1]:
        return names, there
    xyxy = cxcywh_to_xyxy(boxes)
    same = (paired_iou(xyxy[:, :, None], xyxy[:, None]) > SAME_BOX) & there[:, :, None] & there[:, None]
    own = torch.arange(boxes.shape[1], device=boxes.device)
    same |= own[:, None] == own
    first = same.float().argmax(2)  # the earliest box that this one repeats
    for _ in range(boxes.shape[1].bit_length()):  # a repeats b, b repeats c: all are of c's group
        first = first.gather(1, first)
    merged = torch.zeros_like(names).scatter_reduce(1, first[:, :, None].expand_as(names), names, "amax")
    return merged, (first == own) & there


def detection_losses(
    images: ImageEmbeddings,
    scenes: PaddedScenes,
    centres: Tensor,
    texts: Tensor,
    exemplars: tuple[Tensor, Tensor] | None,
    settings: DetectConfig,
) -> dict[str, Tensor]:
    """The mean over scenes of each loss: "class", "l1", "giou", "objectness", and where they are wanted "name" and
    "exemplar". ``texts [Q, E]`` and ``exemplars`` (embeddings [K, E], columns [K]) are of the batch's classes."""
    asked_texts = texts[scenes.asked]  # [B, q, E]
    logits = raw_logits(images, asked_texts)
    match = aligned_targets(centres, logits, images.pred_boxes, scenes.names, scenes.boxes, scenes.there)
    batch = len(logits)
    count = match.weights.sum(1).clamp(min=1)  # [B]
    answers = match.weights > 0
    goal = match.weights
    if settings.quality:
        goal = goal * match.overlaps.clamp(min=LEAST_QUALITY)
    padded_names = scenes.names if scenes.names.shape[1] else scenes.names.new_zeros(batch, 1, scenes.names.shape[2])
    owners = match.owners[:, :, None]
    patch_names = padded_names.gather(1, owners.expand(-1, -1, padded_names.shape[2]))  # [B, P, q]
    class_targets = patch_names * goal[:, :, None]
    certainty = padded_names.amax(2) if padded_names.shape[2] else padded_names.new_zeros(batch, padded_names.shape[1])
    object_targets = goal * certainty.gather(1, match.owners)
    within = _inside(centres, scenes.vague_boxes) & scenes.is_vague[:, None]  # [B, P, V]
    vague = within.float() @ scenes.vague_names
    learns = ((vague == 0) | (class_targets > 0)) & scenes.is_asked[:, None]
    open_places = within.any(2) & (object_targets == 0)
    focal = {"alpha": settings.focal_alpha, "gamma": settings.focal_gamma}
    losses = {
        "class": ((focal_loss(logits, class_targets, **focal) * learns).sum((1, 2)) / count).mean(),
        "objectness": (
            (focal_loss(images.objectness_logits, object_targets, **focal) * ~open_places).sum(1) / count
        ).mean(),
    }
    where = answers.nonzero(as_tuple=True)
    share = _shares(match, padded_names.shape[1])[where] / batch
    wanted = scenes.boxes[where[0], match.owners[where]]
    distance, overlap = box_losses(images.pred_boxes[where], wanted)
    losses |= {"l1": (distance * share).sum(), "giou": (overlap * share).sum()}
    if settings.name_weight:
        rarity = (padded_names * scenes.rare[:, None]).amax(2)[where[0], match.owners[where]]
        cosines = (images.class_embeds @ asked_texts.transpose(1, 2))[where]
        cosines = torch.where(scenes.is_asked[where[0]], cosines, NOT_ASKED)
        losses["name"] = name_loss(cosines, patch_names[where], share * rarity)
    if exemplars is not None:
        shows = (exemplars[1][None, :, None] == scenes.asked[:, None]) & scenes.is_asked[:, None]  # [B, K, q]
        place = shows.float().transpose(1, 2)
        lost = focal_loss(raw_logits(images, exemplars[0]), class_targets @ place, **focal)
        losses["exemplar"] = ((lost * (learns.float() @ place)).sum((1, 2)) / count).mean()
    return losses


def _shares(match: PatchTargets, boxes: int) -> Tensor:
    """How much each patch counts [B, P], those of a scene together 1: MatchedScene.shares."""
    answers = (match.weights > 0).float()
    answering = answers.new_zeros(len(answers), boxes).scatter_add(1, match.owners, answers).clamp(min=1)
    share = match.weights / answering.gather(1, match.owners).sqrt()
    return share / share.sum(1, keepdim=True).clamp(min=1e-6)


def _inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """[B, P, V]: which patch centres lie in which boxes."""
    distance = (centres[None, :, None] - boxes[:, None, :, :2]).abs()
    return (distance <= boxes[:, None, :, 2:] / 2).all(-1)
