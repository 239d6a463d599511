"""Does the model say no? Best scores of classes that are in a picture against those of classes that are not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.truth import counted_boxes, one_category_a_name, read_truth
from owl_swin.detector import Detector
from owl_swin.errors import DataError
from owl_swin.evaluation.answers import Answers, collect_answers
from owl_swin.evaluation.class_queries import make_class_queries
from owl_swin.evaluation.exemplar_bank import without_exemplar
from owl_swin.evaluation.precision import average_precision, check_can_measure, interval, resampled_weights
from owl_swin.evaluation.report import Interval, Report
from owl_swin.evaluation.sets import Progress
from owl_swin.postprocess import NmsIou, said_suppression


def evaluate_absence(
    detector: Detector,
    annotations: str | Path,
    images: str | Path,
    *,
    classes: Sequence[str] | None = None,
    recall: float = 0.5,
    route: str = "text",
    shots: int = 1,
    exemplars: str | Path | None = None,
    exemplar_images: str | Path | None = None,
    nms_iou: NmsIou = "model",
    draws: int = 200,
    progress: Progress | None = None,
) -> Report:
    """Every picture is asked for every class, by name or by exemplar, and a class's answer is its best score.

    Figures, besides the average precision of the same answers:

    - auroc: chance in percent that a class scores higher in a picture that has it than in one that has not (50 is
      guessing), mean over the classes; per_class_auroc in ``details``; auroc_pooled: over all (picture, class) pairs at
      once, so that scores of different classes are compared with one another;
    - false_alarms: percent of the pictures without a class that reach the score which the share ``recall`` of the
      pictures with it reach, mean over the classes;
    - fppi: boxes answered in a picture without the class at the score from which on the share ``recall`` of the class's
      boxes are found (IoU 0.50). It is the number that half of the classes keep to, of all that some pictures have and
      others have not, whatever the model finds; fppi_classes are these, fppi_reached those that get so far.

    A picture whose only box of a class is a crowd has the class. A class that all pictures have, or none, has no AUROC.
    Why a figure is missing is said in ``notes``.
    """
    check_can_measure()
    if not 0 < recall <= 1:
        raise DataError(f"recall must lie in (0, 1], got {recall}")
    truth = one_category_a_name(read_truth(annotations, images, classes))
    folder = exemplar_images if exemplar_images is not None else images
    queries_for = make_class_queries(
        detector, truth, route=route, shots=shots, exemplars=exemplars, exemplar_images=folder
    )
    answers = collect_answers(detector, truth, queries_for, nms_iou=nms_iou, progress=progress)
    judged, notes = without_exemplar(truth, answers.asked) if route == "exemplar" else (truth, [])
    precision = average_precision(judged, answers.rows, draws=draws)
    figures, intervals, counts, details = absence_figures(answers, recall=recall, draws=draws)
    return Report(
        protocol=f"absence: best score of a class asked by {route}, pictures with it against pictures without it, "
        f"at recall {recall:g}, {said_suppression(detector.spec, nms_iou)}",
        annotations=Path(annotations).name,
        counts={"n_images": len(truth["images"]), "n_boxes": len(counted_boxes(truth))} | counts,
        figures=precision.figures | figures,
        intervals=precision.intervals | intervals,
        per_class=precision.per_class,
        details={"recall": recall, **details},
        notes=(*truth["notes"], *notes, *missing_figures(answers, figures, recall)),
        broken=tuple(answers.broken),
    )


def absence_figures(
    answers: Answers, *, recall: float = 0.5, draws: int = 200
) -> tuple[dict[str, float | None], dict[str, Interval | None], dict[str, int], dict[str, Any]]:
    """Figures, intervals, counts and details of evaluate_absence, from the answers."""
    best, present = answers.best, answers.present
    once = np.ones(len(best))
    columns = range(len(answers.names))
    aurocs = [auroc(best[:, i], present[:, i], once) for i in columns]
    per_image = [false_positives_per_image(answers, i, recall) for i in columns]
    judged = sorted(value for value in per_image if value is not None)
    middle = judged[(len(judged) - 1) // 2] if judged else np.inf
    weights = resampled_weights(len(best), draws)
    drawn = np.array([_mean([auroc(best[:, i], present[:, i], w) for i in columns]) for w in weights])
    pooled = np.array([auroc(best.ravel(), present.ravel(), w.repeat(len(columns))) for w in weights])
    figures = {
        "auroc": _percent(_mean(aurocs)),
        "auroc_pooled": _percent(auroc(best.ravel(), present.ravel(), np.ones(best.size))),
        "false_alarms": _percent(_mean([false_alarms(best[:, i], present[:, i], recall) for i in columns])),
        "fppi": None if np.isinf(middle) else round(middle, 3),
    }
    intervals = {
        "auroc": interval(100 * drawn, figures["auroc"]),
        "auroc_pooled": interval(100 * pooled, figures["auroc_pooled"]),
    }
    counts = {"fppi_classes": len(judged), "fppi_reached": sum(value < np.inf for value in judged)}
    named = zip(answers.names, aurocs, strict=True)
    return figures, intervals, counts, {"per_class_auroc": {n: _percent(v) for n, v in named if not np.isnan(v)}}


def missing_figures(answers: Answers, figures: dict[str, float | None], recall: float) -> list[str]:
    """A sentence for each figure that the answers cannot give, with the reason."""
    notes = []
    if figures["auroc"] is None:
        n_images, names = len(answers.best), answers.names
        everywhere = [name for name, column in zip(names, answers.present.T, strict=True) if column.all()]
        why = f"none of {len(names)} classes is in any of {n_images} pictures"
        if not n_images or not names:
            why = "no picture was asked for a class"
        elif everywhere:
            why = f"all {n_images} pictures have {everywhere[0]!r}"
        notes.append(f"no AUROC and no false positives: {why}; both need pictures with a class and pictures without it")
    elif figures["fppi"] is None:
        notes.append(f"no FPPI: most classes never reach recall {recall:g}; try a smaller --recall")
    return notes


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """Chance that a positive scores higher than a negative, a tie counting half; each counted ``weights`` times.

    NaN scores are left out; NaN when positives or negatives are missing.
    """
    known = ~np.isnan(scores) & (weights > 0)
    scores, positive, weights = scores[known], positive[known], weights[known]
    _, group = np.unique(scores, return_inverse=True)
    if not len(group):
        return float("nan")
    ups = np.bincount(group, weights * positive)
    downs = np.bincount(group, weights * ~positive)
    if not ups.sum() or not downs.sum():
        return float("nan")
    below = np.cumsum(downs) - downs
    return float((ups * (below + downs / 2)).sum() / (ups.sum() * downs.sum()))


def false_alarms(scores: np.ndarray, present: np.ndarray, recall: float) -> float:
    """Share of the pictures without the class that reach the score which ``recall`` of those with it reach."""
    known = ~np.isnan(scores)
    with_it, without = np.sort(scores[known & present])[::-1], scores[known & ~present]
    if not len(with_it) or not len(without):
        return float("nan")
    return float((without >= with_it[_needed(recall, len(with_it)) - 1]).mean())


def false_positives_per_image(answers: Answers, label: int, recall: float) -> float | None:
    """Answers a picture without the class at the score where ``recall`` of its boxes are found; infinite if they never
    are. None for a class that has no boxes, or is in all pictures."""
    mine = answers.label == label
    found = np.sort(answers.score[mine & answers.right])[::-1]
    absent = ~answers.present[:, label] & ~np.isnan(answers.best[:, label])
    n_boxes = int(answers.n_boxes[label])
    if not n_boxes or not absent.any():
        return None
    if len(found) < _needed(recall, n_boxes):
        return float("inf")
    threshold = found[_needed(recall, n_boxes) - 1]
    return float((mine & absent[answers.image] & (answers.score >= threshold)).sum() / absent.sum())


def _needed(recall: float, n: int) -> int:
    """How many of ``n`` make up the share ``recall``."""
    return max(1, int(np.ceil(round(recall * n, 9))))


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else round(100 * value, 2)
