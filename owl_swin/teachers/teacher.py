"""What finds things for a data set to be made of: one protocol over detectors of any make."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from owl_swin.boxes import area, clip
from owl_swin.detections import Detections
from owl_swin.errors import DataError


class Teacher(Protocol):
    """A model that finds named things in pictures.

    ``name`` is what it is called; ``identity`` says all on which its answers depend, so that answers of another one
    are not taken for its own.
    """

    name: str
    identity: dict[str, Any]

    def find(
        self, pictures: Sequence[Image.Image], texts: Sequence[tuple[str, ...]], threshold: float
    ) -> list[Detections]:
        """What answers the texts of each picture, with a score of at least ``threshold``.

        One Detections a picture, in order; ``labels`` index the picture's own texts, boxes are pixels of the picture.
        """
        ...

    def at_scale(self, scale: float) -> "Teacher":
        """The same teacher, shown pictures ``scale`` times as large; QueryError where it knows one size."""
        ...


def checked(found: Detections, picture: Image.Image, texts: Sequence[str], teacher: str) -> Detections:
    """A teacher's answer on the CPU, boxes cut to the picture and those outside of it left out.

    Scores outside [0, 1], boxes that are no numbers and labels that are none of the texts raise DataError.
    """
    boxes, scores, labels = found.boxes.float().cpu(), found.scores.float().cpu(), found.labels.cpu()
    if not ((scores >= 0) & (scores <= 1)).all():  # NaN fails this too
        wrong = scores[~((scores >= 0) & (scores <= 1))][0].item()
        hint = "; in half precision a model may overflow, float32 does not" if wrong != wrong else ""
        raise DataError(f"the teacher {teacher} gave a score of {wrong:g}, which is not in 0 to 1{hint}")
    if not boxes.isfinite().all():
        raise DataError(f"the teacher {teacher} gave a box with NaN or infinity")
    if not ((labels >= 0) & (labels < len(texts))).all():
        wrong = int(labels[(labels < 0) | (labels >= len(texts))][0])
        raise DataError(f"the teacher {teacher} gave the label {wrong}, and was asked for {len(texts)} names")
    boxes = clip(boxes, (picture.height, picture.width))
    inside = area(boxes) > 0
    n = int(inside.sum())
    return Detections(
        boxes[inside],
        scores[inside],
        labels[inside],
        tuple(texts),
        (picture.height, picture.width),
        torch.zeros(n, dtype=torch.long),
    )
