"""A large picture in overlapping tiles, and what was found in each of them as one result."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real

import torch
from torch import Tensor

from owl_swin.boxes import area, paired_iou, pairwise_iou
from owl_swin.detections import Detections, merged_masks
from owl_swin.encoded import View
from owl_swin.errors import QueryError, brief
from owl_swin.frame import HW, MAX_FRAME_SIDE, Crop
from owl_swin.mask_sampling import joined_masks, masks_in_view
from owl_swin.nms import not_suppressed
from owl_swin.postprocess import DetectOptions, find_detections
from owl_swin.types import ImageEmbeddings

MIN_TILE = 32
MAX_OVERLAP = 0.9
# A box that comes so near to the border of its tile, in shares of the tile's side or of its own, may be cut there: the
# boxes of a network are no finer.
TOUCH, SHORT = 0.03, 0.2
# Two boxes are of one thing that a seam cuts where they agree in this share of what both tiles show of it.
AGREE = 0.5
# A box that is cut is a part of a larger one that has this share of it.
INSIDE = 0.7
# Boxes are of one thing only where the weaker has this share of the better one's score: with a low threshold there is
# always a weak box that would fit.
TRUSTED = 0.25
# Boxes that are compared with all others at once: bounds the memory.
ROWS = 256


@dataclass(frozen=True, slots=True)
class Tiles:
    """Squares that cover a picture: ``size`` is their side and ``overlap`` the least share of it that neighbours have
    in common, 0 to 0.9. A thing that is smaller than the overlap is whole in one tile at least."""

    size: int = 640
    overlap: float = 0.2

    def __post_init__(self) -> None:
        whole = isinstance(self.size, Integral) and not isinstance(self.size, bool)
        if not whole or not MIN_TILE <= self.size <= MAX_FRAME_SIDE:
            raise QueryError(
                f"the side of tiles must be a whole number of pixels from {MIN_TILE} to {MAX_FRAME_SIDE}, "
                f"got {brief(self.size)}"
            )
        real = isinstance(self.overlap, Real) and not isinstance(self.overlap, bool)
        if not real or not 0 <= self.overlap <= MAX_OVERLAP:  # NaN fails this too
            raise QueryError(
                f"the overlap of tiles must be a share of their side from 0 to {MAX_OVERLAP}, got {brief(self.overlap)}"
            )

    def crops(self, image_hw: HW) -> list[Crop]:
        """The tiles of a picture, row by row; none where it is no larger than one.

        They lie at even distances, all of one size, the last ones flush with the border; a side that is shorter than a
        tile is the tile's.
        """
        if max(image_hw) <= self.size:
            return []
        tops, lefts = map(self._starts, image_hw)
        height, width = image_hw
        return [(x, y, min(x + self.size, width), min(y + self.size, height)) for y in tops for x in lefts]

    def count(self, image_hw: HW) -> int:
        """How many tiles a picture has."""
        return 0 if max(image_hw) <= self.size else math.prod(len(self._starts(side)) for side in image_hw)

    def _starts(self, length: int) -> list[int]:
        step = max(1, math.floor(self.size * (1 - self.overlap)))
        rest = max(0, length - self.size)
        steps = math.ceil(rest / step)
        return [round(i * rest / steps) for i in range(steps + 1)] if steps else [0]


TilesLike = int | Tiles | Sequence[Crop]


def tile_crops(tiles: TilesLike | None, image_hw: HW) -> list[Crop]:
    """What is shown of a picture beside the whole: the side of tiles, Tiles, or parts of it, xyxy in whole pixels."""
    if tiles is None:
        return []
    if isinstance(tiles, (int, float)):
        tiles = Tiles(tiles)  # type: ignore[arg-type]
    if isinstance(tiles, Tiles):
        return tiles.crops(image_hw)
    if not isinstance(tiles, Sequence) or isinstance(tiles, (str, bytes)):
        raise QueryError(f"tiles are a side in pixels, Tiles(size, overlap) or a list of boxes, got {brief(tiles)}")
    return [check_tile(tile, image_hw) for tile in tiles]


def check_tile(tile: Crop, image_hw: HW) -> Crop:
    """A part of a picture, xyxy in whole pixels; one that is empty or not inside raises QueryError."""
    try:
        x0, y0, x1, y1 = tile
    except (TypeError, ValueError):
        x0 = y0 = x1 = y1 = -1
    whole = all(isinstance(value, Integral) for value in (x0, y0, x1, y1))
    if not whole or not (0 <= x0 < x1 <= image_hw[1] and 0 <= y0 < y1 <= image_hw[0]):
        raise QueryError(
            f"a tile is xmin, ymin, xmax, ymax in whole pixels inside the picture, which is "
            f"{image_hw[1]}x{image_hw[0]}, got {brief(tile)}"
        )
    return int(x0), int(y0), int(x1), int(y1)


def find_in_views(
    views: Iterable[tuple[int, View]],
    logits_of: Callable[[ImageEmbeddings], Tensor],
    names: Sequence[str],
    options: DetectOptions,
    texts: Sequence[bool] = (),
) -> Detections:
    """What is found in a picture of which each view, with its number, is looked at alone and then dropped.

    ``logits_of`` gives [P, Q] of a view, ``texts`` says which of the queries are texts. The patches of the result are
    counted through the views by their numbers. Names compete for a thing within each view.
    """
    found: dict[int, FoundInView] = {}
    for number, view in views:
        logits, boxes = logits_of(view.embeddings), view.frame.to_image(view.embeddings.pred_boxes)
        if options.objectness is not None:
            keep = view.embeddings.objectness_logits.sigmoid() >= options.objectness
            logits = logits.masked_fill(~keep[:, None], -torch.inf)
        one = find_detections(logits, boxes, names, view.frame.image_hw, options, texts)
        if options.masks:
            one = replace(one, masks=masks_in_view(view, one.patches, one.boxes))
        found[number] = FoundInView(one, view.frame.crop_xyxy, len(boxes))
        found = without_weak(found, options)
    return join_views(found, options)


@dataclass(frozen=True, slots=True)
class FoundInView:
    """What was found in a view: in pixels of the picture, of which ``crop_xyxy`` is the tile (None: all of it) and
    ``n_patches`` how many patches there are to be counted."""

    found: Detections
    crop_xyxy: Crop | None
    n_patches: int


def without_weak(views: dict[int, FoundInView], options: DetectOptions) -> dict[int, FoundInView]:
    """Views with masks without what takes no part in joining them: so the masks of many tiles stay few."""
    most = options.max_detections if options.suppressing_iou is None else options.n_candidates
    if not options.masks or sum(len(view.found) for view in views.values()) <= 1.5 * most:
        return views
    least = torch.cat([view.found.scores for view in views.values()]).topk(most).values[-1]
    return {n: replace(view, found=view.found[view.found.scores >= least]) for n, view in views.items()}


def join_views(views: Mapping[int, FoundInView], options: DetectOptions) -> Detections:
    """What was found in each view, by its number, as one result, whose patches are counted through the views."""
    parts, crops, start = [], [], 0
    for number in sorted(views):
        view = views[number]
        parts.append(replace(view.found, patches=view.found.patches + start))
        crops.append(view.crop_xyxy)
        start += view.n_patches
    return parts[0] if len(parts) == 1 else merge_tiles(parts, crops, options)


def merge_tiles(parts: Sequence[Detections], crops: Sequence[Crop | None], options: DetectOptions) -> Detections:
    """What was found in the whole picture (crop None) and in its tiles, as one result: each thing once.

    Boxes of one query that meet at a seam become one that holds both, or the one in which the thing was seen whole,
    with the better score. A box that its tile cuts, and that lies in a larger one which goes on beyond the border, is a
    part of that and leaves it the better score. Then overlapping boxes compete as in one picture. ``nms_iou`` None
    keeps all as they are, parts too. The mask of boxes that became one is all that any of theirs has.
    """
    if options.suppressing_iou is None or len(parts) == 1 or not any(map(len, parts)):
        return Detections.merge(parts)[: options.max_detections]
    masks = merged_masks(parts)
    found = Detections.merge([replace(part, masks=None) for part in parts])
    height, width = found.image_hw
    rows = _Rows.of(parts, [crop or (0, 0, width, height) for crop in crops])
    order = rows.scores.argsort(descending=True, stable=True)
    single = rows[order[: options.n_candidates]]
    image = torch.tensor([0, 0, width, height], dtype=torch.float64)
    rows, things = _joined_at_seams(single, image)
    rows = _without_parts(rows, image, options.suppressing_iou)
    rows = rows[rows.scores.argsort(descending=True, stable=True)]
    groups = torch.zeros_like(rows.labels) if options.nms_across else rows.labels
    rows = rows[not_suppressed(rows.boxes, rows.scores, groups, options.suppressing_iou)[: options.max_detections]]
    merged = replace(
        found,
        boxes=rows.boxes.to(found.boxes.dtype),
        scores=rows.scores.to(found.scores.dtype),
        labels=rows.labels,
        patches=rows.patches,
    ).to(found.boxes.device)
    if masks is not None:
        members = [single.numbers[things == number].tolist() for number in rows.numbers.tolist()]
        merged = replace(merged, masks=joined_masks(masks, merged.boxes, members))
    return replace(merged, best=merged[0])


@dataclass(frozen=True, slots=True)
class _Rows:
    """Detections of all tiles: what a tile shows of their ``boxes`` [N, 4], and the tile ``seen`` [N, 4], in float64
    on the CPU. Where several were joined, ``seen`` is the hull of their tiles."""

    boxes: Tensor
    seen: Tensor
    near: Tensor  # [N, 2]: so near to a border of the tile, x and y, is at it
    scores: Tensor
    labels: Tensor
    patches: Tensor
    parts: Tensor  # [N]: boxes that it was put together of
    numbers: Tensor  # [N]: the detection, counted through the tiles; or after that the thing

    @staticmethod
    def of(parts: Sequence[Detections], crops: Sequence[Crop]) -> "_Rows":
        seen = torch.cat(
            [
                torch.tensor(crop, dtype=torch.float64).expand(len(part), 4)
                for part, crop in zip(parts, crops, strict=True)
            ]
        )
        boxes = torch.cat([part.boxes for part in parts]).cpu().double()
        boxes = torch.cat([boxes[:, :2].maximum(seen[:, :2]), boxes[:, 2:].minimum(seen[:, 2:])], 1)
        scores = torch.cat([part.scores for part in parts]).cpu().double()
        labels, patches = (torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("labels", "patches"))
        tile_side, own_side = (corners[:, 2:] - corners[:, :2] for corners in (seen, boxes))
        near = (TOUCH * tile_side).maximum(SHORT * own_side)
        numbers = torch.arange(len(labels))
        rows = _Rows(boxes, seen, near, scores, labels, patches, torch.ones_like(labels), numbers)
        return rows[area(boxes) > 0]

    def __getitem__(self, keep: Tensor) -> "_Rows":
        return _Rows(*(getattr(self, field.name)[keep] for field in fields(self)))

    def cut(self, image: Tensor) -> Tensor:
        """[N, 4]: whether a box is at the left, top, right and bottom border of its tile, and the picture goes on."""
        low = (self.boxes[:, :2] <= self.seen[:, :2] + self.near) & (self.seen[:, :2] > image[:2])
        high = (self.boxes[:, 2:] >= self.seen[:, 2:] - self.near) & (self.seen[:, 2:] < image[2:])
        return torch.cat([low, high], 1)


def _joined_at_seams(rows: _Rows, image: Tensor) -> tuple[_Rows, Tensor]:
    """The rows in which those that are parts of one thing, in neighbouring tiles, are one; and which one each is in."""
    cut = rows.cut(image)
    pairs = torch.cat([_meeting(rows, cut, axis) for axis in (0, 1)])  # [K, 2]
    thing = torch.arange(len(rows.scores))
    while len(pairs):
        first = thing.scatter_reduce(0, pairs.flatten(), thing[pairs].amin(1).repeat_interleave(2), "amin")
        first = first[first]
        if torch.equal(first, thing):
            break
        thing = first
    best, things = thing.unique(return_inverse=True)  # rows are in order of their scores: the first is the best
    merged = rows[best]

    def hull(boxes: Tensor, of_things: Tensor) -> Tensor:
        where = things[:, None].expand(-1, 2)
        low = of_things[:, :2].scatter_reduce(0, where, boxes[:, :2], "amin")
        return torch.cat([low, of_things[:, 2:].scatter_reduce(0, where, boxes[:, 2:], "amax")], 1)

    parts = torch.bincount(things, minlength=len(best))
    boxes, seen = hull(rows.boxes, merged.boxes), hull(rows.seen, merged.seen)
    return replace(merged, boxes=boxes, seen=seen, parts=parts, numbers=torch.arange(len(best))), things


def _meeting(rows: _Rows, cut: Tensor, axis: int) -> Tensor:
    """Pairs [K, 2] of rows that meet at a seam across ``axis`` (0: x): the first goes on where the second begins.

    Both fill what their tiles have in common along the axis, and agree there. Of several that could be the other half
    in one tile, the one that agrees best is.
    """
    firsts, seconds = cut[:, 2 + axis].nonzero()[:, 0], cut[:, axis].nonzero()[:, 0]
    across = 1 - axis
    found = []
    for part in _blocks(rows, firsts):
        near = seconds[_near(rows.seen[part], rows.seen[seconds])]
        a, b = rows[part], rows[near]
        end, start = a.seen[:, None, 2 + axis], b.seen[None, :, axis]
        meets = (a.labels[:, None] == b.labels) & (start <= end)
        weaker, better = a.scores[:, None].minimum(b.scores), a.scores[:, None].maximum(b.scores)
        meets &= weaker >= TRUSTED * better
        meets &= (a.seen[:, None, axis] < start) & (end < b.seen[None, :, 2 + axis])
        meets &= a.boxes[:, None, axis] <= start + b.near[None, :, axis]
        meets &= b.boxes[None, :, 2 + axis] >= end - a.near[:, None, axis]
        low = a.seen[:, None, across].maximum(b.seen[None, :, across])
        high = a.seen[:, None, 2 + across].minimum(b.seen[None, :, 2 + across])
        share = _common_share(a.boxes[:, None], b.boxes[None], across, low, high)
        share = share * torch.where(start == end, 1, _common_share(a.boxes[:, None], b.boxes[None], axis, start, end))
        share = torch.where(meets, share, 0)
        i, j = (share >= AGREE).nonzero(as_tuple=True)
        found.append(torch.stack([part[i].double(), near[j].double(), share[i, j]], 1))
    pairs = torch.cat(found) if found else torch.zeros(0, 3, dtype=torch.float64)
    (first, second), share = pairs[:, :2].long().T, pairs[:, 2]
    tiles = rows.seen.unique(dim=0, return_inverse=True)[1]
    best = _is_best(share, first, tiles[second]) & _is_best(share, second, tiles[first])
    return torch.stack([first, second], 1)[best]


def _blocks(rows: _Rows, some: Tensor) -> Iterator[Tensor]:
    """A few of the rows at a time, those of one tile and of its neighbours together, so that little is near them."""
    tiles = rows.seen[some].unique(dim=0, return_inverse=True)[1]
    yield from some[tiles.argsort(stable=True)].split(ROWS) if len(some) else ()


def _near(boxes: Tensor, others: Tensor) -> Tensor:
    """Indices of the others [N, 4] that touch the hull of the boxes."""
    low, high = boxes[:, :2].amin(0), boxes[:, 2:].amax(0)
    return ((others[:, :2] <= high) & (others[:, 2:] >= low)).all(1).nonzero()[:, 0]


def _common_share(a: Tensor, b: Tensor, axis: int, low: Tensor, high: Tensor) -> Tensor:
    """What boxes [K, 1, 4] and [1, N, 4] have in common along an axis between two places, in shares of what both cover
    there; 0 where that is nothing."""
    a0, a1, b0, b1 = (boxes[..., end].clamp(low, high) for boxes in (a, b) for end in (axis, 2 + axis))
    together = a1.maximum(b1) - a0.minimum(b0)
    return torch.where(together > 0, (a1.minimum(b1) - a0.maximum(b0)).clamp(min=0) / together, 0)


def _is_best(share: Tensor, row: Tensor, tile: Tensor) -> Tensor:
    """[K]: whether a pair's share is the largest of those of its row with the same tile."""
    keys, key = torch.stack([row, tile]).unique(dim=1, return_inverse=True)
    return share == share.new_zeros(keys.shape[1]).scatter_reduce(0, key, share, "amax")[key]


def _without_parts(rows: _Rows, image: Tensor, nms_iou: float) -> _Rows:
    """The rows without those that are parts of others, which have the best score of their parts."""
    cut = rows.cut(image)
    size = area(rows.boxes)
    whole = torch.arange(len(size))
    for part in _blocks(rows, cut.any(1).nonzero()[:, 0]):
        a, a_cut = rows[part], cut[part]
        near = _near(a.boxes, rows.boxes)
        b = rows[near]
        shown = torch.cat(  # [K, N, 4]: what the tile of each part shows of each box
            [b.boxes[None, :, :2].maximum(a.seen[:, None, :2]), b.boxes[None, :, 2:].minimum(a.seen[:, None, 2:])], 2
        )
        low, high = shown[..., :2].maximum(a.boxes[:, None, :2]), shown[..., 2:].minimum(a.boxes[:, None, 2:])
        holds = area(torch.cat([low, high], 2)) >= INSIDE * size[part, None]
        holds &= (b.labels == a.labels[:, None]) & (size[near] > size[part, None])
        goes_on = torch.cat([b.boxes[None, :, :2] < a.seen[:, None, :2], b.boxes[None, :, 2:] > a.seen[:, None, 2:]], 2)
        holds &= (goes_on | ~a_cut[:, None]).all(2) & (b.scores >= TRUSTED * a.scores[:, None])
        fit = torch.where(holds, paired_iou(a.boxes[:, None], shown), -1)
        best = fit.max(1)
        whole[part] = torch.where(best.values >= 0, near[best.indices], part)
    # A box that was put together, and is no part itself, for one that was seen whole and overlaps or holds it.
    alone = ~cut.any(1) & (rows.parts == 1)
    for own in _blocks(rows, ((rows.parts > 1) & (whole == torch.arange(len(size)))).nonzero()[:, 0]):
        a = rows[own]
        near = _near(a.boxes, rows.boxes)
        overlap = pairwise_iou(a.boxes, rows.boxes[near])
        common = overlap / (1 + overlap) * (size[own, None] + size[near])
        fits = (overlap >= nms_iou) | ((common >= INSIDE * size[own, None]) & (size[near] > size[own, None]))
        fits &= alone[near] & (rows.labels[near] == a.labels[:, None]) & (overlap > 0)
        fits &= rows.scores[near] >= TRUSTED * a.scores[:, None]
        best = torch.where(fits, overlap, -1).max(1)
        whole[own] = torch.where(best.values >= 0, near[best.indices], own)
    while not torch.equal(whole[whole], whole):  # each is larger than its part, or seen whole: there is no circle
        whole = whole[whole]
    scores = rows.scores.scatter_reduce(0, whole, rows.scores, "amax")
    return replace(rows, scores=scores)[whole == torch.arange(len(size))]
