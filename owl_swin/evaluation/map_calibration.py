"""Do the scores of maps mean what they say? Of pixels with a score of 0.7, 70 % should be named right."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.label_maps import IGNORED, LabelMaps, read_label_maps
from owl_swin.detector import Detector
from owl_swin.encoder import check_has_masks
from owl_swin.errors import DataError
from owl_swin.evaluation.calibration import (
    BINS,
    Platt,
    calibrated,
    d_ece,
    even_weights,
    fit_platt,
    reliability_rows,
    sets_to_fit,
    to_logits,
)
from owl_swin.evaluation.confusion import Confusion
from owl_swin.evaluation.exemplar_bank import ExemplarBank, areas_as_boxes
from owl_swin.evaluation.open_vocabulary import known_means
from owl_swin.evaluation.precision import interval, resampled_weights
from owl_swin.evaluation.report import Interval, Report
from owl_swin.evaluation.semantic import compare, encode_names
from owl_swin.evaluation.sets import Progress
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.semantic_map import NOTHING
from owl_swin.types import QueryEmbeddings

# The place of a picture → what it is asked for; None: nothing.
QueriesOfPicture = Callable[[int], QueryEmbeddings | None]

# Pixels are counted by the logits of their scores, in steps so small that no figure sees them, so that memory does not
# grow with pictures.
STEPS = np.linspace(-20, 20, 401)
SCORES = 1 / (1 + np.exp(-(STEPS[:-1] + STEPS[1:]) / 2))


@dataclass(frozen=True, slots=True)
class PixelAnswers:
    """Pixels of pictures by the score of the name that fits best: ``table [pictures, steps, 2]``, those that are right
    and all, and ``confusion``, which names they are."""

    table: np.ndarray
    confusion: Confusion
    broken: list[str]

    def reliability(self, times: np.ndarray | None = None) -> np.ndarray:
        """Sums [bins, 3] of scores, right pixels and pixels, when each picture counts ``times`` [pictures]."""
        right, n = np.tensordot(np.ones(len(self.table)) if times is None else times, self.table, 1).T
        place = np.minimum((SCORES * BINS).astype(int), BINS - 1)
        return np.stack([np.bincount(place, part, minlength=BINS) for part in (SCORES * n, right, n)], 1)

    def d_ece(self, draws: int) -> tuple[float | None, Interval | None]:
        """The calibration error in percent, and its interval over pictures."""
        figure = d_ece(self.reliability())
        drawn = [d_ece(self.reliability(times)) for times in resampled_weights(len(self.table), draws)]
        return figure, interval(np.array([value for value in drawn if value is not None]), figure)


def queries_by_name(detector: Detector, maps: LabelMaps) -> QueriesOfPicture:
    """All names of the set, of every picture."""
    queries = encode_names(detector, maps)
    return lambda _: queries


def queries_by_exemplar(detector: Detector, maps: LabelMaps, broken: list[str]) -> QueriesOfPicture:
    """All classes of the set that another picture shows, each by one exemplar: the box around its largest area there.
    Pictures of these that cannot be read are said in ``broken``."""
    check_has_masks(detector.spec)
    truth = areas_as_boxes(maps)
    bank = ExemplarBank(detector, truth)

    def queries(place: int) -> QueryEmbeddings | None:
        asked = bank.queries(maps.names, truth["images"][place])
        broken[:] = sorted({*broken, *bank.broken})
        return asked

    return queries


def collect_pixels(
    detector: Detector, maps: LabelMaps, queries_of: QueriesOfPicture, progress: Progress | None = None
) -> PixelAnswers:
    """Asks every picture for the classes that ``queries_of`` gives of its place, whatever their scores. Pixels of a
    class that a picture is not asked for are not judged there."""
    confusion, tables, broken = Confusion(len(maps.names)), [], []  # type: ignore[var-annotated]
    for place, picture in enumerate(maps.pictures):
        queries = queries_of(place)
        if queries is not None:
            segment = partial(detector.segment, queries=queries, threshold=0.0)
            compared = compare(segment, picture, maps.names, broken)
            if compared is not None:
                unasked = [row for row, name in enumerate(maps.names) if name not in queries.names]
                truth = np.where(np.isin(compared.truth, unasked), IGNORED, compared.truth)
                confusion.add(truth, compared.said)
                judged = (truth != IGNORED) & (compared.said != NOTHING)
                tables.append(counted(compared.scores[judged], (truth == compared.said)[judged]))
        if progress is not None:
            progress(place + 1, len(maps.pictures))
    return PixelAnswers(np.array(tables).reshape(-1, len(SCORES), 2), confusion, broken)


def counted(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Right answers and all [steps, 2] of scores [N], by their logits."""
    place = np.clip(np.digitize(to_logits(scores.astype(np.float64)), STEPS) - 1, 0, len(SCORES) - 1)
    return np.stack([np.bincount(place, part, minlength=len(SCORES)) for part in (right, np.ones(len(right)))], 1)


def evaluate_map_calibration(
    detector: Detector,
    annotations: str | Path,
    images: str | Path,
    *,
    names: Mapping[int, str] | Sequence[str] | None = None,
    ignore: Sequence[int] = (255,),
    nothing: int | None = None,
    classes: Sequence[str] | None = None,
    route: str = "text",
    fit: Sequence[str | Path] = (),
    fit_images: Sequence[str | Path] = (),
    draws: int = 200,
    progress: Progress | None = None,
) -> tuple[Report, Platt]:
    """The calibration error of a model's maps; with ``fit``, sets that are not this one, before and after the cure.

    As ``evaluate_calibration``, where an answer is a judged pixel with the name that fits it best, which is right where
    the label is that name. With the ``route`` "exemplar" classes are shown, each by its largest area in another
    picture, and maps of exemplars have a cure of their own. The cured model is asked once more. ``names``, ``ignore``
    and ``nothing`` are of the label maps of all sets. mIoU and pixel_accuracy are of the answers, after the cure.
    """
    maps = read_label_maps(annotations, images, names=names, ignore=ignore, nothing=nothing)
    maps = maps if classes is None else maps.only(classes, annotations)
    places = sets_to_fit(annotations, images, fit, fit_images)
    fit_maps = [read_label_maps(path, folder, names=names, ignore=ignore, nothing=nothing) for path, folder in places]
    lost: list[str] = []
    asked = {
        id(one): queries_by_name(detector, one) if route == "text" else queries_by_exemplar(detector, one, lost)
        for one in (maps, *fit_maps)
    }
    parts = [collect_pixels(detector, one, asked[id(one)], progress) for one in fit_maps]
    answers = collect_pixels(detector, maps, asked[id(maps)], progress)
    cure, cured = Platt(), answers
    if parts:
        cure = fit_pixels([part.table for part in parts], ", ".join(map(str, fit)))
        cured = collect_pixels(_with_cure(detector, cure, route), maps, asked[id(maps)], progress)
    error, span = cured.d_ece(draws)
    sums = cured.confusion.sums(np.ones((1, len(cured.confusion)), dtype=int))
    iou = sums.iou()[0]
    figures: dict[str, float | None] = {
        "mIoU": _percent(known_means(iou[None, :-1])[0]),
        "pixel_accuracy": _percent(sums.pixel_accuracy()[0]),
        "d_ece": error,
    }
    intervals: dict[str, Interval | None] = {"d_ece": span}
    details: dict[str, Any] = {"reliability": reliability_rows(cured.reliability())}
    if parts:
        before, span = answers.d_ece(draws)
        figures |= {"temperature": round(1 / cure.scale, 4), "bias": round(cure.bias, 4), "d_ece_before": before}
        intervals["d_ece_before"] = span
        details |= {"fit": ", ".join(Path(path).name for path in fit)}
        details |= {"reliability_before": reliability_rows(answers.reliability())}
    report = Report(
        protocol=f"calibration of maps, {len(maps.names)} classes asked by "
        f"{'name' if route == 'text' else 'an exemplar of another picture'}, the best of each pixel, {BINS} bins",
        annotations=Path(annotations).name,
        counts={"n_images": len(maps.pictures), "n_pixels": int(cured.table[..., 1].sum())},
        figures=figures,
        intervals=intervals,
        per_class={name: _percent(iou[row]) for row, name in enumerate(maps.names) if not np.isnan(iou[row])},
        details=details,
        notes=(*maps.notes, *(note for one in fit_maps for note in one.notes)),
        broken=tuple(dict.fromkeys((*lost, *(said for part in (answers, *parts) for said in part.broken)))),
    )
    return report, cure


def _with_cure(detector: Detector, cure: Platt, route: str) -> Detector:
    """The detector with the cure in it. Edges of maps mix the scores of patches, so that the cure of a mixed score is
    not the mix of cured ones, and the cured model has to be asked."""
    network = detector.model
    if not isinstance(network, OwlSwin):
        raise DataError(f"maps of {detector.spec.name} cannot be calibrated; those of owl_swin's own models can")
    other = copy.copy(network)
    other.config = replace(network.config, calibration=calibrated(network.config.calibration, cure, f"map_{route}"))
    return Detector(other, card=detector.card, device=detector.device, image_size=detector.image_size)


def fit_pixels(tables: Sequence[np.ndarray], where: str) -> Platt:
    """The map that makes the scores of counted pixels mean what they say; the pixels of each set count as much."""
    sums = [table.sum(0) for table in tables]  # [steps, 2]
    weights = even_weights([int(own[:, 1].sum()) for own in sums])
    right, n = np.tensordot(weights, sums, 1).T
    fate = np.repeat([True, False], len(SCORES))
    return fit_platt(np.tile(SCORES, 2), fate, np.concatenate([right, n - right]), where=where)


def _percent(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 2)
