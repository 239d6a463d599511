"""COCO detection form, and LVIS, Objects365 and Open Images in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.naming import place_pictures, spoken, spoken_names
from owl_swin.data.scene import BoxList, Scenes, no_rows
from owl_swin.errors import DataError


def read_lvis(path: Path, images: Path) -> Scenes:
    """COCO form whose image records say which categories were looked for (LVIS, arXiv:1908.03195)."""
    scenes = read_coco(path, images)
    if all(scene.negatives is None for scene in scenes.scenes):
        raise DataError(f"{path}: no image record has 'neg_category_ids'; read it as kind 'coco'")
    return scenes


def read_coco(path: Path, images: Path, *, ignore_below: float = 0.0) -> Scenes:
    """COCO detection form: "images", "annotations" with xywh boxes, "categories".

    An annotation's ``score`` is how sure a guessed box is; those under ``ignore_below`` become vague. Crowd and group
    regions are left out; their names are unknown in the picture. Where any image record has ``neg_category_ids``, only
    those are negatives of a picture.
    """
    data = json.loads(path.read_text())
    broken: list[str] = []
    rows, names = read_categories(data["categories"], broken)
    records = _image_records(data["images"], broken)
    by_image: dict[Any, list[Mapping]] = {}
    for place, annotation in enumerate(data["annotations"]):
        where = annotation_name(annotation, place)
        try:
            if annotation["category_id"] not in rows:
                broken.append(f"{where}: unknown category {annotation['category_id']}")
            elif annotation["image_id"] not in records:
                broken.append(f"{where}: unknown picture {annotation['image_id']}")
            else:
                by_image.setdefault(annotation["image_id"], []).append(annotation)
        except (KeyError, TypeError) as error:
            broken.append(f"{where}: not in COCO's form (problem with {error})")
    federated = any("neg_category_ids" in record for record in records.values())
    sources = place_pictures(images, [_file_name(record) for record in records.values()])
    scenes = []
    for source, (image_id, record) in zip(sources, records.items(), strict=True):
        boxes = BoxList(broken, stated_size(record), ignore_below=ignore_below)
        for annotation in by_image.get(image_id, ()):
            label, bbox = rows[annotation["category_id"]], annotation.get("bbox")
            if annotation.get("iscrowd") or annotation.get("isgroupof"):
                boxes.unknown.append(label)
            else:
                boxes.add(
                    annotation_name(annotation), label, _xyxy(bbox), shown=bbox, score=annotation.get("score", 1.0)
                )
        where = f"picture {image_id}"
        negatives = _rows(record, "neg_category_ids", rows, where, broken) if federated else None
        unknown = _rows(record, "not_exhaustive_category_ids", rows, where, broken)
        scenes.append(boxes.scene(source, negatives=negatives, unknown=unknown))
    return Scenes(scenes, names, broken)


def read_categories(categories: list[dict[str, Any]], broken: list[str]) -> tuple[dict[Any, int], list[list[str]]]:
    """Rows by category id, in the order of the ids, and the names of each: LVIS' synonyms, or "sofa, couch" split."""
    rows: dict[Any, int] = {}
    names: list[list[str]] = []
    for category in sorted(categories, key=lambda c: c["id"]):
        synonyms = [spoken(name) for name in category.get("synonyms") or ()]
        said = list(dict.fromkeys(synonyms)) or spoken_names(category["name"])
        if category["id"] in rows or not said:
            broken.append(f"category {category['id']}: {'given twice' if said else 'has no name'}")
            continue
        rows[category["id"]] = len(names)
        names.append(said)
    return rows, names


def annotation_name(annotation: Any, place: int = 0) -> str:
    """How a note calls an annotation: by its id, else by its place in the list."""
    known = isinstance(annotation, dict) and "id" in annotation
    return f"annotation {annotation['id']}" if known else f"annotation number {place + 1}"


def stated_size(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) in pixels that an image record states, if it does."""
    wh = record.get("width"), record.get("height")
    if not all(isinstance(side, (int, float)) and 0 < side < 1e6 for side in wh):
        return None
    return wh  # type: ignore[return-value]


def _image_records(images: list[Any], broken: list[str]) -> dict[Any, Mapping[str, Any]]:
    """Image records by id, each id once."""
    records: dict[Any, Mapping[str, Any]] = {}
    for place, record in enumerate(images):
        try:
            if record["id"] in records:
                broken.append(f"picture {record['id']}: given twice")
            elif not _file_name(record):
                broken.append(f"picture {record['id']}: no file name")
            else:
                records[record["id"]] = record
        except (KeyError, TypeError, AttributeError) as error:
            broken.append(f"image record number {place + 1}: not in COCO's form (problem with {error})")
    return records


def _file_name(record: Mapping[str, Any]) -> str:
    """The file's name; LVIS gives an address instead, whose last parts are folder and name."""
    return str(record.get("file_name") or record.get("coco_url") or "")


def _xyxy(bbox: Any) -> tuple[Any, ...]:
    try:
        x, y, w, h = (float(value) for value in bbox)
    except (TypeError, ValueError):
        return ()
    return (x, y, x + w, y + h)


def _rows(record: Mapping[str, Any], key: str, rows: dict[Any, int], where: str, broken: list[str]) -> np.ndarray:
    ids = record.get(key) or ()
    try:
        unknown = [i for i in ids if i not in rows]
    except TypeError as error:
        broken.append(f"{where}: {key} is no list of category ids (problem with {error})")
        return no_rows()
    if unknown:
        broken.append(f"{where}: unknown category {unknown[0]} in {key}")
    return np.unique(np.array([rows[i] for i in ids if i in rows], dtype=np.int64))
