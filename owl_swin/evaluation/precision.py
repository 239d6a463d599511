"""Average precision of COCO result rows, as COCO and LVIS define it, and its bootstrap over pictures."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from owl_swin.errors import MissingExtraError
from owl_swin.evaluation.sets import counted_boxes

RECALLS = np.linspace(0, 1, 101)
COCO_IOUS = np.linspace(0.5, 0.95, 10)
# COCO's sizes, by annotated area in pixels of the annotated picture.
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def average_precision(
    truth: dict[str, Any], rows: Sequence[dict[str, Any]], *, draws: int = 200, max_detections: int = 100
) -> dict[str, Any]:
    """AP, AP50, AP75, AP_small, AP_medium, AP_large, per_class (name → AP50) and ci95 of AP50, in percent.

    ``max_detections`` are counted a picture and class. What the set cannot give, as it has no such boxes, is None.
    """
    table = precision_table(truth, rows, max_detections=max_detections)  # [IoU, recall, class, size]
    figures = {
        "AP": mean_percent(table[..., 0]),
        "AP50": mean_percent(table[0, :, :, 0]),
        "AP75": mean_percent(table[5, :, :, 0]),
    }
    for place, size in enumerate(SIZES, start=1):
        figures[f"AP_{size}"] = mean_percent(table[..., place])
    return {
        **figures,
        "per_class": per_class(truth, table),
        "ci95": interval(mean_over_classes(resampled_ap50(truth, rows, draws=draws, max_detections=max_detections))),
    }


def per_class(truth: dict[str, Any], table: np.ndarray) -> dict[str, float]:
    """Name → AP50 in percent, of the classes that have boxes. Classes of one name are told apart by their id."""
    names = [c["name"] for c in truth["categories"]]
    out = {}
    for place, category in enumerate(truth["categories"]):
        value = mean_percent(table[0, :, place, 0])
        if value is not None:
            name = category["name"]
            out[name if names.count(name) == 1 else f"{name} ({category['id']})"] = value
    return out


def precision_table(
    truth: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    *,
    max_detections: int = 100,
    lvis: bool = False,
) -> np.ndarray:
    """Precision [10 IoUs, 101 recalls, C classes as in the file, 4 sizes: all, small, medium, large]; -1: no boxes.

    ``lvis``: in each picture only classes that are there or known to be absent count, and a box of a class that was not
    annotated exhaustively is never false (arXiv:1908.03195).
    """
    classes = [c["id"] for c in truth["categories"]]
    if not counted_boxes(truth):
        return np.full((10, 101, len(classes), 4), -1.0)
    if not rows:
        return _nothing_found(truth)
    evaluation, _ = _evaluated(truth, rows, COCO_IOUS, max_detections, lvis)
    order = [evaluation.params.catIds.index(category) for category in classes]
    return evaluation.eval["precision"][..., -1][:, :, order]


def resampled_ap50(
    truth: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    *,
    draws: int = 200,
    max_detections: int = 100,
    lvis: bool = False,
) -> np.ndarray:
    """AP50 in percent [draws, C] when the pictures are drawn again with replacement; NaN where a class has no boxes.

    The same pictures are drawn for every set of rows, so differences between rows can be judged draw by draw.
    """
    place = {record["id"]: i for i, record in enumerate(truth["images"])}
    n_images = len(place)
    times = resampled_weights(n_images, draws)
    hits = _hits(truth, rows, max_detections, lvis)
    out = np.full((len(times), len(truth["categories"])), np.nan)
    boxes = {c["id"]: np.zeros(n_images) for c in truth["categories"]}
    for a in counted_boxes(truth):
        boxes[a["category_id"]][place[a["image_id"]]] += 1
    for column, category in enumerate(truth["categories"]):
        own = sorted(hits.get(category["id"], []), key=lambda row: -row[0])
        hit = np.array([row[1] for row in own], dtype=float)
        where = np.array([place[row[2]] for row in own], dtype=int)
        for draw, weights in enumerate(times):
            out[draw, column] = 100 * weighted_ap(hit, weights[where], float(boxes[category["id"]] @ weights))
    return out


def resampled_weights(n_images: int, draws: int) -> np.ndarray:
    """How often each picture is drawn [draws, n_images], with replacement; the same in every call. No pictures, no
    draws."""
    rng = np.random.default_rng(0)
    times = [np.bincount(rng.integers(0, n_images, n_images), minlength=n_images) for _ in range(draws) if n_images]
    return np.array(times, dtype=int).reshape(len(times), n_images)


def weighted_ap(hits: np.ndarray, weights: np.ndarray, n_truth: float) -> float:
    """COCO's 101-point AP of detections in order of score, each counted ``weights`` times; NaN without boxes."""
    if not n_truth:
        return float("nan")
    true, false = np.cumsum(hits * weights), np.cumsum((1 - hits) * weights)
    recall = true / n_truth
    precision = true / np.maximum(true + false, 1e-9)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS)
    return float(np.append(precision, 0.0)[np.minimum(places, len(precision))].mean())


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Means [draws] of [draws, C], over the classes that are not NaN; draws without any are left out."""
    values = values[~np.isnan(values).all(1)] if values.size else np.empty((0, 1))
    return np.nanmean(values, 1) if len(values) else np.empty(0)


def interval(values: np.ndarray) -> list[float] | None:
    """The 95 % interval of bootstrap draws, to two digits; None without draws."""
    values = values[~np.isnan(values)]
    return [round(float(v), 2) for v in np.percentile(values, [2.5, 97.5])] if len(values) else None


def mean_percent(precision: np.ndarray) -> float | None:
    """The mean of the entries that are not -1, in percent; None when there is none."""
    known = precision[precision > -1]
    return round(100 * float(known.mean()), 2) if known.size else None


def _nothing_found(truth: dict[str, Any]) -> np.ndarray:
    """precision_table of no rows: 0 wherever there are boxes."""
    table = np.full((10, 101, len(truth["categories"]), 4), -1.0)
    place = {c["id"]: i for i, c in enumerate(truth["categories"])}
    for a in counted_boxes(truth):
        for size, (low, high) in enumerate([(0, 1e10), *SIZES.values()]):
            if low <= a["area"] <= high:
                table[:, :, place[a["category_id"]], size] = 0
    return table


def _evaluated(
    truth: dict[str, Any], rows: Sequence[dict[str, Any]], ious: np.ndarray, max_detections: int, lvis: bool
) -> tuple[Any, Any]:
    """The library's evaluation, and its record of the rows, which have ids there."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise MissingExtraError("measuring average precision", "train") from None
    # The library takes an annotation with id 0, as many files have, for "no match", and writes into what it is given.
    annotations = [{**a, "id": i} for i, a in enumerate(truth["annotations"], start=1)]
    categories = [{"frequency": "f", **c} for c in truth["categories"]]
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO({**truth, "annotations": annotations, "categories": categories})
        answers = ground_truth.loadRes([dict(row) for row in rows])
        evaluation = COCOeval_faster(
            ground_truth, answers, "bbox", print_function=lambda *_: None, ranges=dict(SIZES), lvis_style=lvis
        )
        evaluation.params.iouThrs = ious
        if len(ious) == 1:  # pairs are wanted: those of one size range must not mix with another's
            evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation, answers


def _hits(
    truth: dict[str, Any], rows: Sequence[dict[str, Any]], max_detections: int, lvis: bool
) -> dict[int, list[tuple[float, bool, int]]]:
    """Category id → (score, is it right at IoU 0.50, image id) of every row that counts."""
    if not rows or not counted_boxes(truth):
        return {}
    evaluation, answers = _evaluated(truth, rows, COCO_IOUS[:1], max_detections, lvis)
    # "answer_annotation" of each pair; an answer in a crowd region counts nowhere.
    pairs = (key.split("_") for key in evaluation.eval["matched"])
    partner = {int(answer): int(annotation) for answer, annotation in pairs}
    crowds = {i for i, a in enumerate(truth["annotations"], start=1) if a.get("iscrowd")}
    out: dict[int, list[tuple[float, bool, int]]] = {}
    seen: dict[tuple[int, int], int] = {}
    for i, answer in sorted(answers.anns.items(), key=lambda item: -item[1]["score"]):
        group = (answer["image_id"], answer["category_id"])
        seen[group] = seen.get(group, 0) + 1
        if seen[group] > max_detections:
            continue
        unjudged = answer.get("drop", False) or (answer.get("lvis_mark", False) and i not in partner)
        if partner.get(i) not in crowds and not unjudged:
            out.setdefault(answer["category_id"], []).append((answer["score"], i in partner, answer["image_id"]))
    return out
