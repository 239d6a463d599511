"""Several teachers, or several views of one, as one teacher."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageOps

from owl_swin.detections import Detections
from owl_swin.errors import QueryError
from owl_swin.teachers.fusing import fuse
from owl_swin.teachers.teacher import Teacher, checked


class Ensemble:
    """Teachers that are asked the same of the same pictures, and whose answers are fused.

    Each sees a picture in every one of ``scales``, and with ``flip`` also mirrored. With ``agree`` above 1, only things
    that so many of the teachers have found are left.
    """

    def __init__(
        self, teachers: Sequence[Teacher], *, flip: bool = False, scales: Sequence[float] = (1.0,), agree: int = 1
    ):
        if not 1 <= agree <= len(teachers):
            raise QueryError(f"agree is how many teachers must agree, from 1 to the {len(teachers)} given, got {agree}")
        if not scales or len(set(scales)) < len(scales) or not all(0.1 <= scale <= 10 for scale in scales):
            raise QueryError(f"scales must be different numbers from 0.1 to 10, got {list(scales)}")
        self._teachers, self._agree = teachers, agree
        self._flips = (False, True) if flip else (False,)
        # (number of the teacher, it at a scale)
        self._views = [(i, one.at_scale(scale)) for i, one in enumerate(teachers) for scale in scales]
        self.name = " + ".join(one.name for one in teachers)
        self.identity: dict[str, Any] = {
            "teachers": [one.identity for one in teachers],
            "flip": flip,
            "scales": list(scales),
            "agree": agree,
        }

    def find(
        self, pictures: Sequence[Image.Image], texts: Sequence[tuple[str, ...]], threshold: float
    ) -> list[Detections]:
        """As the protocol has it."""
        answers: list[list[Detections]] = [[] for _ in pictures]
        sources: list[int] = []
        for flipped in self._flips:
            shown = [ImageOps.mirror(picture) for picture in pictures] if flipped else list(pictures)
            for number, teacher in self._views:
                sources.append(number)
                found = teacher.find(shown, texts, threshold)
                for own, one, picture, asked in zip(answers, found, shown, texts, strict=True):
                    answer = checked(one, picture, asked, teacher.name)
                    own.append(_mirrored(answer) if flipped else answer)
        fused = [fuse(own, sources, agree=self._agree) for own in answers]
        return [one[one.scores >= threshold] for one in fused]

    def at_scale(self, scale: float) -> "Ensemble":
        """All of them at that scale."""
        flip, scales = len(self._flips) > 1, self.identity["scales"]
        teachers = [teacher.at_scale(scale) for teacher in self._teachers]
        return Ensemble(teachers, flip=flip, scales=scales, agree=self._agree)


def _mirrored(found: Detections) -> Detections:
    """What was found in the mirrored picture, in the picture itself."""
    x0, y0, x1, y1 = found.boxes.unbind(-1)
    width = found.image_hw[1]
    boxes = torch.stack([width - x1, y0, width - x0, y1], -1)
    return Detections(boxes, found.scores, found.labels, found.names, found.image_hw, found.patches)
