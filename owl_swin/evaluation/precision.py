"""Average precision of COCO result rows, as COCO and LVIS define it, and its bootstrap over pictures.

Rows are judged by their boxes, by their masks, or by these and the bands along their edges (boundary IoU,
arXiv:2103.16562); for the latter two, rows and annotations have a compressed mask as "segmentation".
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from owl_swin.data.coco import LVIS_LISTS
from owl_swin.data.truth import counted_boxes
from owl_swin.errors import MissingExtraError
from owl_swin.evaluation.report import Interval

# What two things are compared by, in the library's words.
Overlap = Literal["bbox", "segm", "boundary"]
EMPTY_MASK = {"size": [1, 1], "counts": "1"}
RECALLS = np.linspace(0, 1, 101)
COCO_IOUS = np.linspace(0.5, 0.95, 10)
# COCO's sizes, by annotated area in pixels of the annotated picture.
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


@dataclass(frozen=True, slots=True)
class Precision:
    """``figures`` (AP, AP50, AP75, AP_small, AP_medium, AP_large), ``intervals`` (of AP50) and ``per_class`` (name →
    AP50), in percent. What the set cannot give, as it has no such boxes, is None."""

    figures: dict[str, float | None]
    intervals: dict[str, Interval | None]
    per_class: dict[str, float]


def check_can_measure() -> None:
    """Raises MissingExtraError where the library that measures precision is not installed: said before the work, and
    not after it."""
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        raise MissingExtraError("measuring average precision", "train") from None


def average_precision(
    truth: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    *,
    draws: int = 200,
    max_detections: int = 100,
    by: Overlap = "bbox",
) -> Precision:
    """The figures of result rows, of which ``max_detections`` are counted a picture and class."""
    table = precision_table(truth, rows, max_detections=max_detections, by=by)  # [IoU, recall, class, size]
    figures = {
        "AP": mean_percent(table[..., 0]),
        "AP50": mean_percent(table[0, :, :, 0]),
        "AP75": mean_percent(table[5, :, :, 0]),
    }
    for place, size in enumerate(SIZES, start=1):
        figures[f"AP_{size}"] = mean_percent(table[..., place])
    drawn = mean_over_classes(resampled_ap50(truth, rows, draws=draws, max_detections=max_detections, by=by))
    return Precision(figures, {"AP50": interval(drawn, figures["AP50"])}, per_class(truth, table))


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
    by: Overlap = "bbox",
) -> np.ndarray:
    """Precision [10 IoUs, 101 recalls, C classes as in the file, 4 sizes: all, small, medium, large]; -1: no boxes.

    ``lvis``: in each picture only classes that are there or known to be absent count, and a box of a class that was not
    annotated exhaustively is never false (arXiv:1908.03195).
    """
    classes = list(_numbers(truth["categories"]).values())
    if not counted_boxes(truth):
        return np.full((10, 101, len(classes), 4), -1.0)
    if not rows:
        return _nothing_found(truth)
    evaluation, _ = _evaluated(truth, rows, COCO_IOUS, max_detections, lvis, by)
    order = [evaluation.params.catIds.index(category) for category in classes]
    return evaluation.eval["precision"][..., -1][:, :, order]


def resampled_ap50(
    truth: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    *,
    draws: int = 200,
    max_detections: int = 100,
    lvis: bool = False,
    by: Overlap = "bbox",
) -> np.ndarray:
    """AP50 in percent [draws, C] when the pictures are drawn again with replacement; NaN where a class has no boxes.

    The same pictures are drawn for every set of rows, so differences between rows can be judged draw by draw.
    """
    place = {record["id"]: i for i, record in enumerate(truth["images"])}
    n_images, numbers = len(place), _numbers(truth["images"])
    times = resampled_weights(n_images, draws)
    hits = _hits(truth, rows, max_detections, lvis, by)
    out = np.full((len(times), len(truth["categories"])), np.nan)
    boxes = {c["id"]: np.zeros(n_images) for c in truth["categories"]}
    for a in counted_boxes(truth):
        boxes[a["category_id"]][place[a["image_id"]]] += 1
    for column, category in enumerate(truth["categories"]):
        # Of equal scores the picture of the smaller id goes first, as the library has it.
        own = sorted(hits.get(category["id"], []), key=lambda row: (-row[0], numbers[row[2]]))
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


def interval(values: np.ndarray, figure: float | None) -> Interval | None:
    """The bias-corrected 95 % interval of a figure from its bootstrap draws (Efron 1981), to two digits.

    AP of pictures drawn again lies above that of the pictures: a class with few boxes is left out of a draw without
    any, and found at a better precision in a draw that has them twice. So does an error that is a sum of absolute
    values. The plain percentiles would repeat that bias; here they are moved by what share of the draws lies below the
    figure. Further than a deviation they are not moved, as few draws lie there. None without draws or figure.
    """
    values = values[~np.isnan(values)]
    if not len(values) or figure is None:
        return None
    normal = NormalDist()
    # Figures have two digits, so a draw this near is level with the figure.
    below = float((values < figure - 0.005).mean() + (abs(values - figure) <= 0.005).mean() / 2)
    shift = max(-1.0, min(normal.inv_cdf(min(max(below, 1e-9), 1 - 1e-9)), 1.0))
    shares = [100 * normal.cdf(2 * shift + side * normal.inv_cdf(0.975)) for side in (-1, 1)]
    low, high = np.percentile(values, shares)
    return round(float(min(low, figure)), 2), round(float(max(high, figure)), 2)


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
    truth: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    ious: np.ndarray,
    max_detections: int,
    lvis: bool,
    by: Overlap,
) -> tuple[Any, Any]:
    """The library's evaluation, and its record of the rows, which have ids there: their places, counted from 1."""
    check_can_measure()
    from faster_coco_eval import COCO, COCOeval_faster

    # The library wants ids that are whole numbers, takes an annotation with id 0, as many files have, for "no match",
    # and writes into what it is given.
    images, classes = _numbers(truth["images"]), _numbers(truth["categories"])
    annotations = [
        {**a, "id": i, "image_id": images[a["image_id"]], "category_id": classes[a["category_id"]]}
        for i, a in enumerate(truth["annotations"], start=1)
    ]
    known = {
        "info": {},
        "images": [_numbered(record, images, classes) for record in truth["images"]],
        "annotations": annotations,
        "categories": [
            {"id": classes[c["id"]], "name": c["name"], "frequency": c.get("frequency", "f")}
            for c in truth["categories"]
        ],
    }
    # The library takes the area of a row from its box where it has one, and size limits are for areas of masks.
    kept = ("bbox", "score") if by == "bbox" else ("segmentation", "score")
    numbered = [
        {key: row[key] for key in kept}
        | {"image_id": images[row["image_id"]], "category_id": classes[row["category_id"]]}
        for row in rows
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(known)
        answers = ground_truth.loadRes(numbered)
        if by == "boundary":
            _without_edges(answers.anns.values(), annotations)
        evaluation = COCOeval_faster(
            ground_truth, answers, by, print_function=lambda *_: None, ranges=dict(SIZES), lvis_style=lvis
        )
        evaluation.params.iouThrs = ious
        if len(ious) == 1:  # pairs are wanted: those of one size range must not mix with another's
            evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation, answers


def _without_edges(answers: Iterable[dict[str, Any]], annotations: Sequence[dict[str, Any]]) -> None:
    """Makes the masks empty of answers that nothing in their picture can be compared with, as the library finds the
    edges of all masks, which costs more than all else; their areas stay."""
    there = {(a["image_id"], a["category_id"]) for a in annotations}
    for answer in answers:
        if (answer["image_id"], answer["category_id"]) not in there:
            answer["segmentation"] = EMPTY_MASK


def _numbers(records: Sequence[dict[str, Any]]) -> dict[Any, int]:
    """A whole number for each id: the id itself, unless ids are text or the like."""
    ids = [record["id"] for record in records]
    return {i: i for i in ids} if all(type(i) is int for i in ids) else {i: n for n, i in enumerate(ids, start=1)}


def _numbered(record: dict[str, Any], images: dict[Any, int], classes: dict[Any, int]) -> dict[str, Any]:
    lists = {key: [classes[i] for i in record[key] if i in classes] for key in LVIS_LISTS if key in record}
    size = {"width": record.get("width") or 1, "height": record.get("height") or 1}
    return {"id": images[record["id"]], "file_name": record["file_name"], **size, **lists}


def _hits(
    truth: dict[str, Any], rows: Sequence[dict[str, Any]], max_detections: int, lvis: bool, by: Overlap
) -> dict[Any, list[tuple[float, bool, Any]]]:
    """Category id → (score, is it right at IoU 0.50, image id) of every row that counts."""
    out: dict[Any, list[tuple[float, bool, Any]]] = {}
    for row, annotation in judged_rows(truth, rows, max_detections=max_detections, lvis=lvis, by=by).items():
        hit = (rows[row]["score"], annotation is not None, rows[row]["image_id"])
        out.setdefault(rows[row]["category_id"], []).append(hit)
    return out


def judged_rows(
    truth: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    *,
    max_detections: int = 100,
    lvis: bool = False,
    by: Overlap = "bbox",
) -> dict[int, int | None]:
    """The place of every row that counts, the best first, and that of the annotation which it is right about at IoU
    0.50; None where it is false. What is in a crowd, or one too many, does not count."""
    if not rows or not counted_boxes(truth):
        return {}
    evaluation, answers = _evaluated(truth, rows, COCO_IOUS[:1], max_detections, lvis, by)
    # "answer_annotation" of each pair, both counted from 1.
    pairs = (key.split("_") for key in evaluation.eval["matched"])
    partner = {int(answer): int(annotation) - 1 for answer, annotation in pairs}
    out: dict[int, int | None] = {}
    seen: dict[tuple[int, int], int] = {}
    for i, answer in sorted(answers.anns.items(), key=lambda item: -item[1]["score"]):
        group = (answer["image_id"], answer["category_id"])
        seen[group] = seen.get(group, 0) + 1
        unjudged = answer.get("drop", False) or (answer.get("lvis_mark", False) and i not in partner)
        in_crowd = i in partner and truth["annotations"][partner[i]].get("iscrowd")
        if seen[group] <= max_detections and not in_crowd and not unjudged:
            out[i - 1] = partner.get(i)
    return out
