"""What was found in a picture."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, overload

import torch
from torch import Tensor

from owl_swin.errors import QueryError
from owl_swin.formats import to_dicts, to_pandas, to_supervision
from owl_swin.masks import TOLERANCE_PX, BoxMasks, row_indices, scaled_boxes

# What Detections has a row of for each detection.
COLUMNS = ("boxes", "scores", "labels", "patches")


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What was found in one picture, best score first. Nothing found is an empty Detections.

    ``boxes [N, 4]`` are xyxy pixels of the caller's picture, clipped to it; ``scores [N]`` lie in [0, 1], or
    are NaN where no model gave one, but a hand made the box;
    ``labels [N]`` index the caller's queries, whose own strings are ``names``; ``patches [N]`` is the patch that
    answered. ``best`` is the answer of the highest score, also where that is below its threshold: what an empty result
    would have shown at a lower one. None: nothing can answer, or the maker of these detections did not say. ``masks``
    [N, H, W], where they were asked for, say which pixels of each box belong to the thing.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: tuple[str, ...]
    image_hw: tuple[int, int]
    patches: Tensor
    best: "Detection | None" = None
    masks: BoxMasks | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        shapes = [list(t.shape) for t in (self.boxes, self.scores, self.labels, self.patches)]
        if shapes != [[n, 4], [n], [n], [n]]:
            raise QueryError(f"expected boxes [N, 4], scores [N], labels [N] and patches [N], got {shapes}")
        if self.masks is not None and self.masks.shape != (n, *self.image_hw):
            wanted = [n, *self.image_hw]
            raise QueryError(f"expected masks [N, H, W] of {wanted}, got {list(self.masks.shape)}")

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator["Detection"]:
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        for box, score, label in rows:
            yield Detection(self.names[label], score, (box[0], box[1], box[2], box[3]), label)

    @overload
    def __getitem__(self, keep: int) -> "Detection": ...

    @overload
    def __getitem__(self, keep: Tensor | slice | Sequence[int]) -> "Detections": ...

    def __getitem__(self, keep: Any) -> "Detection | Detections":
        """One detection by its number, or a part of them by mask, indices or slice; TypeError for what is none."""
        if getattr(keep, "ndim", None) == 0:  # found[found.scores.argmax()]
            keep = keep.item()
        if isinstance(keep, Integral) and not isinstance(keep, bool):
            row = range(len(self))[int(keep)]  # IndexError past the end, from the end where negative
            return next(iter(self[row : row + 1]))
        rows = row_indices(keep, len(self), "detections").to(self.boxes.device)
        masks = None if self.masks is None else self.masks[rows]
        return replace(self, masks=masks, **{name: getattr(self, name)[rows] for name in COLUMNS})

    def __eq__(self, other: object) -> bool:
        """Whether all that was found is the same, to the bit."""
        if not isinstance(other, Detections):
            return NotImplemented
        same = all(getattr(self, name) == getattr(other, name) for name in ("names", "image_hw", "best", "masks"))
        return same and all(torch.equal(getattr(self, name), getattr(other, name)) for name in COLUMNS)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def empty(cls, names: Sequence[str] = (), image_hw: tuple[int, int] = (0, 0)) -> "Detections":
        """Nothing found in a picture of that size, asked for these names."""
        rows = torch.zeros(0, dtype=torch.long)
        return cls(torch.zeros(0, 4), torch.zeros(0), rows, tuple(names), tuple(image_hw), rows)  # type: ignore[arg-type]

    @classmethod
    def merge(cls, parts: "Iterable[Detections]") -> "Detections":
        """Several results for one picture as one, best score first; nothing is suppressed.

        Where the parts have the same names, labels stay; else the names of all stand one after another. Parts of
        pictures of different sizes, or none at all, raise QueryError, and so do some with masks and some without.
        """
        single, parts = isinstance(parts, Detections), list(parts)
        if single or not all(isinstance(part, Detections) for part in parts):
            raise QueryError("merge takes a list of Detections, as in Detections.merge([one, other])")
        sizes = {part.image_hw for part in parts}
        if len(sizes) != 1:
            shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)) or "nothing"
            raise QueryError(f"only results for one picture can be merged, got {shown}")
        alike = len({part.names for part in parts}) == 1
        names = parts[0].names if alike else sum((part.names for part in parts), ())
        starts = [0 if alike else sum(len(part.names) for part in parts[:i]) for i in range(len(parts))]
        place = parts[0].boxes.device
        labels = torch.cat([part.labels.to(place) + start for part, start in zip(parts, starts, strict=True)])
        rows = {name: torch.cat([getattr(part, name).to(place) for part in parts]) for name in COLUMNS}
        bests = [
            replace(part.best, query=part.best.query + start)
            for part, start in zip(parts, starts, strict=True)
            if part.best is not None
        ]
        best = max(bests, key=lambda one: one.score, default=None)
        order = rows["scores"].argsort(descending=True, stable=True)
        columns = rows | {"labels": labels}
        masks = merged_masks(parts)
        return cls(names=names, image_hw=parts[0].image_hw, best=best, masks=masks, **columns)[order]

    def to(self, device: str | torch.device) -> "Detections":
        """The same with its tensors on another device."""
        masks = None if self.masks is None else self.masks.to(device)
        return replace(self, masks=masks, **{name: getattr(self, name).to(device) for name in COLUMNS})

    def scaled_to(self, image_hw: tuple[int, int]) -> "Detections":
        """The same in pixels of the picture in another size."""
        boxes = scaled_boxes(self.boxes, self.image_hw, image_hw)
        masks = None if self.masks is None else self.masks.scaled_to(image_hw)
        best = self.best
        if best is not None:
            x0, y0, x1, y1 = scaled_boxes(torch.tensor(best.box_xyxy), self.image_hw, image_hw).tolist()
            best = replace(best, box_xyxy=(x0, y0, x1, y1))
        return replace(self, boxes=boxes, masks=masks, image_hw=image_hw, best=best)

    def rle(self) -> list[dict[str, Any]]:
        """COCO's run-length encoding of each mask, as pycocotools writes it; without masks QueryError."""
        return self._masks().rle()

    def polygons(self, tolerance_px: float = TOLERANCE_PX) -> list[list[list[float]]]:
        """The outlines of each mask, lists of [x0, y0, x1, y1, …] in pixels, holes filled; without masks QueryError.

        Corners are left out where the outline moves by no more than ``tolerance_px``.
        """
        return self._masks().polygons(tolerance_px)

    def _masks(self) -> BoxMasks:
        if self.masks is None:
            raise QueryError("these detections have no masks; detect with masks=True")
        return self.masks

    def to_dicts(self) -> list[dict[str, Any]]:
        """The shape of transformers' zero-shot-object-detection pipeline, with boxes to a hundredth of a pixel and the
        index of the query beside it."""
        return to_dicts(self)

    def to_supervision(self) -> Any:
        """The same as supervision.Detections: class_id is the index of the query, data["class_name"] its name."""
        return to_supervision(self)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame, one row a detection: label, score, xmin, ymin, xmax, ymax in pixels, query, patch."""
        return to_pandas(self)


@dataclass(frozen=True, slots=True)
class Detection:
    """One row of Detections: the caller's name, the score, the box in xyxy pixels, and the index of the query."""

    name: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    query: int


def merged_masks(parts: Sequence[Detections]) -> BoxMasks | None:
    """Those of all parts, one after another, on the first one's device; None where no part has any."""
    masks = [part.masks.to(parts[0].boxes.device) for part in parts if part.masks is not None]
    if masks and any(len(part) and part.masks is None for part in parts):
        raise QueryError("only some of these results have masks; make all with masks=True, or all without")
    return BoxMasks.cat(masks) if masks else None
