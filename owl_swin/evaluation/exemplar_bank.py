"""The boxes of a set as exemplars, drawn for the pictures that are asked."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from owl_swin.data.coco import stated_size
from owl_swin.data.label_maps import LabelMaps
from owl_swin.data.scene import as_annotated
from owl_swin.data.truth import counted_boxes, one_category_a_name, only_categories, read_truth
from owl_swin.detector import Detector
from owl_swin.errors import DataError, ImageError, QueryError
from owl_swin.exemplar import Exemplar, combine
from owl_swin.image import open_image
from owl_swin.types import ExtraEmbeddings, QueryEmbeddings

# Boxes under this area, in annotated pixels, show too little to be an exemplar; a class of such boxes alone uses them.
MIN_EXEMPLAR_AREA = 16**2
# A class with more boxes than this draws its exemplars from as many, chosen once, so that large sets stay affordable.
MAX_EXEMPLARS = 200


class ExemplarBank:
    """The boxes of a set as exemplars, each encoded when it is first drawn."""

    def __init__(self, detector: Detector, truth: dict[str, Any]):
        truth = one_category_a_name(truth)
        self._detector = detector
        self._records = {record["id"]: record for record in truth["images"]}
        self._embeds: dict[int, Tensor | None] = {}
        self.broken: set[str] = set()
        self.boxes: dict[str, list[dict[str, Any]]] = {}
        annotations = [{**a, "id": i} for i, a in enumerate(counted_boxes(truth))]
        for category in truth["categories"]:
            own = [a for a in annotations if a["category_id"] == category["id"]]
            boxes = [a for a in own if a["area"] >= MIN_EXEMPLAR_AREA] or own
            random.Random(0).shuffle(boxes)
            self.boxes[category["name"]] = boxes[:MAX_EXEMPLARS]

    def draw(self, name: str, asked: dict[str, Any], *, shots: int, draw: int) -> Tensor | None:
        """Query embedding [E] of ``shots`` exemplars of a class, for one asked picture and draw; None without any.

        Exemplars are of other files than the asked picture's. The same picture, class and draw give the same exemplars
        in every run. Where a class has fewer, all are used.
        """
        rng = random.Random(f"{asked['id']} {name} {draw}")
        pool = [a for a in self.boxes.get(name, []) if self._record(a)["source"] != asked["source"]]
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

    def _record(self, annotation: dict[str, Any]) -> dict[str, Any]:
        return self._records[annotation["image_id"]]

    def _encode(self, annotation: dict[str, Any]) -> Tensor | None:
        key = annotation["id"]
        if key not in self._embeds:
            stated_wh = stated_size(self._record(annotation))
            try:
                picture = open_image(as_annotated(self._record(annotation)["source"], stated_wh))
                x, y, w, h = annotation["bbox"]
                width, height = stated_wh or picture.size
                sx, sy = picture.width / width, picture.height / height
                box = (x * sx, y * sy, (x + w) * sx, (y + h) * sy)
                self._embeds[key] = self._detector.encode_exemplars([Exemplar(picture, box)])
            except (ImageError, QueryError) as error:  # a picture that is gone, or a box of less than a pixel
                if isinstance(error, ImageError):
                    self.broken.add(str(error))
                self._embeds[key] = None
        return self._embeds[key]


def make_bank(
    detector: Detector,
    truth: dict[str, Any],
    exemplars: str | Path | None = None,
    exemplar_images: str | Path | None = None,
) -> ExemplarBank:
    """The exemplars of a set: its own boxes, or those of the file ``exemplars`` for the classes of the same names, with
    pictures in ``exemplar_images``."""
    if exemplars is None:
        return ExemplarBank(detector, truth)
    assert exemplar_images is not None
    other = read_truth(exemplars, exemplar_images, background=True)
    missing = sorted({c["name"] for c in truth["categories"]} - {c["name"] for c in other["categories"]})
    if missing:
        raise DataError(f"{exemplars}: has no class {missing[0]!r}, which is asked")
    return ExemplarBank(detector, other)


def areas_as_boxes(maps: LabelMaps) -> dict[str, Any]:
    """A set of label maps in COCO's form: around the largest connected area of each name in a picture there is a box.
    The id of a picture is its place. A map that cannot be read has none."""
    from scipy.ndimage import find_objects, label

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for place, picture in enumerate(maps.pictures):
        images.append({"id": place, "source": picture.source})
        try:
            labels = picture.labels()
        except ImageError:  # said where the map is compared
            continue
        images[-1] |= {"width": labels.shape[1], "height": labels.shape[0]}
        for row in np.unique(labels[labels >= 0]).tolist():
            areas, _ = label(labels == row)
            sizes = np.bincount(areas.flat)[1:]
            rows, columns = find_objects(areas)[sizes.argmax()]
            box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
            own = {"image_id": place, "category_id": row, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append(own)
    categories = [{"id": row, "name": name} for row, name in enumerate(maps.names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def without_exemplar(truth: dict[str, Any], asked: set[str]) -> tuple[dict[str, Any], list[str]]:
    """The set without the classes that have boxes and could never be asked for, and a sentence that names these.

    A class that only one picture has is shown by no other. Nobody looked for it, so it has no figure, not 0.
    """
    used = {annotation["category_id"] for annotation in counted_boxes(truth)}
    unasked = [c for c in truth["categories"] if c["id"] in used and c["name"] not in asked]
    if not unasked:
        return truth, []
    kept = [c["id"] for c in truth["categories"] if c not in unasked]
    names = ", ".join(c["name"] for c in unasked[:10]) + (", …" if len(unasked) > 10 else "")
    note = f"{len(unasked)} class(es) have no exemplar in another picture, were not asked for and do not count: {names}"
    return only_categories(truth, kept), [note]
