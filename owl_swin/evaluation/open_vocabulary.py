"""Classes that were trained on against classes that were not (Bansal et al. 2018, arXiv:1804.04340)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.truth import class_ids, counted_boxes, only_categories, read_truth
from owl_swin.detector import Detector
from owl_swin.encoder import check_has_masks
from owl_swin.errors import DataError
from owl_swin.evaluation.class_queries import encode_classes
from owl_swin.evaluation.detection import MAX_DETECTIONS
from owl_swin.evaluation.mask_precision import precision_by
from owl_swin.evaluation.precision import (
    Overlap,
    Precision,
    average_precision,
    check_can_measure,
    interval,
    mean_over_classes,
    mean_percent,
    precision_table,
    resampled_ap50,
)
from owl_swin.evaluation.report import Report
from owl_swin.evaluation.sets import Progress, coco_rows, encode_set
from owl_swin.postprocess import NmsIou, said_suppression

# The figures that this protocol has beside those of COCO.
OWN = ("AP50_base", "AP50_novel", "AP50_harmonic", "AP50_novel_alone")


def evaluate_split(
    detector: Detector,
    annotations: str | Path,
    images: str | Path,
    *,
    base: Sequence[str],
    novel: Sequence[str],
    nms_iou: NmsIou = "model",
    draws: int = 200,
    masks: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Base and novel classes asked together, each picture's best answers of all classes competing ("generalised").

    Figures: AP, AP50 and AP50 of each class over all, AP50_base, AP50_novel, their harmonic mean AP50_harmonic, which
    is low when either is; AP50_novel_alone is that of the novel classes when nothing else is asked ("constrained").
    Other classes of the file are left out. With ``masks`` figures are of masks, with edges and boxes beside, as
    ``precision_by`` says; a set without masks then raises DataError.
    """
    check_can_measure()
    if masks:
        check_has_masks(detector.spec)
    truth = read_truth(annotations, images, background=True, masks=masks)
    groups = {"base": class_ids(truth, base, annotations), "novel": class_ids(truth, novel, annotations)}
    if not all(groups.values()) or set(groups["base"]) & set(groups["novel"]):
        raise DataError("a split needs base classes and novel classes, and no class in both")
    truth = only_categories(truth, [*groups["base"], *groups["novel"]])
    novel_truth = only_categories(truth, groups["novel"])
    together: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    broken: list[str] = []
    asked = [(part, encode_classes(detector, part), rows) for part, rows in ((truth, together), (novel_truth, alone))]
    for record, encoded in encode_set(detector, truth, broken, progress, masks=masks):
        for part, queries, rows in asked:
            assert queries is not None
            found = detector.detect(encoded, queries, threshold=0.0, nms_iou=nms_iou, top_k=MAX_DETECTIONS, masks=masks)
            rows += coco_rows(found, record, [c["id"] for c in part["categories"]])

    def measure(by: Overlap) -> Precision:
        return split_precision(truth, together, novel_truth, alone, groups["base"], draws=draws, by=by)

    precision = precision_by(measure, truth, together, masks=masks, draws=draws)
    return Report(
        protocol=f"open-vocabulary split, {'mask' if masks else 'box'} AP, {len(base)} base and {len(novel)} novel "
        f"classes asked together by name, {MAX_DETECTIONS} detections a picture, "
        f"{said_suppression(detector.spec, nms_iou)}",
        annotations=Path(annotations).name,
        counts={"n_images": len(truth["images"]), "n_boxes": len(counted_boxes(truth))},
        figures=precision.figures,
        intervals=precision.intervals,
        per_class=precision.per_class,
        notes=(
            *truth["notes"],
            *(f"no {key}: none of its classes has a box" for key in OWN if precision.figures[key] is None),
        ),
        broken=tuple(broken),
    )


def split_precision(
    truth: dict[str, Any],
    together: Sequence[dict[str, Any]],
    novel_truth: dict[str, Any],
    alone: Sequence[dict[str, Any]],
    base_ids: Sequence[Any],
    *,
    draws: int,
    by: Overlap,
) -> Precision:
    """COCO's figures of the classes asked ``together``, and OWN; ``alone`` are the rows of the novel ones alone."""
    table = precision_table(truth, together, by=by)[0, :, :, 0]
    values = resampled_ap50(truth, together, draws=draws, by=by)
    is_base = np.array([c["id"] in base_ids for c in truth["categories"]])
    base, novel = mean_percent(table[:, is_base]), mean_percent(table[:, ~is_base])
    novel_alone = mean_percent(precision_table(novel_truth, alone, by=by)[0, :, :, 0])
    drawn_base, drawn_novel = known_means(values[:, is_base]), known_means(values[:, ~is_base])
    drawn_harmonic = 2 * drawn_base * drawn_novel / np.maximum(drawn_base + drawn_novel, 1e-9)
    drawn_alone = mean_over_classes(resampled_ap50(novel_truth, alone, draws=draws, by=by))
    own = dict(zip(OWN, (base, novel, harmonic(base, novel), novel_alone), strict=True))
    drawn = dict(zip(OWN, (drawn_base, drawn_novel, drawn_harmonic, drawn_alone), strict=True))
    whole = average_precision(truth, together, draws=draws, by=by)
    intervals = {key: interval(drawn[key], figure) for key, figure in own.items()}
    return Precision(whole.figures | own, whole.intervals | intervals, whole.per_class)


def harmonic(a: float | None, b: float | None) -> float | None:
    """The harmonic mean of two figures; 0 when either is, None when either is missing."""
    if a is None or b is None:
        return None
    return round(2 * a * b / (a + b), 2) if a + b else 0.0


def known_means(values: np.ndarray) -> np.ndarray:
    """Means [draws] of [draws, C] over the classes that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    total = known.sum(1)
    return np.where(total > 0, np.where(known, values, 0).sum(1) / np.maximum(total, 1), np.nan)
