"""One-shot detection (Hsieh et al. 2019, arXiv:1911.12529): find what a box of another picture shows."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from owl_swin.detector import Detector
from owl_swin.errors import DataError, ImageError, QueryError
from owl_swin.evaluation.coco import MAX_DETECTIONS, query_text
from owl_swin.evaluation.precision import (
    interval,
    mean_over_classes,
    mean_percent,
    per_class,
    precision_table,
    resampled_ap50,
)
from owl_swin.evaluation.sets import (
    Progress,
    check_names,
    coco_rows,
    counted_boxes,
    encode_set,
    read_boxes,
    without_background,
)
from owl_swin.exemplar import Exemplar, combine
from owl_swin.image import open_image
from owl_swin.types import ExtraEmbeddings, QueryEmbeddings

# Boxes under this area, in annotated pixels, show too little to be an exemplar; a class of such boxes alone uses them.
MIN_EXEMPLAR_AREA = 16**2
# A class with more boxes than this draws its exemplars from as many, chosen once, so that large sets stay affordable.
MAX_EXEMPLARS = 200


class ExemplarBank:
    """The boxes of a set as exemplars, each encoded when it is first drawn."""

    def __init__(self, detector: Detector, truth: dict[str, Any], images: str | Path, asked_images: str | Path):
        """Pictures of the exemplars lie in ``images``, those that are asked in ``asked_images``."""
        self._detector = detector
        self._folder = Path(images)
        self._asked_folder = Path(asked_images)
        self._records = {record["id"]: record for record in truth["images"]}
        self._names = {c["id"]: c["name"] for c in truth["categories"]}
        self._embeds: dict[int, Tensor | None] = {}
        self.broken: set[str] = set()
        self.boxes: dict[str, list[dict[str, Any]]] = {name: [] for name in self._names.values()}
        annotations = [{**a, "id": i} for i, a in enumerate(truth["annotations"])]
        for category, name in self._names.items():
            own = [a for a in annotations if a["category_id"] == category and not a.get("iscrowd")]
            own = [a for a in own if min(a["bbox"][2:]) > 0]
            self.boxes[name] += [a for a in own if a["area"] >= MIN_EXEMPLAR_AREA] or own
        for name, boxes in self.boxes.items():
            random.Random(0).shuffle(boxes)
            self.boxes[name] = boxes[:MAX_EXEMPLARS]

    def draw(self, name: str, asked: dict[str, Any], *, shots: int, draw: int) -> Tensor | None:
        """Query embedding [E] of ``shots`` exemplars of a class, for one asked picture and draw; None without any.

        Exemplars are of other files than the asked picture's. The same picture, class and draw give the same exemplars
        in every run. Where a class has fewer, all are used.
        """
        rng = random.Random(f"{asked['id']} {name} {draw}")
        path = self._asked_folder / asked["file_name"]
        pool = [a for a in self.boxes.get(name, []) if self._path(a) != path]
        rng.shuffle(pool)
        embeds = []
        for annotation in pool:
            embed = self._encode(annotation)
            if embed is not None:
                embeds.append(embed)
            if len(embeds) == shots:
                break
        return combine(torch.stack(embeds)) if embeds else None

    def queries(
        self,
        names: Sequence[str],
        asked: dict[str, Any],
        *,
        shots: int = 1,
        draw: int = 0,
        texts: dict[str, Tensor] | None = None,
        weight: float = 0.5,
        negatives: int = 0,
    ) -> QueryEmbeddings | None:
        """Queries for those of the classes that have an exemplar for this picture; None when none has.

        ``texts``: embedding [E] of each class's name, to go with the exemplars, which count ``weight``. ``negatives``:
        how many other classes' exemplars, one of each, say what the thing is not.
        """
        drawn = {name: self.draw(name, asked, shots=shots, draw=draw) for name in names}
        known = {name: embed for name, embed in drawn.items() if embed is not None}
        if not known:
            return None
        extra: list[tuple[Tensor, int, float, str]] = []
        for owner, name in enumerate(known):
            if texts is not None and weight < 1:
                extra.append((texts[name], owner, 1 - weight, "text"))
            others = sorted(self.boxes.keys() - {name})
            random.Random(f"not {asked['id']} {name} {draw}").shuffle(others)
            for other in others[:negatives]:
                embed = self.draw(other, asked, shots=1, draw=draw)
                if embed is not None:
                    extra.append((embed, owner, 0.0, "exemplar"))
        extras = None
        if extra:
            embeds, owners, shares, routes = zip(*extra, strict=True)
            extras = ExtraEmbeddings(torch.stack(embeds), torch.tensor(owners), torch.tensor(shares), routes)
        return QueryEmbeddings(torch.stack(list(known.values())), tuple(known), ("exemplar",) * len(known), extras)

    def _path(self, annotation: dict[str, Any]) -> Path:
        return self._folder / self._records[annotation["image_id"]]["file_name"]

    def _encode(self, annotation: dict[str, Any]) -> Tensor | None:
        key = annotation["id"]
        if key not in self._embeds:
            record = self._records[annotation["image_id"]]
            try:
                picture = open_image(self._path(annotation))
                x, y, w, h = annotation["bbox"]
                sx, sy = picture.width / record["width"], picture.height / record["height"]
                box = (x * sx, y * sy, (x + w) * sx, (y + h) * sy)
                self._embeds[key] = self._detector.encode_exemplars([Exemplar(picture, box)])
            except (ImageError, QueryError) as error:  # a picture that is gone, or a box outside it
                self.broken.add(str(error))
                self._embeds[key] = None
        return self._embeds[key]


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
    nms_iou: float | None = 0.5,
    resamples: int = 200,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Each picture is asked for each class that is in it by ``shots`` exemplars of other pictures, in ``draws`` draws.

    Returns the means over the draws, in percent, of AP, AP50, per_class (name → AP50), AP50_seen and AP50_unseen, each
    draw's AP50 as draw_AP50, and ci95 of the mean AP50 (bootstrap over pictures, the same for all draws).
    ``exemplars`` is a second COCO file whose boxes are the exemplars (pictures in ``exemplar_images``, by default
    ``images``). With ``absent`` every picture is asked for every class: finding nothing is then part of the task.
    ``with_text`` gives the class's name beside its exemplars, which count ``weight``; ``negatives`` is how many other
    classes, by one exemplar each, a query is told not to be.
    """
    if min(shots, draws) < 1:
        raise DataError(f"shots and draws must be at least 1, got {shots} and {draws}")
    if negatives < 0 or not 0 <= weight <= 1:
        raise DataError(f"negatives must be at least 0 and weight lie in [0, 1], got {negatives} and {weight}")
    truth = without_background(read_boxes(annotations, classes))
    for names in (seen, unseen):
        check_names(truth, names, annotations)
    bank = make_bank(detector, truth, images, exemplars, exemplar_images)
    by_name = {c["name"]: c["id"] for c in truth["categories"]}
    names_of = {c["id"]: c["name"] for c in truth["categories"]}
    present: dict[Any, set[str]] = {record["id"]: set() for record in truth["images"]}
    for a in counted_boxes(truth):
        present[a["image_id"]].add(names_of[a["category_id"]])
    texts = None
    if with_text:
        texts = dict(zip(by_name, detector.encode_queries([*map(query_text, by_name)]).query_embeds, strict=True))
    rows: list[list[dict[str, Any]]] = [[] for _ in range(draws)]
    broken: list[str] = []
    unasked = 0
    for record, encoded in encode_set(detector, truth["images"], images, broken, progress):
        names = [name for name in by_name if absent or name in present[record["id"]]]
        for draw in range(draws if names else 0):
            queries = bank.queries(
                names, record, shots=shots, draw=draw, texts=texts, weight=weight, negatives=negatives
            )
            unasked += len(names) - (len(queries) if queries else 0)
            if queries:
                found = detector.detect(
                    encoded, queries, threshold=0.0, nms_iou=nms_iou, top_k=MAX_DETECTIONS * len(queries)
                )
                rows[draw] += coco_rows(found, record, [by_name[name] for name in queries.names])
    asked = "all classes" if absent else "the classes that are in it"
    beside = f" with its name (exemplars count {weight:g})" if with_text else ""
    beside += f" and {negatives} other class(es) as negatives" if negatives else ""
    return {
        "protocol": f"one-shot COCO box AP, each picture asked for {asked} by {shots} exemplar(s) of "
        f"{'another set' if exemplars else 'other pictures'}{beside}, mean of {draws} draws, "
        f"{MAX_DETECTIONS} detections a picture and class, NMS {nms_iou}",
        "annotations": Path(annotations).name,
        "n_images": len(truth["images"]),
        "n_boxes": len(counted_boxes(truth)),
        "shots": shots,
        "draws": draws,
        **_figures(truth, rows, {"seen": seen, "unseen": unseen}, resamples),
        "unasked": unasked // draws,
        "broken": sorted({*broken, *bank.broken}),
    }


def make_bank(
    detector: Detector,
    truth: dict[str, Any],
    images: str | Path,
    exemplars: str | Path | None = None,
    exemplar_images: str | Path | None = None,
) -> ExemplarBank:
    """The exemplars of a set: its own boxes, or those of the file ``exemplars`` for the classes of the same names."""
    if exemplars is None:
        return ExemplarBank(detector, truth, images, images)
    other = read_boxes(exemplars)
    missing = sorted({c["name"] for c in truth["categories"]} - {c["name"] for c in other["categories"]})
    if missing:
        raise DataError(f"{exemplars}: has no class {missing[0]!r}, which is asked")
    folder = exemplar_images if exemplar_images is not None else images
    return ExemplarBank(detector, other, folder, images)


def _figures(
    truth: dict[str, Any], rows: list[list[dict[str, Any]]], groups: dict[str, Sequence[str]], resamples: int
) -> dict[str, Any]:
    tables = np.stack([precision_table(truth, own, max_detections=MAX_DETECTIONS)[..., 0] for own in rows])
    names = [c["name"] for c in truth["categories"]]
    figures: dict[str, Any] = {
        "AP": mean_percent(tables),
        "AP50": mean_percent(tables[:, 0]),
        "draw_AP50": [mean_percent(table[0]) for table in tables],
        "per_class": per_class(truth, tables.mean(0)[..., None]),
    }
    values = np.stack([resampled_ap50(truth, own, draws=resamples) for own in rows]).mean(0)
    for group, members in groups.items():
        if members:
            columns = [i for i, name in enumerate(names) if name in members]
            figures[f"AP50_{group}"] = mean_percent(tables[:, 0][..., columns])
            figures[f"ci95_{group}"] = interval(mean_over_classes(values[:, columns]))
    return {**figures, "ci95": interval(mean_over_classes(values))}
