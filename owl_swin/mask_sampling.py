"""Masks of the boxes that stayed, out of the mask embeddings of a view; and those of parts of a thing as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from owl_swin.encoded import View
from owl_swin.errors import QueryError
from owl_swin.masks import MOST_LOGIT, MOST_SIDE, BoxMasks
from owl_swin.models.masks import mask_logits_at, sampled

# Side of the smallest map, of boxes that span few pixel embeddings, as Mask R-CNN's (arXiv:1703.06870).
LEAST_SIDE = 28
# Logits of a whole frame, or of boxes, that are made at a time.
LOGITS_AT_ONCE = 2**22


def masks_in_view(view: View, patches: Tensor, boxes_px: Tensor) -> BoxMasks:
    """Masks of the boxes [N, 4], xyxy pixels of the picture, of some patches [N] of a view.

    What the view does not show of a box is outside of its mask. A view that was encoded without masks raises
    QueryError.
    """
    embeddings = view.embeddings
    if embeddings.masks is None:
        raise QueryError("this picture was encoded without masks; encode it with masks=True")
    if not len(patches):
        return BoxMasks.empty(view.frame.image_hw).to(boxes_px.device)
    ask, pixels = embeddings.masks.mask_embeds[patches], embeddings.masks.pixel_embeds
    shown = view.frame.from_image(boxes_px)  # what is left of each box after it was cut to the picture
    cells = shown[:, 2:] * shown.new_tensor([pixels.shape[2], pixels.shape[1]])
    side = min(MOST_SIDE, max(LEAST_SIDE, int(cells.max().ceil())))
    middles = (torch.arange(side, device=shown.device, dtype=shown.dtype) + 0.5) / side - 0.5
    x, y = (shown[:, i, None] + shown[:, 2 + i, None] * middles for i in (0, 1))  # [N, S] each
    step = max(1, LOGITS_AT_ONCE // max(pixels[0].numel(), side**2))
    parts = zip(*(tensor.split(step) for tensor in (ask, embeddings.pred_boxes[patches], x, y)), strict=True)
    logits = torch.cat([mask_logits_at(some, pixels, boxes, across, down) for some, boxes, across, down in parts])
    unseen = _outside(x)[:, None, :] | _outside(y)[:, :, None]
    return BoxMasks(logits.masked_fill(unseen, -MOST_LOGIT), boxes_px, view.frame.image_hw)


def joined_masks(masks: BoxMasks, boxes_px: Tensor, members: Sequence[Sequence[int]]) -> BoxMasks:
    """Masks of boxes [K, 4] each of which is put together of some of ``masks``: what any of them has of it."""
    if not members:
        return BoxMasks(masks.logits[:0], boxes_px, masks.image_hw)
    whole = torch.tensor([k for k, own in enumerate(members) for _ in own])
    member = torch.tensor([i for own in members for i in own])
    # On the CPU: not every device has float64.
    boxes, own = boxes_px.cpu().double()[whole], masks.boxes_px.cpu().double()[member]
    sizes, own_sizes = boxes[:, 2:] - boxes[:, :2], (own[:, 2:] - own[:, :2]).clamp(min=1e-6)
    side = masks.logits.shape[-1]
    side = min(MOST_SIDE, max(side, round(float(side * (sizes / own_sizes).max()))))
    places = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    x, y = (  # [M, S] each, in [0, 1] of the member's box
        (boxes[:, i, None] + places * sizes[:, i, None] - own[:, i, None]) / own_sizes[:, i, None] for i in (0, 1)
    )
    x, y, unseen_x, unseen_y, whole, member = (
        values.to(boxes_px.device) for values in (x.float(), y.float(), _outside(x), _outside(y), whole, member)
    )
    joined = masks.logits.new_full((len(boxes_px), side, side), -MOST_LOGIT, dtype=torch.float32)
    step = max(1, LOGITS_AT_ONCE // side**2)
    for rows in torch.arange(len(member)).split(step):
        logits = sampled(masks.logits[member[rows], None].float(), x[rows], y[rows])
        unseen = unseen_x[rows, None, :] | unseen_y[rows, :, None]
        logits = logits.masked_fill(unseen, -MOST_LOGIT)
        joined.scatter_reduce_(0, whole[rows, None, None].expand_as(logits), logits, "amax")
    return BoxMasks(joined, boxes_px, masks.image_hw)


def _outside(places: Tensor) -> Tensor:
    return (places < 0) | (places > 1)
