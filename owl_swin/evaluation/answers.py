"""Every answer of a detector on a set, with its fate: what absence and calibration are measured on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from owl_swin.boxes import pairwise_iou, xywh_to_xyxy
from owl_swin.data.truth import counted_boxes
from owl_swin.detector import Detector
from owl_swin.evaluation.class_queries import ClassQueries
from owl_swin.evaluation.detection import MAX_DETECTIONS
from owl_swin.evaluation.sets import Progress, coco_rows, encode_set, in_annotated_pixels
from owl_swin.postprocess import NmsIou

# Answers of a picture that are kept: more than COCO counts, so that rare classes get to speak.
KEPT = 300
# Overlap with a box from which on an answer is right.
RIGHT_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Answers:
    """N answers to I asked pictures and C classes (``names``).

    ``image [N]`` and ``label [N]`` are rows of the pictures and of ``names``; ``score [N]`` in [0, 1]; ``right [N]``:
    it is the first on a box of its class (IoU 0.50). Answers on crowd regions are left out. ``best [I, C]`` is the best
    logit of a class in a picture, NaN where it could not be asked, or where nothing but vague boxes is of the class;
    ``present [I, C]``: the picture has the class.
    ``rows``: the best hundred of each picture as COCO results.
    """

    names: list[str]
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    right: np.ndarray
    best: np.ndarray
    present: np.ndarray
    n_boxes: np.ndarray  # [C], of all pictures of the set
    rows: list[dict[str, Any]]
    broken: list[str]

    @property
    def asked(self) -> set[str]:
        """Names of the classes that some picture was asked for."""
        return {name for name, column in zip(self.names, self.best.T, strict=True) if not np.isnan(column).all()}


def collect_answers(
    detector: Detector,
    truth: dict[str, Any],
    queries_for: ClassQueries,
    *,
    nms_iou: NmsIou = "model",
    progress: Progress | None = None,
) -> Answers:
    """Asks every picture of a set, in which no two categories have one name, for every class, and says of each answer
    whether it is right."""
    ids = {c["name"]: c["id"] for c in truth["categories"]}
    names = list(ids)
    label_of = {category: label for label, category in enumerate(ids.values())}
    n_boxes = np.zeros(len(names), dtype=int)
    for a in counted_boxes(truth):
        n_boxes[label_of[a["category_id"]]] += 1
    boxes: dict[Any, list[dict[str, Any]]] = {}
    for a in truth["annotations"]:
        boxes.setdefault(a["image_id"], []).append(a)
    best, present, rows, broken = [], [], [], []  # type: ignore[var-annotated]
    columns: list[tuple[int, int, float, bool]] = []
    for record, encoded in encode_set(detector, truth, broken, progress):
        queries = queries_for(record)
        if queries is None:
            continue
        own = boxes.get(record["id"], [])
        place = len(best)
        here = {label_of[a["category_id"]] for a in own if not a.get("vague")}
        perhaps = {label_of[a["category_id"]] for a in own} - here  # guessed, but not surely there
        present.append([i in here for i in range(len(names))])
        best.append([np.nan] * len(names))
        asked = [names.index(name) for name in queries.names]
        for label, logit in zip(asked, detector.score(encoded, queries).amax(0).tolist(), strict=True):
            best[-1][label] = np.nan if label in perhaps else logit
        found = detector.detect(encoded, queries, threshold=0.0, nms_iou=nms_iou, top_k=KEPT)
        rows += coco_rows(found[:MAX_DETECTIONS], record, [ids[name] for name in queries.names])
        corners, labels = in_annotated_pixels(found, record), found.labels.cpu()
        for query, label in enumerate(asked):
            mine = (labels == query).nonzero()[:, 0]
            fate = are_right(corners[mine], [a for a in own if label_of[a["category_id"]] == label])
            for i, right in zip(mine.tolist(), fate, strict=True):
                if right is not None:
                    columns.append((place, label, float(found.scores[i]), right))
    shape = (len(best), len(names))
    return Answers(
        names,
        np.array([c[0] for c in columns], dtype=int),
        np.array([c[1] for c in columns], dtype=int),
        np.array([c[2] for c in columns], dtype=float),
        np.array([c[3] for c in columns], dtype=bool),
        np.array(best, dtype=float).reshape(shape),
        np.array(present, dtype=bool).reshape(shape),
        n_boxes,
        rows,
        broken,
    )


def are_right(boxes_xyxy: Tensor, annotations: list[dict[str, Any]]) -> list[bool | None]:
    """Of each answer [N, 4], the best first: is it right, as COCO matches at IoU 0.50; None where a crowd is.

    An answer takes the box that it overlaps most of those that no better answer took.
    """
    crowd = torch.tensor([bool(a.get("iscrowd")) for a in annotations], dtype=torch.bool)
    targets = xywh_to_xyxy(torch.tensor([a["bbox"] for a in annotations], dtype=torch.float).reshape(-1, 4))
    overlap = pairwise_iou(boxes_xyxy, targets)
    # A crowd is one box around many things: what counts is how much of the answer lies in it.
    low, high = (
        torch.maximum(boxes_xyxy[:, None, :2], targets[:, :2]),
        torch.minimum(boxes_xyxy[:, None, 2:], targets[:, 2:]),
    )
    own_area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1).clamp(min=1e-9)
    inside = (high - low).clamp(min=0).prod(-1) / own_area[:, None]
    free = ~crowd
    out: list[bool | None] = []
    for row, share in zip(overlap, inside, strict=True):
        untaken = torch.where(free, row, -1.0)
        if len(untaken) and untaken.max() >= RIGHT_IOU:
            free[untaken.argmax()] = False
            out.append(True)
        else:
            out.append(None if bool((crowd & (share >= RIGHT_IOU)).any()) else False)
    return out
