"""A training scene after matching: its boxes, what they are called, and the patches that answer for them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.boxes import cxcywh_to_xyxy, paired_iou
from owl_swin.training.matcher import Match
from owl_swin.types import ImageEmbeddings, MaskEmbeddings, PatchLogitInputs


@dataclass(frozen=True, slots=True)
class MatchedScene:
    """``asked [q]`` columns of the batch's Q classes, in order, and how much each of those counts, ``rare [Q]``;
    ``boxes [G, 4]`` cxcywh in [0, 1], each once, with ``names [G, q]`` (how sure each is) and ``rows [G]``, their
    places among all boxes of the scene; ``match`` says which patches answer. ``vague_boxes [V, 4]`` with columns
    ``vague_columns [V]`` and places ``vague_rows [V]`` are neither there nor not."""

    asked: Tensor
    rare: Tensor
    boxes: Tensor
    names: Tensor
    rows: Tensor
    match: Match
    vague_boxes: Tensor
    vague_columns: Tensor
    vague_rows: Tensor

    @property
    def patch_names(self) -> Tensor:
        """[M, q]: the names of the boxes that the matched patches answer for."""
        return self.names[self.match.targets]

    def shares(self) -> Tensor:
        """How much each pair counts, [M], together 1: every box as the root of the patches that answer for it, as large
        things have many."""
        weights, targets = self.match.weights, self.match.targets
        answering = torch.bincount(targets, minlength=len(self.boxes)).clamp(min=1)
        share = weights / answering[targets].sqrt()
        return share / share.sum().clamp(min=1e-6)

    def certainty(self) -> Tensor:
        """How sure each box is of its best name, [G]; a scene may be asked for nothing at all."""
        return F.pad(self.names, (0, 1)).amax(1)

    def rarity(self) -> Tensor:
        """How much each box's rarest name counts, [G]."""
        return F.pad(self.names * self.rare[self.asked], (0, 1)).amax(1)

    def with_areas(self, known: Tensor) -> "MatchedScene":
        """The scene for what its places show: the vague boxes that are ``known [V]`` by their masks are boxes of it
        too, after the others, and their names are asked."""
        if not known.any():
            return self
        columns = self.vague_columns[known]
        asked = torch.cat([self.asked, columns]).unique()
        names = self.names.new_zeros(len(self.names) + len(columns), len(asked))
        names[: len(self.names), torch.searchsorted(asked, self.asked)] = self.names
        names[torch.arange(len(columns)) + len(self.names), torch.searchsorted(asked, columns)] = 1
        return replace(
            self,
            asked=asked,
            boxes=torch.cat([self.boxes, self.vague_boxes[known]]),
            names=names,
            rows=torch.cat([self.rows, self.vague_rows[known]]),
            vague_boxes=self.vague_boxes[~known],
            vague_columns=self.vague_columns[~known],
            vague_rows=self.vague_rows[~known],
        )

    def open_question(self, centres: Tensor, targets: Tensor) -> Tensor:
        """[P, q], 1 where a patch learns whether it is of a name: not inside a vague box of that name, unless it
        answers for a sure one (``targets [P, q]`` above 0)."""
        known, places = places_in(self.asked, self.vague_columns)
        within = inside(centres, self.vague_boxes[known])  # [P, V]
        vague = torch.zeros_like(targets).index_add_(1, places, within.to(targets))
        return ((vague == 0) | (targets > 0)).to(targets)


def one_by_one(images: ImageEmbeddings) -> list[ImageEmbeddings]:
    """The pictures of a batch. Indexing one after another gives the same, but each then has a gradient as large as that
    of the whole batch."""
    masks = images.masks
    branch: Sequence[MaskEmbeddings | None] = [None] * len(images.pred_boxes)
    if masks is not None:
        dense = (masks.dense.class_embeds, masks.dense.logit_shift, masks.dense.logit_scale)
        places = [PatchLogitInputs(*own) for own in zip(*map(torch.unbind, dense), strict=True)]
        asked = zip(masks.mask_embeds.unbind(), masks.pixel_embeds.unbind(), places, strict=True)
        branch = [MaskEmbeddings(*own) for own in asked]
    scored = zip(images.class_embeds.unbind(), images.logit_shift.unbind(), images.logit_scale.unbind(), strict=True)
    rest = zip(images.image_embed.unbind(), images.pred_boxes.unbind(), images.objectness_logits.unbind(), strict=True)
    return [
        ImageEmbeddings(
            *logit_inputs,
            image_embed=image_embed,
            pred_boxes=pred_boxes,
            objectness_logits=objectness_logits,
            grid_hw=images.grid_hw,
            masks=own,
        )
        for logit_inputs, (image_embed, pred_boxes, objectness_logits), own in zip(scored, rest, branch, strict=True)
    ]


def first_of(boxes: Tensor, among: Tensor) -> Tensor:
    """For each box the first row of ``among`` that is the very same."""
    if not len(boxes):
        return torch.zeros(0, dtype=torch.long, device=boxes.device)
    return (boxes[:, None] == among[None]).all(-1).float().argmax(1)


def inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """[P, G]: which patch centres lie in which boxes."""
    distance = (centres[:, None] - boxes[None, :, :2]).abs()
    return (distance <= boxes[None, :, 2:] / 2).all(-1)


def places_in(asked: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Which of ``columns`` are asked [n], as a mask, and the places of these in ``asked``, which is in order."""
    known = torch.isin(columns, asked)
    return known, torch.searchsorted(asked, columns[known])


@torch.no_grad()
def overlap_with_targets(boxes: Tensor, targets: Tensor) -> Tensor:
    """IoU [M] of cxcywh boxes [M, 4] with their targets [M, 4]."""
    return paired_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
