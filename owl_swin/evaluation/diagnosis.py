"""Where a detector fails: is it the box, the name or the score?"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from owl_swin.boxes import pairwise_iou, xywh_to_xyxy
from owl_swin.data.coco import stated_size
from owl_swin.data.truth import counted_boxes, read_truth
from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage
from owl_swin.evaluation.answers import RIGHT_IOU, are_right
from owl_swin.evaluation.class_queries import encode_classes
from owl_swin.evaluation.report import Report
from owl_swin.evaluation.sets import Progress, encode_set, in_annotated_pixels
from owl_swin.postprocess import DEFAULT_THRESHOLD
from owl_swin.types import QueryEmbeddings

# Class-free boxes of a picture that count, and the overlap from which on two of them are one.
CLASS_FREE, CLASS_FREE_NMS = 100, 0.7
# Bounds of a box's longer side in shares of the picture's longer side.
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.01)


@dataclass(slots=True)
class _Counts:
    """One row a counted box, and the wrong answers above the threshold of each picture."""

    share: list[float] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    reached: list[float] = field(default_factory=list)  # best IoU of any patch's box
    class_free: list[float] = field(default_factory=list)  # best IoU of the class-free boxes
    named: list[bool] = field(default_factory=list)  # the best patch gives the right name the best score
    shown: int = 0
    wrong: list[int] = field(default_factory=list)


def evaluate_diagnosis(
    detector: Detector,
    annotations: str | Path,
    images: str | Path,
    *,
    classes: Sequence[str] | None = None,
    threshold: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Figures, in percent of the counted boxes:

    - ``reached``: some patch's box overlaps it by an IoU of 0.5; ``class_free_50``, ``class_free_75``: one of the 100
      most object-like boxes of its picture does, by 0.5 or 0.75, and ``class_free_50_A_to_B`` that of the boxes whose
      longer side is A to B of the picture's;
    - ``named``: of the reached ones, those of which the patch that overlaps most says the right one of all names the
      loudest, ``named_mean`` as the mean over the classes;
    - ``shown``: a right answer passes ``threshold`` (None: the default one of detection). ``wrong_per_picture`` counts
      the wrong ones that do.
    """
    truth = read_truth(annotations, images, classes)
    least = DEFAULT_THRESHOLD if threshold is None else threshold
    label_of = {category["id"]: label for label, category in enumerate(truth["categories"])}
    own: dict[Any, list[dict[str, Any]]] = {}
    for annotation in truth["annotations"]:
        own.setdefault(annotation["image_id"], []).append(annotation)
    queries, counts, broken = encode_classes(detector, truth), _Counts(), []  # type: ignore[var-annotated]
    for record, encoded in encode_set(detector, truth, broken, progress):
        if queries is not None:
            _count(counts, detector, encoded, queries, record, own.get(record["id"], []), label_of, least)
    names = [category["name"] for category in truth["categories"]]
    figures, per_class = _figures(counts, names)
    return Report(
        protocol=f"boxes reached, named and shown by text queries; threshold {least:g}, IoU {RIGHT_IOU:g}",
        annotations=Path(annotations).name,
        counts={"n_images": len(truth["images"]), "n_boxes": len(counted_boxes(truth))},
        figures=figures,
        per_class=per_class,
        notes=tuple(truth["notes"]),
        broken=tuple(broken),
    )


def _count(
    counts: _Counts,
    detector: Detector,
    encoded: EncodedImage,
    queries: QueryEmbeddings,
    record: dict[str, Any],
    annotations: list[dict[str, Any]],
    label_of: dict[Any, int],
    threshold: float,
) -> None:
    found = detector.detect(encoded, queries, threshold=threshold)
    labels, corners = found.labels.cpu(), in_annotated_pixels(found, record)
    fate: list[bool | None] = []
    for label in labels.unique().tolist():
        mine = corners[labels == label]
        fate += are_right(mine, [a for a in annotations if label_of[a["category_id"]] == label])
    counts.shown += fate.count(True)
    counts.wrong.append(fate.count(False))
    counted = [a for a in annotations if not a.get("iscrowd")]
    if not counted:
        return
    height, width = encoded.image_hw
    stated = stated_size(record) or (width, height)
    scale = torch.tensor([width / stated[0], height / stated[1]] * 2)
    targets = xywh_to_xyxy(torch.tensor([a["bbox"] for a in counted], dtype=torch.float)) * scale
    wanted = torch.tensor([label_of[a["category_id"]] for a in counted])
    free = detector.detect(encoded, None, threshold=0.0, nms_iou=CLASS_FREE_NMS, top_k=CLASS_FREE)
    overlap = pairwise_iou(targets, encoded.boxes_px().cpu().float())  # [G, P]
    best = overlap.max(1)
    said = detector.score(encoded, queries).cpu()[best.indices].argmax(1)
    counts.share += ((targets[:, 2:] - targets[:, :2]).amax(1) / max(height, width)).tolist()
    counts.label += wanted.tolist()
    counts.reached += best.values.tolist()
    counts.class_free += _best(targets, free.boxes.cpu())
    counts.named += (said == wanted).tolist()


def _best(targets: Tensor, boxes: Tensor) -> list[float]:
    """The best overlap of each target with any box, 0 without boxes."""
    return pairwise_iou(targets, boxes).amax(1).tolist() if len(boxes) else [0.0] * len(targets)


def _figures(counts: _Counts, names: list[str]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    share, label = np.array(counts.share), np.array(counts.label, dtype=int)
    reached, class_free = np.array(counts.reached) >= RIGHT_IOU, np.array(counts.class_free)
    named = np.array(counts.named, dtype=bool)
    per_class = {name: _percent(named[reached & (label == i)]) for i, name in enumerate(names)}
    known = [value for value in per_class.values() if value is not None]
    figures = {
        "reached": _percent(reached),
        "class_free_50": _percent(class_free >= 0.5),
        "class_free_75": _percent(class_free >= 0.75),
        "named": _percent(named[reached]),
        "named_mean": float(np.mean(known)) if known else None,
        "shown": 100 * counts.shown / len(share) if len(share) else None,
        "wrong_per_picture": float(np.mean(counts.wrong)) if counts.wrong else None,
    }
    for low, high in itertools.pairwise(SHARES):
        own = class_free[(share >= low) & (share < high)]
        figures[f"class_free_50_{low:g}_to_{min(high, 1):g}"] = _percent(own >= RIGHT_IOU)
    return figures, per_class


def _percent(rows: np.ndarray) -> float | None:
    return 100 * float(rows.mean()) if len(rows) else None
