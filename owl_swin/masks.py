"""Masks of detections: a small map of logits over each one's box, and pixels, run lengths and polygons made of it."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.errors import QueryError, brief
from owl_swin.rle import compressed

# Side of the largest map: of 300 masks a few megabytes are kept, whatever the size of the picture.
MOST_SIDE = 128
# Logits lie between this and its negative, so that they stay finite in float16 and between two of them.
MOST_LOGIT = 100.0
# A polygon may leave out corners that are no farther from it, in pixels of the picture.
TOLERANCE_PX = 0.5

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class BoxMasks:
    """Masks of N boxes of one picture, as logits over each box; pixels are made when they are asked for.

    ``logits [N, S, S]`` are those of the S x S parts of each of ``boxes_px [N, 4]``, xyxy pixels; between their middles
    they are interpolated, and a pixel belongs to a mask where its logit is above 0. As a sequence it holds bool masks
    [H, W]: ``masks[3]`` makes one, ``for mask in masks`` one after another, ``masks.to_tensor()`` all at once.
    """

    logits: Tensor
    boxes_px: Tensor
    image_hw: tuple[int, int]

    def __post_init__(self) -> None:
        shapes = [list(self.logits.shape), list(self.boxes_px.shape)]
        n, side = len(self.boxes_px), self.logits.shape[-1]
        if shapes != [[n, side, side], [n, 4]] or (n and not side):
            raise QueryError(f"expected logits [N, S, S] and boxes_px [N, 4], got {shapes[0]} and {shapes[1]}")
        if self.logits.dtype != torch.float16:
            object.__setattr__(self, "logits", self.logits.clamp(-MOST_LOGIT, MOST_LOGIT).half())

    @classmethod
    def empty(cls, image_hw: tuple[int, int]) -> "BoxMasks":
        """None, in a picture of that size."""
        return cls(torch.zeros(0, 1, 1), torch.zeros(0, 4), image_hw)

    @classmethod
    def cat(cls, parts: "Sequence[BoxMasks]") -> "BoxMasks":
        """Those of one picture, one after another; there is at least one part."""
        side = max(part.logits.shape[-1] for part in parts)
        logits = [part.logits if part.logits.shape[-1] == side else _resized(part.logits, side) for part in parts]
        return cls(torch.cat(logits), torch.cat([part.boxes_px for part in parts]), parts[0].image_hw)

    def __len__(self) -> int:
        return len(self.boxes_px)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W), as of the array that numpy() makes."""
        return len(self), *self.image_hw

    @property
    def nbytes(self) -> int:
        """Memory that is kept."""
        return self.logits.nbytes + self.boxes_px.nbytes

    @overload
    def __getitem__(self, keep: int) -> Tensor: ...

    @overload
    def __getitem__(self, keep: Tensor | slice | Sequence[int]) -> "BoxMasks": ...

    def __getitem__(self, keep: Any) -> "Tensor | BoxMasks":
        """One mask, bool [H, W], by its number, or a part of them by mask, indices or slice."""
        if getattr(keep, "ndim", None) == 0:
            keep = keep.item()
        if isinstance(keep, Integral) and not isinstance(keep, bool):
            (x0, y0, x1, y1), part = self.part(int(keep))
            whole = torch.zeros(self.image_hw, dtype=torch.bool, device=part.device)
            whole[y0:y1, x0:x1] = part
            return whole
        rows = row_indices(keep, len(self), "masks").to(self.logits.device)
        return BoxMasks(self.logits[rows], self.boxes_px[rows], self.image_hw)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether all are the same, to the bit."""
        if not isinstance(other, BoxMasks):
            return NotImplemented
        same = self.image_hw == other.image_hw and torch.equal(self.boxes_px, other.boxes_px)
        return same and torch.equal(self.logits, other.logits)

    __hash__ = None  # type: ignore[assignment]

    def part_xyxy(self, number: int) -> Box:
        """Where a mask can have pixels, in whole pixels of the picture."""
        x0, y0, x1, y1 = self.boxes_px[range(len(self))[number]].tolist()
        (left, right), (top, bottom) = _covered(x0, x1, self.image_hw[1]), _covered(y0, y1, self.image_hw[0])
        return left, top, right, bottom

    def part(self, number: int) -> tuple[Box, Tensor]:
        """Where a mask can have pixels, xyxy in whole pixels of the picture, and its pixels there, bool [h, w]."""
        left, top, right, bottom = box = self.part_xyxy(number)
        columns, starts, ends = self._runs(number)
        changes = np.zeros(
            (right - left, bottom - top + 1), dtype=np.int8
        )  # 1 where a run begins, -1 where it has ended
        changes[columns - left, starts - top] += 1
        changes[columns - left, ends - top] -= 1
        inside = changes[:, :-1].cumsum(1, dtype=np.int8).view(bool).T
        return box, torch.from_numpy(inside).to(self.logits.device)

    def to_tensor(self) -> Tensor:
        """All masks, bool [N, H, W]: a byte for each pixel of each."""
        masks = torch.zeros(self.shape, dtype=torch.bool, device=self.logits.device)
        for i in range(len(self)):
            (x0, y0, x1, y1), part = self.part(i)
            masks[i, y0:y1, x0:x1] = part
        return masks

    def numpy(self) -> np.ndarray:
        """All masks, bool [N, H, W]: a byte for each pixel of each."""
        return self.to_tensor().cpu().numpy()

    def to(self, device: str | torch.device) -> "BoxMasks":
        """The same with its tensors on another device."""
        return BoxMasks(self.logits.to(device), self.boxes_px.to(device), self.image_hw)

    def scaled_to(self, image_hw: tuple[int, int]) -> "BoxMasks":
        """The same in pixels of the picture in another size."""
        return BoxMasks(self.logits, scaled_boxes(self.boxes_px, self.image_hw, image_hw), image_hw)

    def run_lengths(self, number: int) -> np.ndarray:
        """How many pixels, column after column, are outside, inside, outside … of a mask; outside is first, if of 0."""
        columns, first, last = self._runs(number)
        height, width = self.image_hw
        starts, ends = columns * height + first, columns * height + last
        if len(starts):
            apart = starts[1:] != ends[:-1]  # what reaches the bottom goes on at the top of the next column
            starts, ends = np.append(starts[:1], starts[1:][apart]), np.append(ends[:-1][apart], ends[-1:])
        total = height * width
        lengths = np.diff(np.stack([starts, ends], 1).flatten(), prepend=0, append=total)
        return lengths[:-1] if len(starts) and ends[-1] == total else lengths

    def _runs(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pixels of a mask from top to bottom, column after column: the columns [R], and the rows where each run
        begins and where it has ended. They lie between the zeros of the logits down the middle of a column, so that
        the height of a picture costs nothing."""
        left, top, right, bottom = self.part_xyxy(number)
        x0, y0, x1, y1 = self.boxes_px[number].tolist()
        logits = self.logits[number].float().cpu().numpy()
        side = len(logits)
        places = ((np.arange(left, right) + 0.5 - x0) / max(x1 - x0, 1e-6) * side - 0.5).clip(0, side - 1)
        low = places.astype(int)
        share = (places - low).astype(np.float32)[:, None]
        values = logits.T[low] * (1 - share) + logits.T[(low + 1).clip(max=side - 1)] * share  # [columns, S]
        inside = np.pad(values > 0, ((0, 0), (1, 1)))
        columns, nodes = np.divmod(np.flatnonzero(inside[:, 1:] != inside[:, :-1]), side + 1)
        # A run begins or ends between two nodes, or at the border of the box.
        before, after = (values[columns, (nodes - i).clip(0, side - 1)] for i in (1, 0))
        places = nodes - 0.5 + before / np.where(before == after, 1, before - after)
        rows = y0 + places / side * (y1 - y0) - 0.5
        rows[nodes == 0], rows[nodes == side] = top - 1, bottom
        starts, ends = np.floor(rows[::2]) + 1, np.ceil(rows[1::2])
        starts, ends = (rows.clip(top, bottom).astype(np.int64) for rows in (starts, ends))
        some = starts < ends
        return columns[::2][some] + left, starts[some], ends[some]

    def rle(self) -> list[dict[str, Any]]:
        """COCO's run-length encoding of each mask, as pycocotools writes it: ``size`` [H, W], ``counts`` as text."""
        return [self.rle_of(i) for i in range(len(self))]

    def rle_of(self, number: int) -> dict[str, Any]:
        """That of one mask."""
        return self.coco(number)["segmentation"]

    def coco(self, number: int) -> dict[str, Any]:
        """What COCO says of one mask: ``area`` in pixels and ``segmentation``."""
        lengths = self.run_lengths(number)
        segmentation = {"size": list(self.image_hw), "counts": compressed(lengths)}
        return {"area": int(lengths[1::2].sum()), "segmentation": segmentation}

    def polygons(self, tolerance_px: float = TOLERANCE_PX) -> list[list[list[float]]]:
        """For each mask its outlines, [x0, y0, x1, y1, …] in pixels: one for each part of it, the largest first.

        Holes are filled. Corners are left out where the outline moves by no more than ``tolerance_px``.
        """
        return [self.outlines(i, tolerance_px) for i in range(len(self))]

    def outlines(self, number: int, tolerance_px: float = TOLERANCE_PX) -> list[list[float]]:
        """Those of one mask."""
        return [outer for outer, *_ in self.rings(number, tolerance_px)]

    def rings(self, number: int, tolerance_px: float = TOLERANCE_PX) -> list[list[list[float]]]:
        """For each part of one mask, the largest first, its outline as ``polygons`` has it, and then its holes."""
        from contourpy import FillType, contour_generator

        logits = self.logits[number].float().cpu().numpy()
        side = len(logits)
        # To the border of the box the outermost logits hold, and there the mask ends.
        edge = 1e-3 / side
        places = np.concatenate([[-edge, 0], (np.arange(side) + 0.5) / side, [1, 1 + edge]])
        bordered = np.pad(np.pad(logits, 1, mode="edge"), 1, constant_values=-MOST_LOGIT)
        filled = contour_generator(places, places, bordered, fill_type=FillType.OuterOffset).filled(0, np.inf)
        x0, y0, x1, y1 = self.boxes_px[number].tolist()
        parts = []
        for points, offsets in zip(*filled, strict=True):
            points = np.clip(points, 0, 1) * (x1 - x0, y1 - y0) + (x0, y0)
            spans = itertools.pairwise(offsets)
            rings = [_simplified(points[start : end - 1], tolerance_px) for start, end in spans]
            areas = [_area(ring) for ring in rings]
            if areas[0] > 0:
                kept = [ring.round(2).flatten().tolist() for ring, area in zip(rings, areas, strict=True) if area > 0]
                parts.append((areas[0], kept))
        parts.sort(key=lambda one: -one[0])
        return [rings for _, rings in parts]

    def outline(self, number: int) -> list[float]:
        """The outlines of one mask as one, which goes from each part to the next, where they are near, and back."""
        parts = [np.reshape(part, (-1, 2)) for part in self.outlines(number)]
        if not parts:
            return []
        joined = parts[0]
        for part in parts[1:]:
            away = ((joined[:, None] - part[None]) ** 2).sum(-1)
            here, there = np.unravel_index(away.argmin(), away.shape)
            joined = np.concatenate([joined[: here + 1], part[there:], part[: there + 1], joined[here:]])
        return joined.flatten().tolist()


def scaled_boxes(boxes_px: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """Boxes [N, 4], xyxy pixels, in a picture that has another size now."""
    (height, width), (new_height, new_width) = from_hw, to_hw
    scale = new_width / max(1, width), new_height / max(1, height)
    return boxes_px * boxes_px.new_tensor([*scale, *scale])


def row_indices(keep: Any, n: int, what: str) -> Tensor:
    """What a part of ``n`` rows is called by: indices [K], or a mask [n]; TypeError for what is neither."""
    if isinstance(keep, slice):
        return torch.tensor(range(n)[keep], dtype=torch.long)
    try:
        rows = torch.as_tensor(keep if hasattr(keep, "ndim") else list(keep))
    except (TypeError, ValueError, RuntimeError):
        rows = torch.zeros(())
    if rows.numel() == 0 and rows.dtype != torch.bool:  # an empty list has no dtype of its own
        rows = rows.long()
    if isinstance(keep, str) or rows.ndim != 1 or rows.is_floating_point() or rows.is_complex():
        raise TypeError(f"{what} are called by a number, a slice, a list of numbers or a mask, got {brief(keep)}")
    return rows


def _covered(start: float, end: float, length: int) -> tuple[int, int]:
    """The pixels of a side whose middles lie in a span; at least one, the nearest."""
    first = min(max(math.floor(start + 0.5), 0), length - 1)
    return first, min(max(math.floor(end + 0.5), first + 1), length)


def _resized(logits: Tensor, side: int) -> Tensor:
    """Logits [N, S, S] of the same boxes at more places."""
    if not len(logits):
        return logits.new_zeros(0, side, side)
    return F.interpolate(logits.float()[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0].half()


def _area(ring: np.ndarray) -> float:
    """That of a polygon [N, 2]."""
    x, y = ring.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """A closed polygon [N, 2] without the corners that lie within a distance of the line between those that stay
    (Douglas and Peucker 1973); one of which less than a triangle would stay is left as it is."""
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(1)))
    closed = np.vstack([ring, ring[:1]])
    keep = np.zeros(len(closed), dtype=bool)
    keep[[0, far, -1]] = True
    spans = [(0, far), (far, len(ring))]
    while spans:
        start, end = spans.pop()
        if end - start < 2:
            continue
        chord, points = closed[end] - closed[start], closed[start + 1 : end] - closed[start]
        length = math.hypot(*chord)
        if length == 0:
            away = np.hypot(*points.T)
        else:
            away = np.abs(chord[0] * points[:, 1] - chord[1] * points[:, 0]) / length
        worst = int(np.argmax(away))
        if away[worst] > tolerance:
            middle = start + 1 + worst
            keep[middle] = True
            spans += [(start, middle), (middle, end)]
    kept = closed[:-1][keep[:-1]]
    return kept if len(kept) > 2 else ring
