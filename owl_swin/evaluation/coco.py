"""Detection average precision on a COCO file, as COCO defines it, with a bootstrap interval over pictures."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from owl_swin.boxes import xyxy_to_xywh
from owl_swin.detector import Detector
from owl_swin.errors import DataError, ImageError, MissingExtraError
from owl_swin.types import Detections

MAX_DETECTIONS = 100
RECALLS = np.linspace(0, 1, 101)
COCO_IOUS = np.linspace(0.5, 0.95, 10)

Progress = Callable[[int, int], None]


def evaluate_detection(
    detector: Detector,
    annotations: str | Path,
    images: str | Path,
    *,
    classes: Sequence[str] | None = None,
    nms_iou: float | None = 0.5,
    batch_size: int = 8,
    draws: int = 200,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Asks every picture for every class by its name and scores the answers.

    Returns protocol, n_images, n_boxes, AP (IoU 0.50 to 0.95), AP50, per_class (name → AP50) and ci95 (of AP50).
    Figures
    are in percent; a figure that the set cannot give (no boxes) is None. Pictures that cannot be read count as pictures
    in which nothing was found and are listed in "broken".
    """
    truth = _read_coco(Path(annotations), classes)
    names = [category["name"] for category in truth["categories"]]
    queries = detector.encode_queries(names) if names else None
    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    records = truth["images"]
    for start in range(0, len(records) if names else 0, batch_size):
        opened, kept = [], []
        for record in records[start : start + batch_size]:
            try:
                opened.append(detector.encode_image(Path(images) / record["file_name"]))
                kept.append(record)
            except ImageError as error:
                broken.append(str(error))
        found = detector.detect_batch(opened, queries, threshold=0.0, nms_iou=nms_iou, top_k=MAX_DETECTIONS)
        for record, one in zip(kept, found, strict=True):
            rows += _coco_rows(one, record, truth["categories"])
        if progress is not None:
            progress(min(start + batch_size, len(records)), len(records))
    figures = average_precision(truth, rows, draws=draws)
    return {
        "protocol": f"COCO box AP, text queries by class name, {MAX_DETECTIONS} detections a picture, NMS {nms_iou}",
        "annotations": Path(annotations).name,
        "n_images": len(records),
        "n_boxes": sum(not a.get("iscrowd") for a in truth["annotations"]),
        **figures,
        "broken": broken,
    }


def average_precision(truth: dict[str, Any], rows: list[dict[str, Any]], *, draws: int = 200) -> dict[str, Any]:
    """AP, AP50, per_class and ci95 in percent of COCO result rows against a COCO data set."""
    names = {category["id"]: category["name"] for category in truth["categories"]}
    counted = [a for a in truth["annotations"] if not a.get("iscrowd")]
    if not counted:
        return {"AP": None, "AP50": None, "per_class": {}, "ci95": None}
    present = sorted({a["category_id"] for a in counted})
    if not rows:
        return {"AP": 0.0, "AP50": 0.0, "per_class": {names[c]: 0.0 for c in present}, "ci95": [0.0, 0.0]}
    try:
        from faster_coco_eval import COCO
    except ImportError:
        raise MissingExtraError("measuring average precision", "train") from None
    # The library takes an annotation with id 0, as many files have, for "no match".
    truth = {**truth, "annotations": [{**a, "id": i} for i, a in enumerate(truth["annotations"], start=1)]}
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(truth)
        answers = ground_truth.loadRes(rows)
        evaluation = _evaluated(ground_truth, answers, COCO_IOUS)
        at_half = _evaluated(ground_truth, answers, COCO_IOUS[:1])
    precision = evaluation.eval["precision"]  # [IoU, recall, class, area, maxDets]
    all_iou, at_50 = precision[:, :, :, 0, -1], precision[0, :, :, 0, -1]
    per_class = {
        names[category]: _percent(at_50[:, place].mean())
        for place, category in enumerate(evaluation.params.catIds)
        if category in present
    }
    return {
        "AP": _percent(all_iou[all_iou > -1].mean()),
        "AP50": _percent(at_50[at_50 > -1].mean()),
        "per_class": per_class,
        "ci95": _bootstrap(truth, answers.anns, at_half.eval["matched"], present, draws),
    }


def _evaluated(ground_truth: Any, answers: Any, ious: np.ndarray) -> Any:
    """COCO's evaluation at these IoU thresholds, over boxes of all sizes."""
    from faster_coco_eval import COCOeval_faster

    evaluation = COCOeval_faster(ground_truth, answers, "bbox", print_function=lambda *_: None)
    evaluation.params.iouThrs = ious
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _bootstrap(truth: dict, answers: dict, matched: dict[str, float], present: list[int], draws: int) -> list[float]:
    """95 % interval of AP50 when pictures are drawn again with replacement.

    ``matched`` has a key "answer_annotation" for each pair at IoU 0.50; an answer in a crowd region counts nowhere.
    """
    crowds = {a["id"] for a in truth["annotations"] if a.get("iscrowd")}
    partner = {int(answer): int(annotation) for answer, annotation in (key.split("_") for key in matched)}
    place = {record["id"]: i for i, record in enumerate(truth["images"])}
    by_class: dict[int, list[tuple[float, bool, int]]] = {category: [] for category in present}
    for answer_id, answer in answers.items():
        if answer["category_id"] in by_class and partner.get(answer_id) not in crowds:
            row = (answer["score"], answer_id in partner, place[answer["image_id"]])
            by_class[answer["category_id"]].append(row)
    truths = {category: np.zeros(len(place)) for category in present}
    for a in truth["annotations"]:
        if not a.get("iscrowd"):
            truths[a["category_id"]][place[a["image_id"]]] += 1
    tables = []
    for category in present:
        rows = sorted(by_class[category], key=lambda row: -row[0])
        hits = np.array([row[1] for row in rows], dtype=float)
        where = np.array([row[2] for row in rows], dtype=int)
        tables.append((hits, where, truths[category]))
    rng = np.random.default_rng(0)
    values = []
    for _ in range(draws):
        times = np.bincount(rng.integers(0, len(place), len(place)), minlength=len(place))
        parts = [_weighted_ap(hits, times[where], float(n @ times)) for hits, where, n in tables]
        known = [part for part in parts if part is not None]
        if known:
            values.append(100 * float(np.mean(known)))
    if not values:
        return []
    return [round(float(v), 2) for v in np.percentile(values, [2.5, 97.5])]


def _weighted_ap(hits: np.ndarray, weights: np.ndarray, n_truth: float) -> float | None:
    """COCO's 101-point AP of detections in order of score, each counted ``weights`` times."""
    if not n_truth:
        return None
    true, false = np.cumsum(hits * weights), np.cumsum((1 - hits) * weights)
    recall = true / n_truth
    precision = true / np.maximum(true + false, 1e-9)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS)
    return float(np.append(precision, 0.0)[np.minimum(places, len(precision))].mean())


def _read_coco(path: Path, classes: Sequence[str] | None) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
        truth: dict[str, Any] = {
            "info": {},
            "images": [{key: r[key] for key in ("id", "file_name", "width", "height")} for r in data["images"]],
            "categories": [{"id": c["id"], "name": c["name"]} for c in data["categories"]],
        }
        annotations = [{"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a} for a in data["annotations"]]
        places = [(a["category_id"], a["image_id"]) for a in annotations]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a COCO detection file (problem with {error})") from None
    if classes is not None:
        unknown = sorted(set(classes) - {c["name"] for c in truth["categories"]})
        if unknown:
            known = ", ".join(c["name"] for c in truth["categories"])
            raise DataError(f"{path}: has no class {unknown[0]!r}; its classes are {known}")
        truth["categories"] = [c for c in truth["categories"] if c["name"] in classes]
    category_ids, image_ids = ({record["id"] for record in truth[key]} for key in ("categories", "images"))
    truth["annotations"] = [
        annotation
        for annotation, (category, image) in zip(annotations, places, strict=True)
        if category in category_ids and image in image_ids
    ]
    return truth


def _coco_rows(found: Detections, record: dict[str, Any], categories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """COCO result rows of one picture, in the pixels that the annotation file states."""
    height, width = found.image_hw
    scale = torch.tensor([record["width"] / width, record["height"] / height] * 2)
    boxes = xyxy_to_xywh(found.boxes.cpu() * scale).tolist()
    return [
        {"image_id": record["id"], "category_id": categories[label]["id"], "bbox": box, "score": score}
        for box, label, score in zip(boxes, found.labels.tolist(), found.scores.tolist(), strict=True)
    ]


def _percent(value: float) -> float:
    return round(100 * float(value), 2)
