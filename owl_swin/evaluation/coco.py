"""Detection average precision on a COCO file, as COCO defines it, with a bootstrap interval over pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owl_swin.detector import Detector
from owl_swin.evaluation.precision import average_precision
from owl_swin.evaluation.sets import Progress, coco_rows, counted_boxes, encode_set, read_boxes, without_background

MAX_DETECTIONS = 100


def evaluate_detection(
    detector: Detector,
    annotations: str | Path,
    images: str | Path,
    *,
    classes: Sequence[str] | None = None,
    nms_iou: float | None = 0.5,
    draws: int = 200,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Asks every picture for every class by its name and scores the answers.

    Returns protocol, n_images, n_boxes, AP (IoU 0.50 to 0.95), AP50, AP75, AP_small, AP_medium and AP_large (areas as
    annotated, in pixels of the annotated picture), per_class (name → AP50) and ci95 (of AP50). Figures are in percent;
    a figure that the set cannot give (no boxes) is None. Pictures that cannot be read count as pictures in which
    nothing was found and are listed in "broken".
    """
    truth = without_background(read_boxes(annotations, classes))
    broken: list[str] = []
    rows = ask_by_name(detector, truth, images, broken, nms_iou=nms_iou, progress=progress)
    return {
        "protocol": f"COCO box AP, text queries by class name, {MAX_DETECTIONS} detections a picture, NMS {nms_iou}",
        "annotations": Path(annotations).name,
        "n_images": len(truth["images"]),
        "n_boxes": len(counted_boxes(truth)),
        **average_precision(truth, rows, draws=draws),
        "broken": broken,
    }


def ask_by_name(
    detector: Detector,
    truth: dict[str, Any],
    images: str | Path,
    broken: list[str],
    *,
    nms_iou: float | None = 0.5,
    top_k: int = MAX_DETECTIONS,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """COCO result rows of all pictures of a set, asked for all its classes by name."""
    if not truth["categories"]:
        return []
    queries = detector.encode_queries([query_text(c["name"]) for c in truth["categories"]])
    ids = [c["id"] for c in truth["categories"]]
    rows: list[dict[str, Any]] = []
    for record, encoded in encode_set(detector, truth["images"], images, broken, progress):
        found = detector.detect(encoded, queries, threshold=0.0, nms_iou=nms_iou, top_k=top_k)
        rows += coco_rows(found, record, ids)
    return rows


def query_text(name: str) -> str:
    """What is asked for a class: its name, with spaces where the file has underscores (``hot_dog``)."""
    return name.replace("_", " ").strip() or name
