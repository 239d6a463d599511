"""Do scores mean what they say? Detection calibration error (Küppers et al. 2020, arXiv:2004.13546) and its cure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from owl_swin.config import CalibrationConfig
from owl_swin.data.truth import counted_boxes, one_category_a_name, read_truth
from owl_swin.detector import Detector
from owl_swin.errors import DataError
from owl_swin.evaluation.answers import KEPT, Answers, collect_answers
from owl_swin.evaluation.class_queries import make_class_queries
from owl_swin.evaluation.exemplar_bank import without_exemplar
from owl_swin.evaluation.precision import average_precision, check_can_measure, interval, resampled_weights
from owl_swin.evaluation.report import Interval, Report
from owl_swin.evaluation.sets import Progress
from owl_swin.postprocess import NmsIou, said_suppression

BINS = 10
# Side in pixels of one panel of the reliability picture.
PANEL = 320


@dataclass(frozen=True, slots=True)
class Platt:
    """score → sigmoid(logit(score) · scale + bias) (Platt 1999); ``scale`` is one over the temperature."""

    scale: float = 1.0
    bias: float = 0.0

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(to_logits(scores) * self.scale + self.bias)))


def evaluate_calibration(
    detector: Detector,
    annotations: str | Path,
    images: str | Path,
    *,
    classes: Sequence[str] | None = None,
    fit: Sequence[str | Path] = (),
    fit_images: Sequence[str | Path] = (),
    route: str = "text",
    nms_iou: NmsIou = "model",
    draws: int = 200,
    progress: Progress | None = None,
) -> tuple[Report, Platt]:
    """The calibration error of a model's answers; with ``fit``, sets that are not this one, before and after the cure.

    Returns the figures and the fitted map. d_ece, in percent: the mean over answers of |share of right answers − mean
    score| in ten bins of the score; an answer is right as COCO counts it at IoU 0.50. The fit is on the answers of all
    sets of ``fit`` together: each set counts as much, however large it is, and is asked for all of its own classes,
    whatever ``classes`` are judged; ``fit_images`` are the folders of their pictures, none or one for all as well as
    one each. reliability lists each bin's mean score, share of right answers and number of answers. Scores are those
    of answers, after rivals, but the cure is written into the logits before them: a model with rivals that was cured
    is judged by a call without ``fit``. With ``fit`` these are after the cure, d_ece_before and reliability_before are
    the model's own, and temperature and bias are the cure.
    """
    check_can_measure()
    truth = one_category_a_name(read_truth(annotations, images, classes))
    places = sets_to_fit(annotations, images, fit, fit_images)
    fit_truths = [one_category_a_name(read_truth(path, folder)) for path, folder in places]

    def answers_of(one: dict[str, Any]) -> Answers:
        queries_for = make_class_queries(detector, one, route=route)
        return collect_answers(detector, one, queries_for, nms_iou=nms_iou, progress=progress)

    answers, parts = answers_of(truth), [answers_of(one) for one in fit_truths]
    broken = [sentence for part in (answers, *parts) for sentence in part.broken]
    cure = Platt()
    figures: dict[str, float | None] = {}
    intervals: dict[str, Interval | None] = {}
    fitted: dict[str, Any] = {}
    if parts:
        where = ", ".join(map(str, fit))
        scores, right = (np.concatenate([getattr(part, key) for part in parts]) for key in ("score", "right"))
        sizes = [len(part.score) for part in parts]
        cure = fit_platt(scores, right, np.repeat(even_weights(sizes), sizes), where=where)
        before = reliability(answers.score, answers.right)
        figures = {"temperature": round(1 / cure.scale, 4), "bias": round(cure.bias, 4), "d_ece_before": d_ece(before)}
        intervals = {"d_ece_before": _interval(answers, answers.score, draws)}
        fitted = {"fit": ", ".join(Path(path).name for path in fit), "reliability_before": reliability_rows(before)}
    scores = cure(answers.score) if fit else answers.score
    after = reliability(scores, answers.right)
    judged, notes = without_exemplar(truth, answers.asked) if route == "exemplar" else (truth, [])
    precision = average_precision(judged, answers.rows, draws=draws)
    report = Report(
        protocol=f"calibration of the {KEPT} best answers of a picture, asked by {route}, right at IoU 0.50, "
        f"{BINS} bins, {said_suppression(detector.spec, nms_iou)}",
        annotations=Path(annotations).name,
        counts={
            "n_images": len(truth["images"]),
            "n_boxes": len(counted_boxes(truth)),
            "n_answers": len(scores),
        },
        figures=precision.figures | {"d_ece": d_ece(after)} | figures,
        intervals=precision.intervals | {"d_ece": _interval(answers, scores, draws)} | intervals,
        per_class=precision.per_class,
        details=fitted | {"reliability": reliability_rows(after)},
        notes=(*truth["notes"], *notes, *(note for one in fit_truths for note in one["notes"])),
        broken=tuple(broken),
    )
    return report, cure


def calibrated(config: CalibrationConfig, cure: Platt, route: str) -> CalibrationConfig:
    """The calibration of a model whose scores of one route, or of that of maps, "map_text", are mapped
    once more."""
    scale, bias = getattr(config, f"{route}_scale"), getattr(config, f"{route}_bias")
    values = {f"{route}_scale": scale * cure.scale, f"{route}_bias": bias * cure.scale + cure.bias}
    return replace(config, **values)


def even_weights(sizes: Sequence[int]) -> list[float]:
    """What one answer of each set weighs, that sets of so many answers count alike, and their weights add up to the
    number of answers."""
    known = sum(size > 0 for size in sizes)
    return [sum(sizes) / (known * size) if size else 0.0 for size in sizes]


def fit_platt(
    scores: np.ndarray, right: np.ndarray, weights: np.ndarray | None = None, *, where: str = "the set"
) -> Platt:
    """The map of scores [N] that makes right and wrong answers (``right [N]``) likeliest, by Newton's method.

    ``weights [N]``: how many answers each one stands for, by default 1. Targets are drawn in a little from 0 and 1, as
    Platt has it. A set without right or without wrong answers, or whose right answers score no higher than the wrong
    ones, raises DataError.
    """
    x = to_logits(scores)
    weights = np.ones(len(scores)) if weights is None else weights
    n_right, n_wrong = weights[right].sum(), weights[~right].sum()
    if not n_right or not n_wrong:
        share = f"{n_right:.0f} of {n_right + n_wrong:.0f}"
        raise DataError(f"{where}: {share} answers are right; calibration needs right and wrong ones")
    target = np.where(right, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    inputs = np.stack([x, np.ones_like(x)], 1)  # [N, 2]
    theta = np.array([1.0, 0.0])
    loss = _loss(inputs @ theta, target, weights)
    for _ in range(100):
        chance = 1 / (1 + np.exp(-(inputs @ theta)))
        gradient = inputs.T @ (weights * (chance - target))
        curvature = (inputs * (weights * chance * (1 - chance))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        rate = 1.0
        while (new := _loss(inputs @ (theta - rate * step), target, weights)) > loss and rate > 1e-6:
            rate /= 2
        theta, gain, loss = theta - rate * step, loss - new, new
        if gain < 1e-9 * abs(loss):
            break
    if theta[0] <= 0:
        raise DataError(f"{where}: right answers score no higher than wrong ones; these scores cannot be calibrated")
    return Platt(float(theta[0]), float(theta[1]))


def reliability(scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Sums [bins, 3] of scores, right answers and answers, over bins of the score of equal width."""
    place = np.minimum((scores * bins).astype(int), bins - 1)
    return np.stack(
        [np.bincount(place, weights, minlength=bins) for weights in (scores, right, np.ones(len(scores)))], 1
    )


def d_ece(table: np.ndarray) -> float | None:
    """Detection expected calibration error in percent of the sums [bins, 3]; None without answers."""
    total = table[:, 2].sum()
    return round(100 * float(np.abs(table[:, 0] - table[:, 1]).sum() / total), 2) if total else None


def draw_reliability(panels: dict[str, Sequence[dict[str, float]]]) -> Image.Image:
    """A picture with a panel for each title: bars are shares of right answers, the line is perfect calibration."""
    margin = 40
    picture = Image.new("RGB", (len(panels) * (PANEL + margin) + margin, PANEL + 2 * margin), "white")
    draw = ImageDraw.Draw(picture)
    for number, (title, rows) in enumerate(panels.items()):
        left, top = margin + number * (PANEL + margin), margin
        bottom, width = top + PANEL, PANEL / BINS
        for row in rows:
            x = left + int(row["from"] * BINS + 0.5) * width
            draw.rectangle((x + 1, bottom - row["right"] * PANEL, x + width - 1, bottom), fill="#4a7ab5")
            draw.text((x + 2, top + 2), _short(int(row["n"])), fill="#777777")
        draw.rectangle((left, top, left + PANEL, bottom), outline="black")
        draw.line((left, bottom, left + PANEL, top), fill="#c03030", width=2)
        draw.text((left, margin // 3), f"{title}: share of right answers against score", fill="black")
        for tick in (0, 0.5, 1):
            draw.text((left + tick * PANEL - 8, bottom + 4), f"{tick:g}", fill="black")
            draw.text((left - 22, bottom - tick * PANEL - 6), f"{tick:g}", fill="black")
    return picture


def to_logits(scores: np.ndarray) -> np.ndarray:
    """Logits of scores; 0 and 1, which float32 rounds to, stay finite."""
    inside = np.clip(scores, 1e-9, 1 - 1e-7)
    return np.log(inside / (1 - inside))


def sets_to_fit(
    annotations: str | Path, images: str | Path, fit: Sequence[str | Path], fit_images: Sequence[str | Path]
) -> list[tuple[str | Path, str | Path]]:
    """The sets to fit on, each with the folder of its pictures; none of them is the set that is judged on."""
    folders = [*fit_images] or [images]
    if fit and len(folders) not in (1, len(fit)):
        raise DataError(f"{len(fit)} sets to fit on have {len(folders)} folders of pictures; name one, or one each")
    for path in fit:
        if Path(path).resolve() == Path(annotations).resolve():
            raise DataError(f"{path}: is the file that is judged on; fit on another one")
    return list(zip(fit, folders * (len(fit) if len(folders) == 1 else 1), strict=True)) if fit else []


def _interval(answers: Answers, scores: np.ndarray, draws: int) -> Interval | None:
    """95 % interval of d_ece over pictures."""
    tables = np.zeros((len(answers.best), BINS, 3))
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    for column, values in enumerate((scores, answers.right, np.ones(len(scores)))):
        np.add.at(tables[:, :, column], (answers.image, place), values)
    resampled = [d_ece(np.tensordot(weights, tables, 1)) for weights in resampled_weights(len(tables), draws)]
    known = np.array([value for value in resampled if value is not None])
    return interval(known, d_ece(reliability(scores, answers.right)))


def reliability_rows(table: np.ndarray) -> list[dict[str, float]]:
    """The bins that have answers, of sums [bins, 3]: where each begins, its mean score, share of right ones, number."""
    return [
        {
            "from": place / len(table),
            "score": round(float(score / n), 4),
            "right": round(float(right / n), 4),
            "n": int(n),
        }
        for place, (score, right, n) in enumerate(table)
        if n
    ]


def _loss(logits: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    return float(weights @ (np.logaddexp(0, logits) - target * logits))


def _short(n: int) -> str:
    return str(n) if n < 1000 else f"{n / 1000:.0f}k"
