"""Object detection in the wild (ODinW, arXiv:2204.08790): many small sets, a row each, and the mean of the rows."""

from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.truth import counted_boxes, read_truth
from owl_swin.detector import Detector
from owl_swin.encoder import check_has_masks
from owl_swin.errors import DataError
from owl_swin.evaluation.detection import MAX_DETECTIONS, ask_by_name, coco_precision
from owl_swin.evaluation.mask_precision import BESIDE, with_edges_and_boxes
from owl_swin.evaluation.precision import (
    Overlap,
    Precision,
    check_can_measure,
    interval,
    mean_over_classes,
    resampled_ap50,
)
from owl_swin.evaluation.report import Report
from owl_swin.evaluation.sets import Progress
from owl_swin.postprocess import NmsIou, said_suppression

# Where sets keep their annotations, the best first; pictures lie beside the file or in a folder "images" there.
PLACES = (
    "{split}/annotations_without_background.json",
    "{split}/_annotations.coco.json",
    "{split}/annotations.json",
    "{split}.json",
    "_annotations.coco.json",
    "annotations.json",
)
# Folders that hold a part of a set.
PARTS = {"train", "valid", "val", "test"}


def evaluate_odinw(
    detector: Detector,
    folder: str | Path,
    *,
    split: str = "test",
    nms_iou: NmsIou = "model",
    draws: int = 200,
    masks: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Detection by class name on every COCO set under ``folder``.

    Figures are the means of the sets' AP and AP50 (pictures drawn again within each set); a set without boxes has no
    figure and does not count. ``details`` has sets, a row each (set, n_images, n_boxes, AP, AP50, ci95, per_class,
    broken), and skipped: files that are no detection sets. With ``masks`` figures are of masks, as in
    ``evaluate_detection``, and a set without masks is skipped.
    """
    check_can_measure()
    if masks:
        check_has_masks(detector.spec)
    places, skipped = find_sets(Path(folder), split)
    sets = []
    for name, path in places:
        beside = path.parent / "images"
        images = beside if beside.is_dir() else path.parent
        try:
            sets.append((name, read_truth(path, images, masks=masks)))
        except DataError as error:
            skipped.append(str(error))
    if not sets:
        raise DataError(skipped[0])
    rows: list[dict[str, Any]] = []
    answered: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    broken: list[str] = []
    for name, truth in sets:
        own: list[str] = []
        answers = ask_by_name(detector, truth, own, nms_iou=nms_iou, masks=masks, progress=progress)
        precision = coco_precision(truth, answers, masks=masks, draws=draws)
        counts = {"n_images": len(truth["images"]), "n_boxes": len(counted_boxes(truth))}
        figures = {**precision.figures, "ci95": precision.intervals["AP50"], "per_class": precision.per_class}
        rows.append({"set": name, **counts, **figures, "broken": own})
        answered.append((truth, answers))
        broken += own

    def mean(by: Overlap) -> Precision:
        ending = "" if by == "segm" or not masks else BESIDE[by]
        means = {key: _mean_of(rows, f"{key}{ending}") for key in ("AP", "AP50")}
        drawn = _drawn_means(answered, draws, by)
        return Precision(means, {"AP50": interval(drawn, means["AP50"])}, {})

    means = with_edges_and_boxes(mean, masks=masks)
    overlap = {"mask_iou": _mean_of(rows, "mask_iou")} if masks else {}
    n_sets = sum(row["AP50"] is not None for row in rows)
    return Report(
        protocol=f"ODinW: {'mask' if masks else 'box'} AP, mean over {n_sets} sets, text queries by class name, "
        f"{MAX_DETECTIONS} detections a picture, {said_suppression(detector.spec, nms_iou)}",
        annotations=Path(folder).name,
        counts={key: sum(row[key] for row in rows) for key in ("n_images", "n_boxes")},
        figures=means.figures | overlap,
        intervals=means.intervals,
        per_class={f"{row['set']}: {name}": value for row in rows for name, value in row["per_class"].items()},
        details={"sets": rows, "skipped": skipped},
        notes=tuple(note for _, truth in sets for note in truth["notes"]),
        broken=(*skipped, *broken),
    )


def find_sets(folder: Path, split: str) -> tuple[list[tuple[str, Path]], list[str]]:
    """(name, annotation file) of every set under ``folder``, by name, and what was skipped; a folder that is a set
    holds no others. A part of another name than ``split`` is no set: models may have learned from it."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; eval odinw reads a folder of COCO sets")
    found: list[tuple[str, Path]] = []
    skipped: list[str] = []
    others = PARTS - ({"val", "valid"} if split in ("val", "valid") else {split})
    waiting, seen = [folder], set()
    while waiting:
        here = waiting.pop()
        if here.resolve() in seen:  # a link that leads back
            continue
        seen.add(here.resolve())
        places = [here / place.format(split=split) for place in PLACES]
        annotations = next((place for place in places if place.is_file()), None)
        if annotations is not None and annotations.parent == here and here != folder and here.name in others:
            skipped.append(f"{here.parent}: has {here.name!r} and no {split!r}")
        elif annotations is not None:
            found.append((here.name if here == folder else here.relative_to(folder).as_posix(), annotations))
        else:
            waiting += [child for child in here.iterdir() if child.is_dir()]
    if not found:
        looked = f"looked for {', '.join(p.format(split=split) for p in PLACES)}"
        raise DataError(f"{folder}: holds no set; {'; '.join([looked, *sorted(skipped)[:1]])}")
    return sorted(found), sorted(skipped)


def _drawn_means(answered: list[tuple[dict[str, Any], list[dict[str, Any]]]], draws: int, by: Overlap) -> np.ndarray:
    """The mean AP50 of the sets [draws] when the pictures of each are drawn again; () where no set has boxes."""
    resampled: list[np.ndarray] = []
    for truth, answers in answered:
        values = mean_over_classes(resampled_ap50(truth, answers, draws=draws, by=by))
        if len(values):
            # Each set is drawn on its own: sets of one size must not go up and down together.
            resampled.append(np.random.default_rng(len(resampled)).choice(values, draws))
    return np.mean(resampled, 0) if resampled else np.empty(0)


def _mean_of(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return round(float(np.mean(values)), 2) if values else None
