"""What a step teaches the mask branch: masks of boxes, and the names of what every patch's own place shows."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.models.masks import MASK_STRIDE, mask_logits
from owl_swin.scoring import raw_logits
from owl_swin.training.config import MaskLossConfig, TrainConfig
from owl_swin.training.losses import focal_loss
from owl_swin.training.mask_losses import (
    affinity_loss,
    projection_loss,
    rgb_to_lab,
    true_mask_losses,
    windows_around,
)
from owl_swin.training.matched import MatchedScene, inside, overlap_with_targets, places_in
from owl_swin.training.matcher import Match
from owl_swin.training.naming import name_loss
from owl_swin.training.true_masks import TrueMasks
from owl_swin.types import ImageEmbeddings, PatchLogitInputs

# A patch whose box overlaps its target less is asked for the mask of the target in place of its own box.
LEAST_OVERLAP = 0.5
# A patch shows a thing from this share of true mask on; below the other it surely does not.
SHOWN, NOT_SHOWN = 0.6, 0.1
# The same where the mask is a guess.
GUESSED = 0.75
# Before masks can be trusted, a patch shows a thing in this part of the ellipse in its box, as (radius)².
MIDDLE = 0.4
# Most patches of a scene, drawn at random, that learn the names of their places in a step.
PLACES = 256
# Fewest patches that the dense loss of a scene is shared among.
FEWEST = 16


def branch_losses(
    images: Sequence[ImageEmbeddings],
    scenes: Sequence[MatchedScene],
    truth: Sequence[TrueMasks],
    colours: Tensor,
    centres: Tensor,
    texts: Tensor,
    exemplars: tuple[Tensor, Tensor] | None,
    progress: float,
    config: TrainConfig,
) -> dict[str, Tensor]:
    """What a batch teaches the branch: "loss", the weighted sum of "mask" and "dense_name", and the parts of "mask".

    ``images``, one a scene, have masks; ``colours [B, 3, H, W]`` are the pixels in [0, 1] as the pictures have them,
    ``centres [P, 2]`` of patches in [0, 1], ``texts [Q, E]`` and ``exemplars`` (embeddings [K, E], columns [K]) those
    of the batch; ``progress`` in [0, 1] says how much of the warm-up is over.
    """
    settings = config.masks
    focal = {"alpha": config.detect.focal_alpha, "gamma": config.detect.focal_gamma}
    parts = mask_losses(images, scenes, truth, colours, settings, progress)
    dense = []
    for place, matched in enumerate(scenes):
        scene = matched.with_areas(truth[place].covering(matched.vague_rows.cpu())[0].to(centres.device))
        seen = shown_by_patches(images[place], scene, truth[place], centres, progress >= 1)
        targets = dense_targets(scene, *seen, centres)
        dense.append(dense_loss(images[place], scene, targets, texts, exemplars, settings, focal))
    parts["dense_name"] = torch.stack(dense).mean()
    return {"loss": settings.weight * parts["mask"] + settings.dense_weight * parts["dense_name"], **parts}


def pick_patches(match: Match, per_box: int, most: int) -> Tensor:
    """Rows [n] of a match, at random: up to ``per_box`` of each target, rather those of more weight, and first one of
    each target before the second of any; at most ``most``."""
    chance = match.weights * (0.5 + 0.5 * torch.rand_like(match.weights))
    order = chance.argsort(descending=True)
    order = order[match.targets[order].argsort(stable=True)]
    rank = _rank_in_group(match.targets[order])
    kept = rank < per_box
    order, rank = order[kept], rank[kept]
    return order[(rank + torch.rand_like(chance[: len(rank)])).argsort()[:most]]


def best_patches(match: Match, n_boxes: int) -> Tensor:
    """The patch [G] of most weight for each of ``n_boxes`` targets, -1 where none answers."""
    order = match.weights.argsort(descending=True)
    order = order[match.targets[order].argsort(stable=True)]
    first = order[_rank_in_group(match.targets[order]) == 0]
    found = match.patches.new_full((n_boxes,), -1)
    return found.scatter(0, match.targets[first], match.patches[first])


def _rank_in_group(groups: Tensor) -> Tensor:
    """Of sorted numbers, how many of the same stand before each."""
    return torch.arange(len(groups), device=groups.device) - torch.searchsorted(groups, groups)


def mask_losses(
    images: Sequence[ImageEmbeddings],
    scenes: Sequence[MatchedScene],
    truth: Sequence[TrueMasks],
    colours: Tensor,
    settings: MaskLossConfig,
    warmth: float,
) -> dict[str, Tensor]:
    """Losses of the masks of some boxes of each scene: "mask", their weighted mean over masks, and its parts.

    ``colours [B, 3, H, W]`` are pixels in [0, 1]; ``warmth`` in [0, 1] says how far the affinity has come in.
    """
    logits, boxes, owners, covered, maps = [], [], [], [], []
    first = 0
    for place, (image, scene) in enumerate(zip(images, scenes, strict=True)):
        match = scene.match
        picked = pick_patches(match, settings.patches, settings.most)
        patches, targets = match.patches[picked], match.targets[picked]
        wanted = scene.boxes[targets]
        logits.append(_logits(image, patches, _asked_boxes(image.pred_boxes[patches], wanted)))
        boxes.append(wanted)
        owners.append(torch.full_like(patches, place))
        known, which = truth[place].covering(scene.rows[targets].cpu())
        covered.append(torch.where(known, which + first, -1))
        maps.append(truth[place].maps)
        first += len(truth[place].rows)
    asked = torch.cat(logits)
    map_hw = (asked.shape[1], asked.shape[2])
    if not len(asked):  # every process and part takes part in every step
        return dict.fromkeys(("mask", "dice", "mask_focal", "projection", "affinity"), asked.sum())
    windows = windows_around(torch.cat(boxes), map_hw, settings.margin)
    seen = windows.look(asked, torch.arange(len(asked), device=asked.device))
    true = torch.cat(covered).to(asked.device)
    sure, guessed = true >= 0, true < 0
    parts = {}
    own = windows[sure]
    stored = torch.cat(maps).to(asked.device)
    shown = own.look(stored, true[sure]).to(seen) / 255
    parts["dice"], parts["mask_focal"] = true_mask_losses(seen[sure], shown, own)
    own = windows[guessed]
    parts["projection"] = projection_loss(seen[guessed], own)
    lab = own.look(_cell_colours(colours, map_hw), torch.cat(owners)[guessed])
    parts["affinity"] = affinity_loss(seen[guessed], lab, own, settings.affinity_threshold)
    weights = {
        "dice": settings.dice_weight,
        "mask_focal": settings.focal_weight,
        "projection": settings.projection_weight,
        "affinity": settings.affinity_weight * warmth,
    }
    total = torch.stack([weights[name] * value.sum() for name, value in parts.items()]).sum() / len(asked)
    return {"mask": total, **{name: value.sum() / max(len(value), 1) for name, value in parts.items()}}


def _asked_boxes(predicted: Tensor, wanted: Tensor) -> Tensor:
    """The boxes that masks are asked for: as detection has them, where they are good enough for that."""
    fits = overlap_with_targets(predicted, wanted) >= LEAST_OVERLAP
    return torch.where(fits[:, None], predicted, wanted).detach()


def _logits(image: ImageEmbeddings, patches: Tensor, boxes: Tensor) -> Tensor:
    assert image.masks is not None
    return mask_logits(image.masks.mask_embeds[patches], image.masks.pixel_embeds, boxes)


@torch.no_grad()
def _cell_colours(pixels: Tensor, map_hw: tuple[int, int]) -> Tensor:
    """CIELAB [B, 3, h, w] of each cell's mean colour."""
    bottom, right = (MASK_STRIDE * cells - side for cells, side in zip(map_hw, pixels.shape[-2:], strict=True))
    padded = F.pad(pixels, (0, right, 0, bottom), mode="replicate") if bottom or right else pixels
    return rgb_to_lab(F.avg_pool2d(padded, MASK_STRIDE))


@torch.no_grad()
def shown_by_patches(
    image: ImageEmbeddings, scene: MatchedScene, truth: TrueMasks, centres: Tensor, warm: bool
) -> tuple[Tensor, Tensor]:
    """Which patches show the thing in each box, and which may: two [P, G], of which the first is part of the second.

    By the true mask where there is one; else, once ``warm``, by the mask of the best patch; before, by the middle of
    the box.
    """
    boxes, grid_hw = scene.boxes, image.grid_hw
    within = inside(centres, boxes)
    radius = ((centres[:, None] - boxes[None, :, :2]) * 2 / boxes[None, :, 2:].clamp(min=1e-6)).square().sum(-1)
    shown = radius <= MIDDLE
    if warm:
        best = best_patches(scene.match, len(boxes))
        asked = _asked_boxes(image.pred_boxes[best], boxes)
        guessed = F.adaptive_avg_pool2d(_logits(image, best, asked).sigmoid(), grid_hw)
        shown = torch.where(best >= 0, guessed.flatten(1).T >= GUESSED, shown)
    may_show = within
    known, which = (found.to(boxes.device) for found in truth.covering(scene.rows.cpu()))
    if known.any():
        maps = truth.maps.to(boxes.device)[which].float() / 255
        covered = F.adaptive_avg_pool2d(maps, grid_hw).flatten(1).T
        shown = torch.where(known, covered >= SHOWN, shown)
        may_show = within & torch.where(known, covered > NOT_SHOWN, True)
    return shown & within, may_show


def dense_targets(
    scene: MatchedScene, shown: Tensor, may_show: Tensor, centres: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What each patch's own place is called, [P, q], and the box it is of, [P] (-1: none); and 1 in [P, q] where the
    patch learns it.

    A patch is of the smallest thing that it shows. Of the other things that it may show it learns nothing, of all else
    that it is not there.
    """
    areas = scene.boxes[:, 2] * scene.boxes[:, 3]
    owner = F.pad(torch.where(shown, areas, torch.inf), (0, 1), value=torch.inf).min(1)
    owners = torch.where(owner.values.isfinite(), owner.indices, -1)
    targets = F.pad(scene.names, (0, 0, 0, 1))[owners]  # the row that is padded is that of no box
    possible = may_show.to(targets) @ (scene.names > 0).to(targets)
    learns = ((possible == 0) | (targets > 0)).to(targets)
    return targets, owners, learns * scene.open_question(centres, targets)


def dense_loss(
    image: ImageEmbeddings,
    scene: MatchedScene,
    targets: tuple[Tensor, Tensor, Tensor],
    texts: Tensor,
    exemplars: tuple[Tensor, Tensor] | None,
    settings: MaskLossConfig,
    focal: dict[str, float],
) -> Tensor:
    """The loss of what the places of one scene are called. ``targets`` are of ``dense_targets``, ``texts [Q, E]`` and
    ``exemplars`` (embeddings [K, E], columns [K]) of the batch."""
    assert image.masks is not None
    drawn = torch.randperm(len(targets[0]), device=texts.device)[:PLACES]
    dense = PatchLogitInputs(
        image.masks.dense.class_embeds[drawn],
        image.masks.dense.logit_shift[drawn],
        image.masks.dense.logit_scale[drawn],
    )
    wanted, owners, learns = (given[drawn] for given in targets)
    count = (owners >= 0).sum().clamp(min=FEWEST)
    asked = texts[scene.asked]
    loss = (focal_loss(raw_logits(dense, asked), wanted, **focal) * learns).sum() / count
    own = owners >= 0
    if settings.name_weight:
        patches = torch.bincount(owners[own], minlength=len(scene.boxes)).clamp(min=1)
        weights = (scene.rarity() / patches.sqrt())[owners[own]]
        weights = weights / weights.sum().clamp(min=1e-6)
        loss = loss + settings.name_weight * name_loss(dense.class_embeds[own] @ asked.T, wanted[own], weights)
    if exemplars is not None:
        here, columns = places_in(scene.asked, exemplars[1])
        lost = focal_loss(raw_logits(dense, exemplars[0][here]), wanted[:, columns], **focal) * learns[:, columns]
        loss = loss + settings.exemplar_weight * lost.sum() / count
    return loss
