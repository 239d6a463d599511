"""Several answers to one picture as one: weighted box fusion, of those on which enough teachers agree."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from owl_swin.detections import Detections

# Boxes of one name that overlap by more are one thing, as in the paper.
FUSE_IOU = 0.55


@dataclass(slots=True)
class _Thing:
    """Boxes that are taken for one thing, and their mean, each with the weight of its score."""

    boxes: list[np.ndarray] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    sources: set[int] = field(default_factory=set)
    teachers: set[int] = field(default_factory=set)
    mean: np.ndarray = field(default_factory=lambda: np.zeros(4))

    def add(self, box: np.ndarray, score: float, source: int, teacher: int) -> None:
        self.boxes.append(box)
        self.scores.append(score)
        self.sources.add(source)
        self.teachers.add(teacher)
        self.mean = np.average(self.boxes, axis=0, weights=np.maximum(self.scores, 1e-9))


def fuse(
    answers: Sequence[Detections], teachers: Sequence[int], *, agree: int = 1, iou: float = FUSE_IOU
) -> Detections:
    """One answer of several to the same texts in one picture (arXiv:1910.13302), best score first.

    ``teachers`` says whose answer each is: one teacher may give several, of different views. Boxes of one name that
    overlap by more than ``iou`` become their mean, weighted by score; its score is the mean of theirs, times the share
    of the answers that have the thing. Things that fewer than ``agree`` teachers have found are left out.
    """
    first = answers[0]
    rows = [
        (score, label, box, source)
        for source, one in enumerate(answers)
        for score, label, box in zip(one.scores.tolist(), one.labels.tolist(), one.boxes.double().numpy(), strict=True)
    ]
    things: dict[int, list[_Thing]] = {}
    for score, label, box, source in sorted(rows, key=lambda row: -row[0]):
        own = things.setdefault(label, [])
        overlaps = _overlaps(box, own)
        best = int(overlaps.argmax()) if own else -1
        if best < 0 or overlaps[best] <= iou:
            own.append(_Thing())
            best = len(own) - 1
        own[best].add(box, score, source, teachers[source])
    found = [
        (float(np.mean(thing.scores)) * len(thing.sources) / len(answers), label, thing.mean)
        for label, own in things.items()
        for thing in own
        if len(thing.teachers) >= agree
    ]
    found.sort(key=lambda row: -row[0])
    return Detections(
        torch.tensor(np.array([box for _, _, box in found]).reshape(-1, 4), dtype=torch.float32),
        torch.tensor([score for score, _, _ in found], dtype=torch.float32),
        torch.tensor([label for _, label, _ in found], dtype=torch.long),
        first.names,
        first.image_hw,
        torch.zeros(len(found), dtype=torch.long),
    )


def _overlaps(box: np.ndarray, things: Sequence[_Thing]) -> np.ndarray:
    """Intersection over union of a box with the mean of each thing."""
    means = np.array([thing.mean for thing in things]).reshape(-1, 4)
    low, high = np.maximum(box[:2], means[:, :2]), np.minimum(box[2:], means[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(means[:, 2:] - means[:, :2], axis=1) - shared
    return shared / np.maximum(union, 1e-9)
