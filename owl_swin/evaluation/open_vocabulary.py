"""Classes that were trained on against classes that were not (Bansal et al. 2018, arXiv:1804.04340)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.truth import class_ids, counted_boxes, only_categories, read_truth
from owl_swin.detector import Detector
from owl_swin.errors import DataError
from owl_swin.evaluation.class_queries import encode_classes
from owl_swin.evaluation.detection import MAX_DETECTIONS
from owl_swin.evaluation.precision import (
    average_precision,
    interval,
    mean_over_classes,
    mean_percent,
    precision_table,
    resampled_ap50,
)
from owl_swin.evaluation.report import Report
from owl_swin.evaluation.sets import Progress, coco_rows, encode_set


def evaluate_split(
    detector: Detector,
    annotations: str | Path,
    images: str | Path,
    *,
    base: Sequence[str],
    novel: Sequence[str],
    nms_iou: float | None = 0.5,
    draws: int = 200,
    progress: Progress | None = None,
) -> Report:
    """Base and novel classes asked together, each picture's best answers of all classes competing ("generalised").

    Figures: AP, AP50 and AP50 of each class over all, AP50_base, AP50_novel, their harmonic mean AP50_harmonic, which
    is low when either is; AP50_novel_alone is that of the novel classes when nothing else is asked ("constrained").
    Other classes of the file are left out.
    """
    truth = read_truth(annotations, images, background=True)
    groups = {"base": class_ids(truth, base, annotations), "novel": class_ids(truth, novel, annotations)}
    if not all(groups.values()) or set(groups["base"]) & set(groups["novel"]):
        raise DataError("a split needs base classes and novel classes, and no class in both")
    truth = only_categories(truth, [*groups["base"], *groups["novel"]])
    novel_truth = only_categories(truth, groups["novel"])
    together: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    broken: list[str] = []
    asked = [(part, encode_classes(detector, part), rows) for part, rows in ((truth, together), (novel_truth, alone))]
    for record, encoded in encode_set(detector, truth, broken, progress):
        for part, queries, rows in asked:
            assert queries is not None
            found = detector.detect(encoded, queries, threshold=0.0, nms_iou=nms_iou, top_k=MAX_DETECTIONS)
            rows += coco_rows(found, record, [c["id"] for c in part["categories"]])
    table = precision_table(truth, together)[0, :, :, 0]
    values = resampled_ap50(truth, together, draws=draws)
    columns = [[i for i, c in enumerate(truth["categories"]) if c["id"] in own] for own in groups.values()]
    mean_base, mean_novel = (mean_percent(table[:, own]) for own in columns)
    drawn_base, drawn_novel = (known_means(values[:, own]) for own in columns)
    drawn_harmonic = 2 * drawn_base * drawn_novel / np.maximum(drawn_base + drawn_novel, 1e-9)
    drawn_alone = mean_over_classes(resampled_ap50(novel_truth, alone, draws=draws))
    own = {
        "AP50_base": mean_base,
        "AP50_novel": mean_novel,
        "AP50_harmonic": harmonic(mean_base, mean_novel),
        "AP50_novel_alone": mean_percent(precision_table(novel_truth, alone)[0, :, :, 0]),
    }
    drawn = dict(zip(own, (drawn_base, drawn_novel, drawn_harmonic, drawn_alone), strict=True))
    precision = average_precision(truth, together, draws=draws)
    return Report(
        protocol=f"open-vocabulary split, {len(base)} base and {len(novel)} novel classes asked together by name, "
        f"{MAX_DETECTIONS} detections a picture, NMS {nms_iou}",
        annotations=Path(annotations).name,
        counts={"n_images": len(truth["images"]), "n_boxes": len(counted_boxes(truth))},
        figures=precision.figures | own,
        intervals=precision.intervals | {key: interval(drawn[key], figure) for key, figure in own.items()},
        per_class=precision.per_class,
        notes=(
            *truth["notes"],
            *(f"no {key}: none of its classes has a box" for key, value in own.items() if value is None),
        ),
        broken=tuple(broken),
    )


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
