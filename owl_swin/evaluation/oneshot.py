"""One-shot detection (Hsieh et al. 2019, arXiv:1911.12529): find what a box of another picture shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.truth import class_ids, counted_boxes, one_category_a_name, read_truth
from owl_swin.detector import Detector
from owl_swin.encoder import check_has_masks
from owl_swin.errors import DataError
from owl_swin.evaluation.class_queries import encode_classes
from owl_swin.evaluation.detection import MAX_DETECTIONS
from owl_swin.evaluation.exemplar_bank import make_bank, without_exemplar
from owl_swin.evaluation.mask_precision import with_edges_and_boxes
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


def evaluate_oneshot(
    detector: Detector,
    annotations: str | Path,
    images: str | Path,
    *,
    classes: Sequence[str] | None = None,
    exemplars: str | Path | None = None,
    exemplar_images: str | Path | None = None,
    shots: int = 1,
    draws: int = 5,
    seen: Sequence[str] = (),
    unseen: Sequence[str] = (),
    absent: bool = False,
    with_text: bool = False,
    weight: float = 0.5,
    negatives: int = 0,
    masks: bool = False,
    nms_iou: NmsIou = "model",
    resamples: int = 200,
    progress: Progress | None = None,
) -> Report:
    """Each picture is asked for each class that is in it by ``shots`` exemplars of other pictures, in ``draws`` draws.

    Figures are the means over the draws of AP, AP50, AP50 of each class, AP50_seen and AP50_unseen (bootstrap over
    pictures, the same for all draws); ``details`` has each draw's AP50 as draw_AP50, and the count unasked says how
    often a picture could not be asked for a class. A class that no other picture shows has no figure, and a note.

    ``exemplars`` is a second COCO file whose boxes are the exemplars (pictures in ``exemplar_images``, by default
    ``images``). With ``absent`` every picture is asked for every class: finding nothing is then part of the task.
    ``with_text`` gives the class's name beside its exemplars, which count ``weight``; ``negatives`` is how many other
    classes, by one exemplar each, a query has as negatives. With ``masks`` the figures are of masks, AP_boundary,
    AP50_boundary, AP_box and AP50_box stand beside them, and a set without masks raises DataError.
    """
    check_can_measure()
    if masks:
        check_has_masks(detector.spec)
    if min(shots, draws) < 1:
        raise DataError(f"shots and draws must be at least 1, got {shots} and {draws}")
    if negatives < 0 or not 0 <= weight <= 1:
        raise DataError(f"negatives must be at least 0 and weight lie in [0, 1], got {negatives} and {weight}")
    truth = one_category_a_name(read_truth(annotations, images, classes, masks=masks))
    groups = {"seen": class_ids(truth, seen, annotations), "unseen": class_ids(truth, unseen, annotations)}
    bank = make_bank(detector, truth, exemplars, exemplar_images if exemplar_images is not None else images)
    by_name = {c["name"]: c["id"] for c in truth["categories"]}
    names_of = {c["id"]: c["name"] for c in truth["categories"]}
    present: dict[Any, set[str]] = {record["id"]: set() for record in truth["images"]}
    for a in counted_boxes(truth):
        present[a["image_id"]].add(names_of[a["category_id"]])
    texts = None
    named = encode_classes(detector, truth) if with_text else None
    if named is not None:
        texts = dict(zip(named.names, named.query_embeds, strict=True))
    known: set[str] = set()
    rows: list[list[dict[str, Any]]] = [[] for _ in range(draws)]
    broken: list[str] = []
    unasked = 0
    for record, encoded in encode_set(detector, truth, broken, progress, masks=masks):
        names = [name for name in by_name if absent or name in present[record["id"]]]
        for draw in range(draws if names else 0):
            queries = bank.queries(
                names, record, shots=shots, draw=draw, texts=texts, weight=weight, negatives=negatives
            )
            unasked += len(names) - (len(queries) if queries else 0)
            if queries:
                known |= set(queries.names)
                most = MAX_DETECTIONS * len(queries)
                found = detector.detect(encoded, queries, threshold=0.0, nms_iou=nms_iou, top_k=most, masks=masks)
                rows[draw] += coco_rows(found, record, [by_name[name] for name in queries.names])
    asked = "all classes" if absent else "the classes that are in it"
    beside = f" with its name (exemplars count {weight:g})" if with_text else ""
    beside += f" and {negatives} other class(es) as negatives" if negatives else ""
    judged, notes = without_exemplar(truth, known)
    of_draws: list[float | None] = []

    def measure(by: Overlap) -> Precision:
        tables, drawn = _draws(judged, rows, resamples, by)
        of_draws[:] = of_draws or [mean_percent(table[0]) for table in tables]
        figures, values = {"AP": mean_percent(tables), "AP50": mean_percent(tables[:, 0])}, {"AP50": drawn}
        for group, ids in groups.items():
            columns = [i for i, c in enumerate(judged["categories"]) if c["id"] in ids]
            if ids:
                figures[f"AP50_{group}"] = mean_percent(tables[:, 0][..., columns])
                values[f"AP50_{group}"] = drawn[:, columns]
        intervals = {key: interval(mean_over_classes(value), figures[key]) for key, value in values.items()}
        return Precision(figures, intervals, per_class(judged, tables.mean(0)[..., None]))

    precision = with_edges_and_boxes(measure, masks=masks)
    return Report(
        protocol=f"one-shot COCO {'mask' if masks else 'box'} AP, each picture asked for {asked} by "
        f"{shots} exemplar(s) of {'another set' if exemplars else 'other pictures'}{beside}, mean of {draws} draws, "
        f"{MAX_DETECTIONS} detections a picture and class, {said_suppression(detector.spec, nms_iou)}",
        annotations=Path(annotations).name,
        counts={
            "n_images": len(truth["images"]),
            "n_boxes": len(counted_boxes(truth)),
            "shots": shots,
            "draws": draws,
            "unasked": unasked // draws,
        },
        figures=precision.figures,
        intervals=precision.intervals,
        per_class=precision.per_class,
        details={"draw_AP50": of_draws},
        notes=(*truth["notes"], *notes),
        broken=tuple(sorted({*broken, *bank.broken})),
    )


def _draws(
    truth: dict[str, Any], rows: list[list[dict[str, Any]]], resamples: int, by: Overlap
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [draws, 10 IoUs, 101 recalls, C], and the draws' mean AP50 [resamples, C] of pictures drawn again."""
    ids = {c["id"] for c in truth["categories"]}
    rows = [[row for row in own if row["category_id"] in ids] for own in rows]
    tables = [precision_table(truth, own, max_detections=MAX_DETECTIONS, by=by)[..., 0] for own in rows]
    return np.stack(tables), np.stack([resampled_ap50(truth, own, draws=resamples, by=by) for own in rows]).mean(0)
