"""How good masks are: their average precision, that of their edges, and their overlap where boxes are right."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from owl_swin.evaluation.precision import (
    Overlap,
    Precision,
    average_precision,
    interval,
    judged_rows,
    resampled_weights,
)
from owl_swin.evaluation.report import Interval

# What is measured beside AP and AP50 of masks, and what its figures end in.
BESIDE: Mapping[Overlap, str] = {"boundary": "_boundary", "bbox": "_box"}


def mask_precision(truth: dict[str, Any], rows: Sequence[dict[str, Any]], *, draws: int = 200) -> Precision:
    """The figures of result rows with masks, of a set that was read with masks.

    AP, AP50, AP75, AP_small, AP_medium, AP_large and those of each class are of masks. AP_boundary and AP50_boundary
    are by boundary IoU (arXiv:2103.16562), AP_box and AP50_box of the same answers by their boxes. mask_iou is the mean
    IoU of masks of the answers whose box and name are right (IoU 0.50): how good masks are, whatever is found.
    """
    whole = average_precision(truth, rows, draws=draws, by="segm")
    figures, intervals = dict(whole.figures), dict(whole.intervals)
    for by, ending in BESIDE.items():
        other = average_precision(truth, rows, draws=draws, by=by)
        figures |= {f"{key}{ending}": other.figures[key] for key in ("AP", "AP50")}
        intervals[f"AP50{ending}"] = other.intervals["AP50"]
    figures["mask_iou"], intervals["mask_iou"] = mask_iou(truth, rows, draws=draws)
    return Precision(figures, intervals, whole.per_class)


def mask_iou(
    truth: dict[str, Any], rows: Sequence[dict[str, Any]], *, draws: int = 200
) -> tuple[float | None, Interval | None]:
    """The mean IoU, in percent, of masks of the rows that are right by their boxes, and its interval over pictures."""
    right = [(row, annotation) for row, annotation in judged_rows(truth, rows).items() if annotation is not None]
    if not right:
        return None, None
    from faster_coco_eval.core.mask import iou

    place = {record["id"]: i for i, record in enumerate(truth["images"])}
    sums = np.zeros((len(place), 2))  # IoU and rows of each picture
    for row, annotation in right:
        own, wanted = rows[row]["segmentation"], truth["annotations"][annotation]["segmentation"]
        sums[place[rows[row]["image_id"]]] += float(iou([own], [wanted], [0])[0, 0]), 1
    total, n = sums.sum(0)
    figure = round(100 * float(total / n), 2)
    drawn = resampled_weights(len(place), draws) @ sums
    return figure, interval(100 * drawn[:, 0] / np.where(drawn[:, 1], drawn[:, 1], np.nan), figure)
