"""How good masks are: their average precision, that of their edges, and their overlap where boxes are right."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from owl_swin.evaluation.precision import SIZES, Overlap, Precision, interval, judged_rows, resampled_weights
from owl_swin.evaluation.report import Interval

# What is measured beside masks, and what its figures end in.
BESIDE: Mapping[Overlap, str] = {"boundary": "_boundary", "bbox": "_box"}
# Figures that are of masks alone.
ALONE = ("AP75", *(f"AP_{size}" for size in SIZES))


def with_edges_and_boxes(measure: Callable[[Overlap], Precision], *, masks: bool) -> Precision:
    """What a protocol measures: of boxes, or with ``masks`` of masks, and beside these, of the same answers,
    AP_boundary and the like by boundary IoU (arXiv:2103.16562) and AP_box and the like by boxes."""
    if not masks:
        return measure("bbox")
    whole = measure("segm")
    figures, intervals = dict(whole.figures), dict(whole.intervals)
    for by, ending in BESIDE.items():
        other = measure(by)
        figures |= {f"{key}{ending}": value for key, value in other.figures.items() if key not in ALONE}
        intervals |= {f"{key}{ending}": value for key, value in other.intervals.items() if key not in ALONE}
    return replace(whole, figures=figures, intervals=intervals)


def precision_by(
    measure: Callable[[Overlap], Precision],
    truth: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    *,
    masks: bool,
    draws: int = 200,
    max_detections: int = 100,
    lvis: bool = False,
) -> Precision:
    """What a protocol measures of the result rows of a set: of boxes, or with ``masks``, which both then have, of masks
    with edges and boxes beside, and mask_iou.

    That is the mean IoU of masks of the answers whose box and name are right (IoU 0.50): how good masks are,
    whatever is found.
    """
    all_three = with_edges_and_boxes(measure, masks=masks)
    if not masks:
        return all_three
    figure, drawn = mask_iou(truth, rows, draws=draws, max_detections=max_detections, lvis=lvis)
    figures, intervals = all_three.figures | {"mask_iou": figure}, all_three.intervals | {"mask_iou": drawn}
    return replace(all_three, figures=figures, intervals=intervals)


def mask_iou(
    truth: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    *,
    draws: int = 200,
    max_detections: int = 100,
    lvis: bool = False,
) -> tuple[float | None, Interval | None]:
    """The mean IoU, in percent, of masks of the rows that are right by their boxes, and its interval over pictures."""
    judged = judged_rows(truth, rows, max_detections=max_detections, lvis=lvis)
    right = [(row, annotation) for row, annotation in judged.items() if annotation is not None]
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
