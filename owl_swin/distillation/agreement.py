"""How much of its teacher is in a student: agreement on pictures that it never saw, embeddings, speed and size."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from owl_swin.detector import Detector
from owl_swin.distillation.seen import SeenPicture, asked_by
from owl_swin.evaluation.report import Report
from owl_swin.evaluation.sets import encode_pictures
from owl_swin.labelling.names import LabelName

# Pictures that both are timed on.
TIMED = 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """A student beside its teacher.

    ``agreement`` takes the teacher's sure boxes for truth, ``unlabelled`` does so with names that the student was not
    taught (None: none were given). ``patch_cosine`` and ``text_cosine`` are means over the teacher's boxes and over the
    names (None: there was nothing to compare). ``seconds`` a picture and ``parameters`` of teacher and student.
    """

    agreement: Report
    unlabelled: Report | None
    patch_cosine: float | None
    text_cosine: float
    seconds: tuple[float, float]
    image_sizes: tuple[int, int]
    parameters: tuple[int | None, int | None]
    file_bytes: int
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def speed_ratio(self) -> float:
        """How many times as fast as the teacher the student is."""
        return self.seconds[0] / self.seconds[1]

    def to_json(self) -> dict[str, Any]:
        """The comparison as one object."""
        pairs = {"seconds_a_picture": self.seconds, "image_size": self.image_sizes, "parameters": self.parameters}
        return {
            **self.counts,
            "agreement": self.agreement.to_json(),
            "unlabelled": None if self.unlabelled is None else self.unlabelled.to_json(),
            "patch_cosine": self.patch_cosine,
            "text_cosine": self.text_cosine,
            "speed_ratio": round(self.speed_ratio, 3),
            "student_file_bytes": self.file_bytes,
            **{name: dict(zip(("teacher", "student"), pair, strict=True)) for name, pair in pairs.items()},
        }

    def lines(self) -> list[str]:
        """The comparison as a table."""
        timed = zip(self.seconds, self.image_sizes, strict=True)
        rows = [
            *_agreement_rows("agreement", self.agreement),
            *([] if self.unlabelled is None else _agreement_rows("names not labelled", self.unlabelled)),
            ("cosine, patches", _number(self.patch_cosine, 3)),
            ("cosine, texts", _number(self.text_cosine, 3)),
            ("pictures", ", ".join(f"{count} {what}" for what, count in self.counts.items())),
            ("ms a picture", _pair(*(f"{1000 * s:.1f} at {p} px" for s, p in timed))),
            ("speed", f"{self.speed_ratio:.2f} times the teacher's"),
            ("parameters", _pair(*("unknown" if n is None else f"{n / 1e6:.2f} M" for n in self.parameters))),
            ("file", f"{self.file_bytes / 1e6:.1f} MB"),
        ]
        return [f"{what:<26} {value}" for what, value in rows]


def patch_cosine(student: Detector, seen: Sequence[SeenPicture]) -> float | None:
    """Mean cosine between the teacher's embeddings of its boxes and the student's patches in their middles."""
    cosines: list[torch.Tensor] = []
    for one in seen:
        if not len(one.boxes):
            continue
        [encoded] = encode_pictures(student, [one.path], [])
        if encoded is None:
            continue
        view = encoded.views[0]
        rows, cols = view.embeddings.grid_hw
        middles = view.frame.from_image(one.boxes)[:, :2]
        x = (middles[:, 0] * cols).long().clamp(0, cols - 1)
        y = (middles[:, 1] * rows).long().clamp(0, rows - 1)
        own = view.embeddings.class_embeds.cpu()[y * cols + x]
        cosines.append(F.cosine_similarity(own, one.embeds.float(), dim=-1))
    return float(torch.cat(cosines).mean()) if cosines else None


def seconds_a_picture(
    detectors: Sequence[Detector], paths: Sequence[str], names: Sequence[LabelName]
) -> tuple[float, ...]:
    """Median time of each detector for one picture, read before, and names, encoded before: all from pixels to boxes.

    They take turns, so that what else the machine does falls on all.
    """
    queries = [asked_by(detector, names) for detector in detectors]
    times: list[list[float]] = [[] for _ in detectors]
    for turn, path in enumerate([paths[0], *paths[:TIMED]]):  # the first is for warming up
        for place, detector in enumerate(detectors):
            prepared = detector.prepare(path)
            began = time.perf_counter()
            detector.detect(prepared, queries[place]).scores.tolist()  # waits for a GPU
            if turn:
                times[place].append(time.perf_counter() - began)
    return tuple(statistics.median(own) for own in times)


def parameters_of(detector: Detector) -> int | None:
    """How many numbers the network holds, where it is one of PyTorch's."""
    network = detector.model
    return sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else None


def result_rows(comparison: Comparison, command: str) -> list[dict[str, str]]:
    """The figures as a model card has them."""
    rows = [*_agreement_rows("agreement with the teacher", comparison.agreement)]
    if comparison.unlabelled is not None:
        rows += _agreement_rows("the same, names not labelled", comparison.unlabelled)
    rows.append(("speed against the teacher's", f"{comparison.speed_ratio:.2f}"))
    return [{"what": what, "value": value, "command": command} for what, value in rows]


def _agreement_rows(what: str, report: Report) -> list[tuple[str, str]]:
    return [
        (f"{what}, AP", _number(report.figures["AP"], 1)),
        (f"{what}, AP50", _number(report.figures["AP50"], 1, report.intervals.get("AP50"))),
    ]


def _number(value: float | None, digits: int, interval: tuple[float, float] | None = None) -> str:
    if value is None:
        return "none"
    reach = f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else ""
    return f"{value:.{digits}f}{reach}"


def _pair(teacher: str, student: str) -> str:
    return f"teacher {teacher}, student {student}"
