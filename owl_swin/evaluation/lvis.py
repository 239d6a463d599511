"""LVIS average precision (arXiv:1908.03195), as the benchmark has it and "fixed" (arXiv:2102.01066)."""

import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owl_swin.data.truth import counted_boxes, is_federated, read_truth
from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage
from owl_swin.encoder import check_has_masks
from owl_swin.evaluation.class_queries import encode_classes
from owl_swin.evaluation.mask_precision import precision_by
from owl_swin.evaluation.precision import (
    Overlap,
    Precision,
    check_can_measure,
    interval,
    mean_over_classes,
    mean_percent,
    per_class,
    precision_table,
    resampled_ap50,
)
from owl_swin.evaluation.report import Report
from owl_swin.evaluation.sets import Progress, coco_rows, encode_set
from owl_swin.postprocess import NmsIou, said_suppression
from owl_swin.types import QueryEmbeddings

PER_IMAGE = 300
PER_CLASS = 10_000
# Classes whose answers are sorted out together for the fixed figure; it bounds memory.
CLASSES_AT_ONCE = 64
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}


def evaluate_lvis(
    detector: Detector,
    annotations: str | Path,
    images: str | Path,
    *,
    classes: Sequence[str] | None = None,
    fixed: bool = True,
    nms_iou: NmsIou = "model",
    draws: int = 200,
    masks: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Asks every picture for every class by its name and scores as LVIS does.

    LVIS is federated: in a picture only the classes count that are there or in its neg_category_ids, and of those in
    its not_exhaustive_category_ids no answer is false. AP, AP50, APr, APc, APf (rare, common, frequent classes) are of
    the 300 best answers a picture; AP_fixed, APr_fixed, … of the 10,000 best answers a class over the whole set, which
    a picture's other classes neither push out nor compete with. Figures are in percent, None where the set has no such
    class.

    With ``masks`` figures are of masks, with edges and boxes beside, as ``precision_by`` says; the fixed ones are
    those of boxes, AP_fixed_box and so on, since ten thousand masks a class take days. A set without masks then raises
    DataError.
    """
    check_can_measure()
    if masks:
        check_has_masks(detector.spec)
    truth = read_truth(annotations, images, classes, background=True, masks=masks)
    queries = encode_classes(detector, truth)
    ids = [c["id"] for c in truth["categories"]]
    rows: list[dict[str, Any]] = []
    best = BestOfClass(ids)
    broken: list[str] = []
    for record, encoded in encode_set(detector, truth, broken, progress, masks=masks) if queries else ():
        assert queries is not None
        found = detector.detect(encoded, queries, threshold=0.0, nms_iou=nms_iou, top_k=PER_IMAGE, masks=masks)
        rows += coco_rows(found, record, ids)
        if fixed:
            best.ask(detector, record, encoded, queries, nms_iou)

    def measure(by: Overlap) -> Precision:
        own, classwise = lvis_figures(truth, rows, by=by)
        drawn = resampled_ap50(truth, rows, draws=draws, max_detections=PER_IMAGE, lvis=True, by=by)
        return Precision(own, {"AP50": interval(mean_over_classes(drawn), own["AP50"])}, classwise)

    precision = precision_by(measure, truth, rows, masks=masks, draws=draws, max_detections=PER_IMAGE, lvis=True)
    figures = dict(precision.figures)
    if fixed:
        other, _ = lvis_figures(truth, best.rows(), max_detections=PER_CLASS)
        ending = "_fixed_box" if masks else "_fixed"
        figures |= {f"{key}{ending}": value for key, value in other.items()}
    notes = [*truth["notes"]]
    if truth["images"] and not is_federated(truth):
        notes.append("no picture says which classes are absent, so a class counts only where it is; use detect")
    return Report(
        protocol=f"LVIS {'mask' if masks else 'box'} AP, text queries by class name, {PER_IMAGE} detections a picture"
        + (f"; fixed{' box' if masks else ''} AP, {PER_CLASS} a class" if fixed else "")
        + f", {said_suppression(detector.spec, nms_iou)}",
        annotations=Path(annotations).name,
        counts={"n_images": len(truth["images"]), "n_boxes": len(counted_boxes(truth))},
        figures=figures,
        intervals=precision.intervals,
        per_class=precision.per_class,
        notes=tuple(notes),
        broken=tuple(broken),
    )


def lvis_figures(
    truth: dict[str, Any], rows: Sequence[dict[str, Any]], *, max_detections: int = PER_IMAGE, by: Overlap = "bbox"
) -> tuple[dict[str, float | None], dict[str, float]]:
    """AP, AP50, APr, APc and APf of result rows, by LVIS's rules, and AP50 of each class by its name."""
    scored = scored_pairs(truth)
    rows = [row for row in rows if (row["image_id"], row["category_id"]) in scored]
    table = precision_table(truth, rows, max_detections=max_detections, lvis=True, by=by)[..., 0]
    figures: dict[str, float | None] = {"AP": mean_percent(table), "AP50": mean_percent(table[0])}
    for letter in FREQUENCIES:
        own = [i for i, c in enumerate(truth["categories"]) if c.get("frequency") == letter]
        figures[f"AP{letter}"] = mean_percent(table[:, :, own])
    return figures, per_class(truth, table[..., None])


def scored_pairs(truth: dict[str, Any]) -> set[tuple[Any, Any]]:
    """(image id, category id) that count: the class is annotated there, or known to be absent."""
    pairs = {(a["image_id"], a["category_id"]) for a in truth["annotations"]}
    return pairs | {(r["id"], category) for r in truth["images"] for category in r.get("neg_category_ids", ())}


class BestOfClass:
    """The 10,000 best answers of every class over the pictures that were asked so far."""

    def __init__(self, category_ids: Sequence[int], size: int = PER_CLASS):
        self._ids = list(category_ids)
        self._size = size
        # Per class (score, order of arrival, row), the worst first; the order decides between equal scores.
        self._heaps: list[list[tuple[float, int, dict[str, Any]]]] = [[] for _ in self._ids]
        self._arrived = 0

    def ask(
        self,
        detector: Detector,
        record: dict[str, Any],
        encoded: EncodedImage,
        queries: QueryEmbeddings,
        nms_iou: NmsIou,
    ) -> None:
        """Adds all answers of one picture that are good enough."""
        floors = [heap[0][0] if len(heap) == self._size else 0.0 for heap in self._heaps]
        for start in range(0, len(self._ids), CLASSES_AT_ONCE):
            part = slice(start, start + CLASSES_AT_ONCE)
            some = QueryEmbeddings(queries.query_embeds[part], queries.names[part], queries.routes[part])
            found = detector.detect(encoded, some, threshold=floors[part], nms_iou=nms_iou, rivals=0.0, top_k=10**7)
            labels = found.labels.tolist()
            for label, row in zip(labels, coco_rows(found, record, self._ids[part]), strict=True):
                self.add(start + label, row)

    def add(self, place: int, row: dict[str, Any]) -> None:
        """Adds one answer of the class at ``place``."""
        self._arrived += 1
        heap, item = self._heaps[place], (row["score"], -self._arrived, row)
        if len(heap) < self._size:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)

    def rows(self) -> list[dict[str, Any]]:
        """All of them, in order of arrival."""
        kept = [item for heap in self._heaps for item in heap]
        return [row for _, _, row in sorted(kept, key=lambda item: -item[1])]
