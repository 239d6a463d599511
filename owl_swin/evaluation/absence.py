"""Does the model say no? Best scores of classes that are in a picture against those of classes that are not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.detector import Detector
from owl_swin.errors import DataError
from owl_swin.evaluation.answers import Answers, collect_answers
from owl_swin.evaluation.asking import make_ask
from owl_swin.evaluation.precision import average_precision, interval, resampled_weights
from owl_swin.evaluation.sets import Progress, counted_boxes, read_boxes, without_background


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
    nms_iou: float | None = 0.5,
    draws: int = 200,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every picture is asked for every class, by name or by exemplar, and a class's answer is its best score.

    Returns, besides the average precision of the same answers:

    - auroc: chance in percent that a class scores higher in a picture that has it than in one that has not (50 is
      guessing), mean over the classes; per_class_auroc; auroc_pooled: over all (picture, class) pairs at once, so that
      scores of different classes are compared with one another; ci95_auroc and ci95_auroc_pooled;
    - false_alarms: percent of the pictures without a class that reach the score which the share ``recall`` of the
      pictures with it reach, mean over the classes;
    - fppi: boxes answered in a picture without the class at the score from which on the share ``recall`` of the class's
      boxes are found (IoU 0.50), mean over the classes that get so far; fppi_classes is how many do.

    A picture whose only box of a class is a crowd has the class. A class that all pictures have, or none, has no AUROC.
    """
    if not 0 < recall <= 1:
        raise DataError(f"recall must lie in (0, 1], got {recall}")
    truth = without_background(read_boxes(annotations, classes))
    ask = make_ask(
        detector, truth, images, route=route, shots=shots, exemplars=exemplars, exemplar_images=exemplar_images
    )
    answers = collect_answers(detector, truth, images, ask, nms_iou=nms_iou, progress=progress)
    return {
        "protocol": f"absence: best score of a class asked by {route}, pictures with it against pictures without it, "
        f"at recall {recall:g}, NMS {nms_iou}",
        "annotations": Path(annotations).name,
        "n_images": len(truth["images"]),
        "n_boxes": len(counted_boxes(truth)),
        **average_precision(truth, answers.rows, draws=draws),
        **absence_figures(answers, recall=recall, draws=draws),
        "broken": answers.broken,
    }


def absence_figures(answers: Answers, *, recall: float = 0.5, draws: int = 200) -> dict[str, Any]:
    """The figures of evaluate_absence, from the answers."""
    best, present = answers.best, answers.present
    once = np.ones(len(best))
    columns = range(len(answers.names))
    aurocs = [auroc(best[:, i], present[:, i], once) for i in columns]
    per_image = np.array([false_positives_per_image(answers, i, recall) for i in columns], dtype=float)
    weights = resampled_weights(len(best), draws)
    resampled = np.array([_mean([auroc(best[:, i], present[:, i], w) for i in columns]) for w in weights])
    pooled = np.array([auroc(best.ravel(), present.ravel(), w.repeat(len(columns))) for w in weights])
    return {
        "auroc": _percent(_mean(aurocs)),
        "ci95_auroc": interval(100 * resampled),
        "auroc_pooled": _percent(auroc(best.ravel(), present.ravel(), np.ones(best.size))),
        "ci95_auroc_pooled": interval(100 * pooled),
        "per_class_auroc": {
            name: _percent(value) for name, value in zip(answers.names, aurocs, strict=True) if not np.isnan(value)
        },
        "recall": recall,
        "false_alarms": _percent(_mean([false_alarms(best[:, i], present[:, i], recall) for i in columns])),
        "fppi": None if np.isnan(_mean(per_image)) else round(_mean(per_image), 3),
        "fppi_classes": int((~np.isnan(per_image)).sum()),
    }


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


def false_positives_per_image(answers: Answers, label: int, recall: float) -> float:
    """Answers a picture without the class at the score where ``recall`` of its boxes are found; NaN if never."""
    mine = answers.label == label
    found = np.sort(answers.score[mine & answers.right])[::-1]
    absent = ~answers.present[:, label] & ~np.isnan(answers.best[:, label])
    n_boxes = int(answers.n_boxes[label])
    if not n_boxes or not absent.any() or len(found) < _needed(recall, n_boxes):
        return float("nan")
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
