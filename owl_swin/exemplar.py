"""Queries by example: a picture, or a box in it, becomes an embedding that is scored as a text is."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from owl_swin.boxes import area, clip, cxcywh_to_xyxy, pairwise_iou
from owl_swin.errors import QueryError, brief
from owl_swin.frame import square_around
from owl_swin.image import ImageSource, open_image
from owl_swin.types import ImageEmbeddings

# Patches whose box overlaps the exemplar's by this share of the best overlap may stand for it (arXiv:2205.06230).
NEARLY_BEST = 0.8


@dataclass(frozen=True, slots=True, eq=False)
class Exemplar:
    """A thing to look for, shown in a picture: ``box_xyxy`` in pixels of the upright picture.

    Without a box it is the most object-like thing in the picture. ``name`` is what its detections are called.

    >>> detector.detect("shelf.jpg", [Exemplar("mug.jpg", (40, 60, 210, 300), name="my mug")])
    """

    image: ImageSource
    box_xyxy: Sequence[float] | None = None
    name: str = "exemplar"

    def __repr__(self) -> str:
        image = str(self.image) if isinstance(self.image, (str, os.PathLike)) else f"<{type(self.image).__name__}>"
        return f"Exemplar({image!r}, {brief(self.box_xyxy)}, {brief(self.name)})"


def check_box(box_xyxy: Sequence[float], image_hw: tuple[int, int]) -> Tensor:
    """The box as [4] xyxy pixels, cut to the picture; one that shows nothing of it raises QueryError.

    Refused are boxes that are not four finite numbers, that are empty or inverted, or of which less than half a pixel
    lies in the picture.
    """
    try:
        values = [float(v) for v in box_xyxy]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        values = []
    if len(values) != 4 or isinstance(box_xyxy, str):
        raise QueryError(f"an exemplar's box is four numbers, xmin, ymin, xmax, ymax in pixels, got {brief(box_xyxy)}")
    box = torch.tensor(values, dtype=torch.float32)
    shown = ", ".join(f"{v:g}" for v in values)
    if not box.isfinite().all():
        raise QueryError(f"an exemplar's box must hold finite numbers, got ({shown})")
    if box[2] <= box[0] or box[3] <= box[1]:
        raise QueryError(f"an exemplar's box is xmin, ymin, xmax, ymax with xmin < xmax and ymin < ymax, got ({shown})")
    inside = clip(box, image_hw)
    if area(inside) < 0.5:
        height, width = image_hw
        raise QueryError(f"the exemplar's box ({shown}) covers no pixel of the picture, which is {width}x{height}")
    return inside


def picture_of(exemplar: Exemplar) -> Image.Image:
    """What an exemplar shows as a picture of its own: its whole picture, or the square around its box."""
    picture = open_image(exemplar.image)
    if exemplar.box_xyxy is None:
        return picture
    size = (picture.height, picture.width)
    return picture.crop(square_around(check_box(exemplar.box_xyxy, size).tolist(), size, 0.0))


def patch_of_box(embeddings: ImageEmbeddings, box_cxcywh: Tensor, *, by_objectness: bool = True) -> Tensor:
    """Class embedding [E] of the patch that answers for a box [4], cxcywh in [0, 1] of the model frame.

    Of the patches whose own box overlaps it nearly as well as the best, the most object-like; of equals, or not
    ``by_objectness``, the one least like the picture's mean: one patch of an object is trained to answer, the rest as
    background.
    """
    box = box_cxcywh.to(embeddings.pred_boxes)
    # The sides of the frame do not matter to IoU.
    boxes = clip(cxcywh_to_xyxy(embeddings.pred_boxes), (1, 1))
    overlap = pairwise_iou(boxes, cxcywh_to_xyxy(box)[None])[:, 0]
    if overlap.max() > 0:
        candidates = (overlap >= NEARLY_BEST * overlap.max()).nonzero()[:, 0]
    else:  # no box of the picture touches it: ask the patch that it lies on
        x, y = box[:2].clamp(0, 1 - 1e-6).tolist()
        rows, cols = embeddings.grid_hw
        candidates = torch.tensor([int(y * rows) * cols + int(x * cols)], device=overlap.device)
    pick = most_object_like if by_objectness else _least_ordinary
    return embeddings.class_embeds[pick(embeddings, candidates)]


def most_object_like(embeddings: ImageEmbeddings, candidates: Tensor) -> Tensor:
    """The patch, of the indices ``candidates``, with the highest objectness; of equals, the least ordinary."""
    objectness = embeddings.objectness_logits[candidates]
    return _least_ordinary(embeddings, candidates[objectness == objectness.max()])


def _least_ordinary(embeddings: ImageEmbeddings, candidates: Tensor) -> Tensor:
    """The patch, of the indices ``candidates``, whose embedding is least like the mean of all."""
    ordinary = embeddings.class_embeds[candidates] @ embeddings.class_embeds.mean(0)
    return candidates[ordinary.argmin()]


def combine(embeds: Tensor, *, steps: int = 50) -> Tensor:
    """One unit embedding [E] for several exemplars [K, E]: their geometric median, which one bad exemplar cannot move
    far (Weiszfeld's iteration)."""
    median = embeds.mean(0)
    if len(embeds) > 2:
        for _ in range(steps):
            weights = 1 / (embeds - median).norm(dim=-1).clamp(min=1e-4)
            median = (weights[:, None] * embeds).sum(0) / weights.sum()
    return F.normalize(median, dim=-1)
