"""What was found in a picture."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, overload

import torch
from torch import Tensor

from owl_swin.errors import QueryError, brief
from owl_swin.formats import to_dicts, to_pandas, to_supervision

# What Detections has a row of for each detection.
COLUMNS = ("boxes", "scores", "labels", "patches")


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What was found in one picture, best score first. Nothing found is an empty Detections.

    ``boxes [N, 4]`` are xyxy pixels of the caller's picture, clipped to it; ``scores [N]`` lie in [0, 1];
    ``labels [N]`` index the caller's queries, whose own strings are ``names``; ``patches [N]`` is the patch that
    answered. ``best`` is the answer of the highest score, also where that is below its threshold: what an empty result
    would have shown at a lower one. None: nothing can answer, or the maker of these detections did not say.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: tuple[str, ...]
    image_hw: tuple[int, int]
    patches: Tensor
    best: "Detection | None" = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        shapes = [list(t.shape) for t in (self.boxes, self.scores, self.labels, self.patches)]
        if shapes != [[n, 4], [n], [n], [n]]:
            raise QueryError(f"expected boxes [N, 4], scores [N], labels [N] and patches [N], got {shapes}")

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
        rows = _rows(keep, len(self)).to(self.boxes.device)
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})

    def __eq__(self, other: object) -> bool:
        """Whether all that was found is the same, to the bit."""
        if not isinstance(other, Detections):
            return NotImplemented
        same = (self.names, self.image_hw, self.best) == (other.names, other.image_hw, other.best)
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
        pictures of different sizes, or none at all, raise QueryError.
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
        return cls(names=names, image_hw=parts[0].image_hw, best=best, **(rows | {"labels": labels}))[order]

    def to(self, device: str | torch.device) -> "Detections":
        """The same with its tensors on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in COLUMNS})

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


def _rows(keep: Any, n: int) -> Tensor:
    """What a part of ``n`` rows is called by: indices [K], or a mask [n]."""
    if isinstance(keep, slice):
        return torch.tensor(range(n)[keep], dtype=torch.long)
    try:
        rows = torch.as_tensor(keep if hasattr(keep, "ndim") else list(keep))
    except (TypeError, ValueError, RuntimeError):
        rows = torch.zeros(())
    if rows.numel() == 0 and rows.dtype != torch.bool:  # an empty list has no dtype of its own
        rows = rows.long()
    if isinstance(keep, str) or rows.ndim != 1 or rows.is_floating_point() or rows.is_complex():
        raise TypeError(f"detections are called by a number, a slice, a list of numbers or a mask, got {brief(keep)}")
    return rows
