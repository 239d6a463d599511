"""The dataclasses that travel between the rooms, and the legend of their shapes.

B pictures, P patches of one picture's grid, Q queries, E embedding dimensions, N detections.
Boxes inside the network are cxcywh in [0, 1] of the model frame; boxes that a caller sees are xyxy pixels of the
caller's picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from owl_swin.errors import QueryError

# Where a query comes from.
ROUTES = ("text", "exemplar")


@dataclass(frozen=True, slots=True)
class ImageEmbeddings:
    """Everything about pictures that no query touches; it can be kept and asked again.

    A leading batch axis B is there when the pictures were encoded together.
    """

    image_embed: Tensor  # [..., E], unit length: the whole picture
    class_embeds: Tensor  # [..., P, E], unit length: every patch
    pred_boxes: Tensor  # [..., P, 4], cxcywh in the model frame
    objectness_logits: Tensor  # [..., P]
    logit_shift: Tensor  # [..., P]
    logit_scale: Tensor  # [..., P], positive
    grid_hw: tuple[int, int]  # P = grid_hw[0] * grid_hw[1], row by row

    def __getitem__(self, index: int) -> "ImageEmbeddings":
        """One picture out of a batch."""
        return ImageEmbeddings(
            self.image_embed[index],
            self.class_embeds[index],
            self.pred_boxes[index],
            self.objectness_logits[index],
            self.logit_shift[index],
            self.logit_scale[index],
            self.grid_hw,
        )


@dataclass(frozen=True, slots=True)
class QueryEmbeddings:
    """Queries ready to be scored: ``query_embeds [Q, E]``, unit length, and the caller's own name of each.

    ``routes`` says of each where it came from, "text" or "exemplar", because their scores are calibrated apart; left
    out, all are texts.
    """

    query_embeds: Tensor
    names: tuple[str, ...]
    routes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.routes:
            object.__setattr__(self, "routes", ("text",) * len(self.names))
        if len(self.routes) != len(self.names) or not set(self.routes) <= set(ROUTES):
            raise QueryError(f"expected one of {', '.join(ROUTES)} for each of {len(self.names)} names")
        if self.query_embeds.ndim != 2 or len(self.query_embeds) != len(self.names):
            raise QueryError(
                f"expected one embedding for each of {len(self.names)} names, got {list(self.query_embeds.shape)}"
            )
        if not self.query_embeds.isfinite().all():
            raise QueryError("a query embedding holds NaN or infinity")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one picture, best score first. Nothing found is an empty Detections.

    ``boxes [N, 4]`` are xyxy pixels of the caller's picture, clipped to it; ``scores [N]`` lie in [0, 1];
    ``labels [N]`` index the caller's queries, whose own strings are ``names``; ``patches [N]`` is the patch that
    answered.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: tuple[str, ...]
    image_hw: tuple[int, int]
    patches: Tensor

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
            yield Detection(self.names[label], score, (box[0], box[1], box[2], box[3]))

    def __getitem__(self, keep: Tensor | slice) -> "Detections":
        """A part of the detections, by mask, indices or slice."""
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            patches=self.patches[keep],
        )

    def to_dicts(self) -> list[dict[str, Any]]:
        """The shape of transformers' zero-shot-object-detection pipeline, with boxes to a hundredth of a pixel."""
        corners = ("xmin", "ymin", "xmax", "ymax")
        return [
            {
                "label": d.name,
                "score": round(d.score, 6),
                "box": {corner: round(value, 2) for corner, value in zip(corners, d.box_xyxy, strict=True)},
            }
            for d in self
        ]


@dataclass(frozen=True, slots=True)
class Detection:
    """One row of Detections: the caller's name, the score, and the box in xyxy pixels."""

    name: str
    score: float
    box_xyxy: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Classification:
    """Probabilities [N] of a picture's names, in the caller's order; they add up to 1."""

    probabilities: Tensor
    names: tuple[str, ...]

    def ranked(self) -> list[tuple[str, float]]:
        """(name, probability), the likeliest first."""
        order = self.probabilities.argsort(descending=True, stable=True).tolist()
        return [(self.names[i], float(self.probabilities[i])) for i in order]
