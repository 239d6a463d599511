"""Classes that were trained on against classes that were not (Bansal et al. 2018, arXiv:1804.04340)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.detector import Detector
from owl_swin.errors import DataError
from owl_swin.evaluation.coco import MAX_DETECTIONS, query_text
from owl_swin.evaluation.precision import (
    average_precision,
    interval,
    mean_over_classes,
    mean_percent,
    precision_table,
    resampled_ap50,
)
from owl_swin.evaluation.sets import Progress, check_names, coco_rows, counted_boxes, encode_set, read_boxes


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
) -> dict[str, Any]:
    """Base and novel classes asked together, each picture's best answers of all classes competing ("generalised").

    Returns AP, AP50 and per_class over all, AP50_base, AP50_novel, their harmonic mean AP50_harmonic, which is low when
    either is, and ci95 of each; AP50_novel_alone is that of the novel classes when nothing else is asked
    ("constrained"). Other classes of the file are left out.
    """
    if not base or not novel or set(base) & set(novel):
        raise DataError("a split needs base classes and novel classes, and no class in both")
    truth = read_boxes(annotations)
    names = check_names(truth, [*base, *novel], annotations)
    truth = _only(truth, names)
    novel_truth = _only(truth, set(novel))
    together: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    broken: list[str] = []
    asked = [
        (part, detector.encode_queries([query_text(c["name"]) for c in part["categories"]]), rows)
        for part, rows in ((truth, together), (novel_truth, alone))
    ]
    for record, encoded in encode_set(detector, truth["images"], images, broken, progress):
        for part, queries, rows in asked:
            found = detector.detect(encoded, queries, threshold=0.0, nms_iou=nms_iou, top_k=MAX_DETECTIONS)
            rows += coco_rows(found, record, [c["id"] for c in part["categories"]])
    table = precision_table(truth, together)[0, :, :, 0]
    values = resampled_ap50(truth, together, draws=draws)
    columns = {
        group: [i for i, c in enumerate(truth["categories"]) if c["name"] in members]
        for group, members in (("base", set(base)), ("novel", set(novel)))
    }
    means = {group: mean_percent(table[:, own]) for group, own in columns.items()}
    resampled = np.stack([_means(values[:, own]) for own in columns.values()])  # [2, draws]
    return {
        "protocol": f"open-vocabulary split, {len(base)} base and {len(novel)} novel classes asked together by name, "
        f"{MAX_DETECTIONS} detections a picture, NMS {nms_iou}",
        "annotations": Path(annotations).name,
        "n_images": len(truth["images"]),
        "n_boxes": len(counted_boxes(truth)),
        **average_precision(truth, together, draws=draws),
        "AP50_base": means["base"],
        "AP50_novel": means["novel"],
        "AP50_harmonic": harmonic(means["base"], means["novel"]),
        "ci95_base": interval(resampled[0]),
        "ci95_novel": interval(resampled[1]),
        "ci95_harmonic": interval(2 * resampled.prod(0) / np.maximum(resampled.sum(0), 1e-9)),
        "AP50_novel_alone": mean_percent(precision_table(novel_truth, alone)[0, :, :, 0]),
        "ci95_novel_alone": interval(mean_over_classes(resampled_ap50(novel_truth, alone, draws=draws))),
        "broken": broken,
    }


def harmonic(a: float | None, b: float | None) -> float | None:
    """The harmonic mean of two figures; 0 when either is, None when either is missing."""
    if a is None or b is None:
        return None
    return round(2 * a * b / (a + b), 2) if a + b else 0.0


def _only(truth: dict[str, Any], names: set[str]) -> dict[str, Any]:
    categories = [c for c in truth["categories"] if c["name"] in names]
    ids = {c["id"] for c in categories}
    own = [a for a in truth["annotations"] if a["category_id"] in ids]
    return {**truth, "categories": categories, "annotations": own}


def _means(values: np.ndarray) -> np.ndarray:
    """Means [draws] over the classes that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    total = known.sum(1)
    return np.where(total > 0, np.where(known, values, 0).sum(1) / np.maximum(total, 1), np.nan)
