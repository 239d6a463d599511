"""Average precision of boxes or masks on a COCO file, as COCO defines it, with a bootstrap interval over pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owl_swin.data.truth import LEAST_SURE, counted_boxes, is_federated, read_truth
from owl_swin.detector import Detector
from owl_swin.encoder import check_has_masks
from owl_swin.evaluation.class_queries import encode_classes
from owl_swin.evaluation.mask_precision import precision_by
from owl_swin.evaluation.precision import Overlap, Precision, average_precision, check_can_measure
from owl_swin.evaluation.report import Report
from owl_swin.evaluation.sets import Progress, coco_rows, encode_set
from owl_swin.postprocess import NmsIou, said_suppression
from owl_swin.tiling import TilesLike

MAX_DETECTIONS = 100


def evaluate_detection(
    detector: Detector,
    annotations: str | Path,
    images: str | Path,
    *,
    classes: Sequence[str] | None = None,
    nms_iou: NmsIou = "model",
    ignore_below: float = LEAST_SURE,
    draws: int = 200,
    tiles: TilesLike | None = None,
    masks: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Asks every picture, and its ``tiles`` where there are some, for every class by its name and scores the answers.

    Figures: AP (IoU 0.50 to 0.95), AP50, AP75, AP_small, AP_medium and AP_large (areas as annotated, in pixels of the
    annotated picture), and AP50 of each class. Pictures that cannot be read count as pictures in which nothing was
    found, and are listed in ``broken``; guessed boxes with a score under ``ignore_below`` are neither to be found nor
    false. With ``masks`` these are the figures of masks, and others stand beside them, as ``precision_by`` says; a
    set without masks then raises DataError.
    """
    check_can_measure()
    if masks:
        check_has_masks(detector.spec)
    truth = read_truth(annotations, images, classes, ignore_below=ignore_below, masks=masks)
    broken: list[str] = []
    rows = ask_by_name(detector, truth, broken, nms_iou=nms_iou, tiles=tiles, masks=masks, progress=progress)
    precision = coco_precision(truth, rows, masks=masks, draws=draws)
    federated = (
        "the file says which classes were looked for in a picture, and here all others count as absent; use lvis"
    )
    return Report(
        protocol=f"COCO {'mask' if masks else 'box'} AP, text queries by class name, "
        f"{MAX_DETECTIONS} detections a picture, {said_suppression(detector.spec, nms_iou)}"
        + ("" if tiles is None else f", with {tiles}"),
        annotations=Path(annotations).name,
        counts={"n_images": len(truth["images"]), "n_boxes": len(counted_boxes(truth))},
        figures=precision.figures,
        intervals=precision.intervals,
        per_class=precision.per_class,
        notes=(*truth["notes"], *([federated] if is_federated(truth) else [])),
        broken=tuple(broken),
    )


def coco_precision(truth: dict[str, Any], rows: Sequence[dict[str, Any]], *, masks: bool, draws: int) -> Precision:
    """The figures of result rows as COCO defines them, of boxes or of masks."""

    def measure(by: Overlap) -> Precision:
        return average_precision(truth, rows, draws=draws, by=by)

    return precision_by(measure, truth, rows, masks=masks, draws=draws)


def ask_by_name(
    detector: Detector,
    truth: dict[str, Any],
    broken: list[str],
    *,
    nms_iou: NmsIou = "model",
    top_k: int = MAX_DETECTIONS,
    tiles: TilesLike | None = None,
    masks: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """COCO result rows of all pictures of a set, asked for all its classes by name."""
    queries = encode_classes(detector, truth)
    if queries is None:
        return []
    ids = [category["id"] for category in truth["categories"]]
    rows: list[dict[str, Any]] = []
    for record, encoded in encode_set(detector, truth, broken, progress, tiles, masks=masks):
        found = detector.detect(encoded, queries, threshold=0.0, nms_iou=nms_iou, top_k=top_k, masks=masks)
        rows += coco_rows(found, record, ids)
    return rows
