"""What each pixel of a picture shows, from what its patches say: one of the names that were asked for, or nothing.

Patches are coarse; a pixel takes the scores of the nearest ones, weighted by how alike its embedding is to theirs
(joint bilateral upsampling, Kopf et al. 2007, in the space of the mask branch), so that edges are those of the picture.
A picture is painted in blocks, each when all views that show it are there, so that neither the scores of all its pixels
nor all its views are in memory together.
"""

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.encoded import EncodedImage, PreparedImage, View
from owl_swin.errors import ImageError, QueryError
from owl_swin.frame import HW, Crop
from owl_swin.postprocess import DetectOptions, Threshold
from owl_swin.semantic_map import NOTHING, SemanticMap
from owl_swin.tiling import TilesLike, tile_crops
from owl_swin.types import PatchLogitInputs

# Side in pixels of what is painted at a time, and values of all names in it that are in memory.
BLOCK, BLOCK_VALUES = 512, 2**24
# Labels are int16, and a map takes six bytes a pixel.
MAX_NAMES, MAX_MAP_PIXELS = 2**15 - 1, 2**28
# Tiles fade in from their borders over this share of their sides.
FADE = 0.1

Block = tuple[int, int, int, int]  # xyxy in whole pixels


def check_named(queries: object) -> None:
    """Refuses, with QueryError, what names nothing that a pixel may show."""
    if queries is None or (isinstance(queries, Sized) and not len(queries)):
        raise QueryError("a map needs names to choose from: give a list of what may be seen, as in ['sky', 'a dog']")


def crops_of(image: object, tiles: TilesLike | None, image_hw: HW) -> list[Crop]:
    """The tiles of a picture of this size, or those that it was prepared or encoded in."""
    if isinstance(image, PreparedImage):
        frames = image.frames
    elif isinstance(image, EncodedImage):
        frames = tuple(view.frame for view in image.views)
    else:
        return tile_crops(tiles, image_hw)
    return [frame.crop_xyxy or (0, 0, *image_hw[::-1]) for frame in frames[1:]]


def map_thresholds(names: Sequence[str], threshold: Threshold) -> Tensor:
    """Thresholds [Q] of a map of these names; no names, or more than a map can hold, raise QueryError."""
    check_named(names)
    if len(names) > MAX_NAMES:
        raise QueryError(f"a map has at most {MAX_NAMES} names, got {len(names)}")
    return DetectOptions(threshold=threshold).thresholds(names)


def segment_views(
    views: Iterable[tuple[int, View]],
    crops: Callable[[HW], Sequence[Crop]],
    logits_of: Callable[[PatchLogitInputs], Tensor],
    names: Sequence[str],
    thresholds: Tensor,
) -> SemanticMap:
    """The map of a picture whose views come one after another, each with its number: the whole, 0, first.

    ``crops`` gives the tiles, numbered from 1, of a picture of this size; ``logits_of`` gives [P, Q] of the patches
    of a view. Where tiles show a place they say what it is, and the whole picture where none does. A pixel shows the
    name of the highest score of those that reach their ``thresholds`` [Q]. Queries of one name are one in the map.
    """
    painter: _Painter | None = None
    for number, view in views:
        if painter is None:
            painter = _Painter(view.frame.image_hw, crops(view.frame.image_hw), names, thresholds)
        painter.add(number, Layer.of(view, logits_of))
    assert painter is not None, "the whole picture is a view"
    return painter.found()


def paint(layers: "Sequence[Layer]", image_hw: HW, names: Sequence[str], thresholds: Tensor) -> SemanticMap:
    """The map of a picture of this size of all its layers, that of the whole first."""
    painter = _Painter(image_hw, [layer.box for layer in layers[1:]], names, thresholds)
    for number, layer in enumerate(layers):
        painter.add(number, layer)
    return painter.found()


def affinities(pixel_embeds: Tensor, grid_hw: HW) -> Tensor:
    """How much each pixel [K, h, w] takes from the nine patches around it: [9, h, w], which add up to 1.

    The nearest patches, row by row, by a quadratic B-spline of the distance, times exp(-d²/s²), where d is from the
    pixel's embedding to the mean of the patch's, and s² the mean of d² from pixels to their own patches. Pixels that
    are all alike so take a smooth surface through the patches.
    """
    means = F.adaptive_avg_pool2d(pixel_embeds[None], grid_hw)[0]
    rows, columns = (
        _neighbours(n, cells, pixel_embeds) for n, cells in zip(pixel_embeds.shape[1:], grid_hw, strict=True)
    )
    distances, nearness = [], []
    for (y, down), (x, across) in ((row, column) for row in rows for column in columns):
        distances.append((pixel_embeds - means[:, y][:, :, x]).square_().sum(0))
        nearness.append(down[:, None] * across)
    away = torch.stack(distances)
    scale = away[4].mean().clamp(min=1e-12)
    return (torch.stack(nearness).log() - away / scale).softmax(0)


def _neighbours(n: int, cells: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each of ``n`` pixels along a side, the patch before its own, its own, and the next: which of ``cells`` it is,
    and its weight by distance."""
    place = (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) * (cells / n)
    own = place.long().clamp(max=cells - 1)
    t = place - own - 0.5
    weights = (0.5 * (0.5 - t).square(), 0.75 - t.square(), 0.5 * (0.5 + t).square())
    return [((own + step).clamp(0, cells - 1), weight) for step, weight in zip((-1, 0, 1), weights, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """What one view says: ``scores`` [Q, h, w] of its patches, and the ``weights`` [9, H, W] of its pixels for them.

    Scores and not logits are mixed, else a gap would open where one name ends and the next begins.
    """

    scores: Tensor
    weights: Tensor
    box: Block  # of the picture
    spans_hw: tuple[float, float]  # pixels of the picture that the frame is long, padding included
    shown_hw: HW

    @staticmethod
    def of(view: View, logits_of: Callable[[PatchLogitInputs], Tensor]) -> "Layer":
        """The view's, whose embeddings are not held."""
        masks, grid_hw = view.embeddings.masks, view.embeddings.grid_hw
        if masks is None:
            raise QueryError("this picture was encoded without masks; encode it with masks=True")
        scores, frame = logits_of(masks.dense).float().sigmoid(), view.frame
        height, width = frame.image_hw
        return Layer(
            scores=scores.T.reshape(-1, *grid_hw),
            weights=affinities(masks.pixel_embeds, grid_hw),
            box=frame.crop_xyxy or (0, 0, width, height),
            spans_hw=frame.spans_hw,
            shown_hw=frame.shown_hw,
        )

    def opacity(self, block: Block, image_hw: HW) -> Tensor:
        """[h, w] of a block of the picture: 1 in the middle, less towards a border beyond which the picture goes on, 0
        outside."""
        sides = []
        for axis in (1, 0):
            low, high = self.box[axis], self.box[2 + axis]
            places = self._places(block, axis)
            fade = max(1.0, FADE * (high - low))
            before = (places - low) / fade if low > 0 else torch.ones_like(places)
            after = (high - places) / fade if high < image_hw[1 - axis] else torch.ones_like(places)
            inside = (places > low) & (places < high)
            sides.append(before.minimum(after).clamp(0, 1) * inside)
        return sides[0][:, None] * sides[1]

    def bounds(self, block: Block) -> tuple[Tensor, Tensor]:
        """The lowest and the highest score [Q] of each name that any pixel of a block can have."""
        spans = []
        for axis in (1, 0):
            cells = self.scores.shape[2 - axis]
            first, last = self._positions(block, axis)[[0, -1]].div(self.weights.shape[2 - axis] / cells).tolist()
            spans.append(slice(max(0, int(first) - 2), int(last) + 3))
        near = self.scores[:, spans[0], spans[1]]
        return near.amin((1, 2)), near.amax((1, 2))

    def at(self, block: Block, names: Tensor) -> Tensor:
        """Scores [len(names), h, w] of these names in the pixels of a block."""
        (rows, down), (columns, across) = (self._interpolation(block, axis) for axis in (1, 0))
        return down @ self._sharp(names, rows, columns) @ across.T

    def _sharp(self, names: Tensor, rows: slice, columns: slice) -> Tensor:
        """Scores of some names in some pixels of the view."""
        coarse, weights = self.scores[names], self.weights[:, rows, columns]
        sides = zip(self.weights.shape[1:], self.scores.shape[1:], (rows, columns), strict=True)
        ys, xs = ([cell[part] for cell, _ in _neighbours(n, cells, coarse)] for n, cells, part in sides)
        sharp = None
        for weight, (y, x) in zip(weights, ((y, x) for y in ys for x in xs), strict=True):
            part = coarse[:, y][:, :, x].mul_(weight)
            sharp = part if sharp is None else sharp.add_(part)
        assert sharp is not None
        return sharp

    def _interpolation(self, block: Block, axis: int) -> tuple[slice, Tensor]:
        """The pixels of the view that a side of a block lies on, and the matrix that interpolates between them."""
        places = self._positions(block, axis)
        low = places.long()
        first, last = int(low.min()), int(places.max().ceil())
        pixels = torch.arange(first, last + 1, device=places.device)
        return slice(first, last + 1), (1 - (places[:, None] - pixels).abs()).clamp(min=0)

    def _positions(self, block: Block, axis: int) -> Tensor:
        """Where the pixels along a side of a block lie in the view, in its pixels, 0 at the middle of the first; what
        is padded counts for nothing."""
        n, span, shown = self.weights.shape[2 - axis], self.spans_hw[1 - axis], self.shown_hw[1 - axis]
        last = min(n, max(1, round(n * shown / span))) - 1
        return ((self._places(block, axis) - self.box[axis]) * (n / span) - 0.5).clamp(0, last)

    def _places(self, block: Block, axis: int) -> Tensor:
        """Middles of the pixels along a side of a block."""
        return torch.arange(block[axis], block[2 + axis], device=self.scores.device) + 0.5


class _Painter:
    """A map that is being made, and what is still needed for it."""

    def __init__(self, image_hw: HW, crops: Sequence[Crop], names: Sequence[str], thresholds: Tensor):
        height, width = image_hw
        if height * width > MAX_MAP_PIXELS:
            raise ImageError(
                f"a map of {width}x{height} pixels does not fit in memory, the most are {MAX_MAP_PIXELS}; "
                "give parts of the picture, or a smaller one"
            )
        self._image_hw, self._thresholds = image_hw, thresholds
        self._names = tuple(dict.fromkeys(names))
        places = {name: label for label, name in enumerate(self._names)}
        self._label_of = torch.tensor([places[name] for name in names], dtype=torch.int16)  # [Q]
        self._labels = torch.full(image_hw, NOTHING, dtype=torch.int16)
        self._scores = torch.zeros(image_hw)
        self._layers: dict[int, Layer] = {}
        # Numbers of the views that a block waits for and those that it is made of; blocks that need a view.
        self._waiting: dict[Block, set[int]] = {}
        self._needs: dict[int, set[Block]] = {number: set() for number in range(len(crops) + 1)}
        for number, crop in enumerate([(0, 0, width, height), *crops]):
            for block in _blocks(crop, image_hw):
                self._waiting.setdefault(block, set()).add(number)
                self._needs[number].add(block)
        self._views = {block: sorted(numbers) for block, numbers in self._waiting.items()}

    def add(self, number: int, layer: Layer) -> None:
        """Paints what can be painted with this view, and forgets the views that are needed no more."""
        self._layers[number] = layer
        for block in list(self._needs[number]):
            self._waiting[block].discard(number)
            if self._waiting[block]:
                continue
            self._paint(block)
            for needed in self._views[block]:
                self._needs[needed].discard(block)
        self._layers = {number: layer for number, layer in self._layers.items() if self._needs[number]}

    def found(self) -> SemanticMap:
        """The map, when all views were there."""
        assert not any(self._waiting.values()), "a view is missing"
        return SemanticMap(self._labels, self._scores, self._names)

    def _paint(self, block: Block) -> None:
        """The names of the pixels of one block."""
        parts = self._mixed(block)
        device = parts[0][0].scores.device
        thresholds = self._thresholds.to(device)
        lowest, highest = (torch.stack(ends) for ends in zip(*(layer.bounds(block) for layer, _ in parts), strict=True))
        # No pixel's score is beyond those of its patches: what is too low everywhere, or always beaten, is left out.
        sure = lowest.amin(0)
        sure = torch.where(sure >= thresholds, sure, 0).amax()
        highest = highest.amax(0)
        asked = ((highest >= thresholds) & (highest >= sure)).nonzero()[:, 0]
        if not len(asked):
            return
        x0, y0, x1, y1 = block
        best = torch.full((y1 - y0, x1 - x0), -1.0, device=device)
        label = torch.full_like(best, NOTHING, dtype=torch.int16)
        labels = self._label_of.to(device)
        for names in asked.split(max(1, BLOCK_VALUES // BLOCK**2)):
            scores = sum(layer.at(block, names) * opacity for layer, opacity in parts)
            assert isinstance(scores, Tensor)
            value, which = scores.masked_fill_(scores < thresholds[names, None, None], -1).max(0)
            better = value > best
            best = torch.where(better, value, best)
            label = torch.where(better, labels[names[which]], label)
        self._labels[y0:y1, x0:x1] = label.cpu()
        self._scores[y0:y1, x0:x1] = best.clamp(0, 1).cpu()

    def _mixed(self, block: Block) -> list[tuple[Layer, Tensor]]:
        """The views that a block is made of, each with its part in every pixel; these add up to 1."""
        whole, *tiles = (self._layers[number] for number in self._views[block])
        opacities = [tile.opacity(block, self._image_hw) for tile in tiles]
        total = sum(opacities, whole.opacity(block, self._image_hw) * 0)
        parts = [(tile, opacity / total.clamp(min=1)) for tile, opacity in zip(tiles, opacities, strict=True)]
        rest = (1 - total).clamp(min=0)
        return [*parts, (whole, rest)] if rest.any() else parts


def _blocks(box: Crop, image_hw: HW) -> Iterable[Block]:
    """The blocks of a picture that a box lies on."""
    height, width = image_hw
    x0, y0, x1, y1 = box
    for top in range(y0 // BLOCK * BLOCK, y1, BLOCK):
        for left in range(x0 // BLOCK * BLOCK, x1, BLOCK):
            yield left, top, min(left + BLOCK, width), min(top + BLOCK, height)
