"""COCO detection form, and LVIS, Objects365 and Open Images in it: one reader for training and evaluation."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.masks import CodedMask
from owl_swin.data.naming import place_pictures, spoken, spoken_names, texts_of
from owl_swin.data.outlines import outline_rle
from owl_swin.data.scene import BoxList, Scenes, cut_box, score_problem
from owl_swin.errors import DataError, MissingExtraError
from owl_swin.files import read_json
from owl_swin.rle import rle_size

# Of these lists LVIS says what was looked for in a picture.
LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
# Boxes that all lie within this many pixels of the corner are fractions of the picture.
LARGEST_FRACTION = 1.01


@dataclass(frozen=True, slots=True)
class CocoFile:
    """What a file in COCO form holds. Entries that mean nothing are left out, with a sentence each in ``broken``.

    - ``images``: id, file_name, source (the path), width and height (None where not stated), and, where any record of
      the file has one of them, LVIS' two lists of category ids;
    - ``categories``, as in the file: id, name, names (how a text encoder is asked for it), synonyms (more ways to say
      it), and frequency where it is given;
    - ``annotations``: image_id, category_id, bbox (xywh in pixels of the stated size, cut to the picture), area (as
      given, else of the box), iscrowd, and score where it is given; with ``outlines`` segmentation as the file has it,
      or None, area_stated: whether the file has the area, and where: how a note calls it;
    - ``lost``: (image id, category id) of things whose box was left out;
    - ``n_annotations``: how many the file has.
    """

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    lost: list[tuple[Any, Any]]
    broken: list[str]
    n_annotations: int


def read_coco_file(path: Path, images: Path, *, outlines: bool = False) -> CocoFile:
    """Reads "images", "annotations" with xywh boxes, and "categories"; pictures lie in ``images``.

    A thing without a box gets that around its polygons or mask. Boxes without a side or outside of the picture, boxes
    in fractions of the picture, and second copies of an annotation are left out. A file of another form raises
    KeyError, TypeError or DataError.
    """
    content = read_json(path)
    if isinstance(content, list):
        raise DataError(f"{path}: a list of {_kind_of_list(content)}; {EXPECTED}")
    if not isinstance(content, dict):
        raise DataError(f"{path}: {type(content).__name__} where an object is expected; {EXPECTED}")
    broken: list[str] = []
    categories = read_categories(path, content["categories"], broken)
    category_ids = {category["id"] for category in categories}
    records = read_image_records(content["images"], images, category_ids, broken)
    annotations: list[dict[str, Any]] = []
    lost: list[tuple[Any, Any]] = []
    seen: dict[tuple[Any, ...], Any] = {}
    in_fractions = any(_in_fractions(annotation) for annotation in content["annotations"])
    for place, annotation in enumerate(content["annotations"]):
        where = annotation_name(annotation, place)
        try:
            category_id, image_id = annotation["category_id"], annotation["image_id"]
            if category_id not in category_ids:
                broken.append(f"{where}: unknown category {category_id!r}")
                continue
            if image_id not in records:
                broken.append(f"{where}: unknown picture {image_id!r}")
                continue
        except (KeyError, TypeError) as error:
            broken.append(f"{where}: not in COCO's form (problem with {error})")
            continue
        box = _bbox(annotation, records[image_id], in_fractions)
        crowd = int(bool(annotation.get("iscrowd") or annotation.get("isgroupof")))
        problem = box if isinstance(box, str) else score_problem(annotation.get("score", 1.0))
        if isinstance(box, str) or problem:
            broken.append(f"{where}: {problem}")
            lost.append((image_id, category_id))
            continue
        key, outline = (image_id, category_id, box, crowd), annotation.get("segmentation")
        if key in seen and seen[key] == outline:
            broken.append(f"{where}: given twice")
            continue
        seen[key] = outline
        checked = {"image_id": image_id, "category_id": category_id, "bbox": list(box), "iscrowd": crowd}
        stated = _is_area(annotation.get("area"))
        checked["area"] = float(annotation["area"]) if stated else box[2] * box[3]
        checked |= {"segmentation": outline, "area_stated": stated, "where": where} if outlines else {}
        annotations.append(checked | ({"score": annotation["score"]} if "score" in annotation else {}))
    return CocoFile(list(records.values()), categories, annotations, lost, broken, len(content["annotations"]))


def read_lvis(path: Path, images: Path, *, ignore_below: float = 0.0, masks: bool = False) -> Scenes:
    """COCO form whose image records say which categories were looked for (LVIS, arXiv:1908.03195)."""
    scenes = read_coco(path, images, ignore_below=ignore_below, masks=masks)
    if all(scene.negatives is None for scene in scenes.scenes):
        raise DataError(f"{path}: no image record has 'neg_category_ids'; read it as kind 'coco'")
    return scenes


def read_coco(path: Path, images: Path, *, ignore_below: float = 0.0, masks: bool = False) -> Scenes:
    """A file in COCO form as scenes; names are in the order of the category ids.

    An annotation's ``score`` is how sure a guessed box is; those under ``ignore_below`` become vague. Crowd and group
    regions are left out; their names are unknown in the picture. Where any image record has ``neg_category_ids``, only
    those are negatives of a picture. With ``masks`` boxes have theirs, where the file has them; one that is damaged,
    empty, or not of its picture's size is noted, and its box stays.
    """
    file = read_coco_file(path, images, outlines=masks)
    categories = sorted(file.categories, key=lambda category: id_order(category["id"]))
    rows = {category["id"]: row for row, category in enumerate(categories)}
    boxes = {image["id"]: BoxList(file.broken, stated_size(image), ignore_below=ignore_below) for image in file.images}
    for annotation in file.annotations:
        own, label = boxes[annotation["image_id"]], rows[annotation["category_id"]]
        if annotation["iscrowd"]:
            own.unknown.append(label)
        else:
            x, y, w, h = annotation["bbox"]
            score = annotation.get("score", 1.0)
            sure = masks and score > 0 and score >= ignore_below  # a vague box has no mask that is known
            mask = _mask(annotation, own.wh, file.broken) if sure else None
            own.keep(label, (x, y, x + w, y + h), score, mask)
    for image_id, category_id in file.lost:
        boxes[image_id].unknown.append(rows[category_id])
    scenes = []
    for image in file.images:
        negatives, unknown = ([rows[i] for i in image.get(key, ())] for key in LVIS_LISTS)
        federated = np.unique(np.array(negatives, dtype=np.int64)) if LVIS_LISTS[0] in image else None
        scenes.append(boxes[image["id"]].scene(image["source"], negatives=federated, unknown=unknown))
    return Scenes(scenes, [category["synonyms"] or category["names"] for category in categories], file.broken)


def _mask(annotation: Mapping[str, Any], wh: tuple[int, int] | None, broken: list[str]) -> CodedMask | None:
    """The mask of an annotation, None where there is none or it is broken; ``wh`` is the picture's stated size."""
    outline = annotation["segmentation"]
    if not outline:
        return None
    try:
        hw = (round(wh[1]), round(wh[0])) if wh else rle_size(outline) if isinstance(outline, dict) else None
        if hw is None:
            raise DataError("polygons in a picture whose record states no width and height")
        return CodedMask.of(outline_rle(outline, hw))
    except DataError as error:
        broken.append(f"{annotation['where']}: left without its mask, {error}")
        return None


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


EXPECTED = 'expected a data set: an object with "images", "annotations" and "categories"'


def _kind_of_list(content: list[Any]) -> str:
    """What a JSON list holds, which is no data set: results of a detector, or something else."""
    first = content[0] if content else None
    is_result = isinstance(first, dict) and {"image_id", "score"} <= first.keys()
    return "detections (a results file)" if is_result else f"{len(content)} things"


def id_order(value: Any) -> tuple[bool, Any]:
    """What sorts ids: numbers first, then texts."""
    return (True, str(value)) if not isinstance(value, (int, float)) else (False, value)


def read_categories(path: Path, records: Sequence[Any], broken: list[str]) -> list[dict[str, Any]]:
    """Categories by their ids, each id once."""
    categories: dict[Any, dict[str, Any]] = {}
    for record in records:
        name = record["name"]
        if not isinstance(name, str):
            raise DataError(f"{path}: the name of category {record['id']} must be a text, got {json.dumps(name)}")
        synonyms = list(dict.fromkeys(filter(None, map(spoken, texts_of(record.get("synonyms"))))))
        names = spoken_names(name) or synonyms
        if synonyms and not set(names) & set(synonyms):  # LVIS counts the name among them
            synonyms = names + synonyms
        if record["id"] in categories or not names:
            broken.append(f"category {record['id']}: {'given twice' if names else 'has no name'}")
            continue
        category = {"id": record["id"], "name": name, "names": names, "synonyms": synonyms}
        categories[record["id"]] = category | ({"frequency": record["frequency"]} if "frequency" in record else {})
    return list(categories.values())


def read_image_records(
    records: Sequence[Any], images: Path, category_ids: set[Any], broken: list[str]
) -> dict[Any, dict[str, Any]]:
    """Image records by id, each id once, with the path of each picture."""
    known: dict[Any, Mapping[str, Any]] = {}
    for place, record in enumerate(records):
        try:
            if record["id"] in known:
                broken.append(f"picture {record['id']}: given twice")
            elif not _file_name(record):
                broken.append(f"picture {record['id']}: no file name")
            else:
                known[record["id"]] = record
        except (KeyError, TypeError, AttributeError) as error:
            broken.append(f"image record number {place + 1}: not in COCO's form (problem with {error})")
    lists = [key for key in LVIS_LISTS if any(key in record for record in known.values())]
    sources = place_pictures(images, [_file_name(record) for record in known.values()])
    checked = {}
    for source, (image_id, record) in zip(sources, known.items(), strict=True):
        width, height = stated_size(record) or (None, None)
        image = {"id": image_id, "file_name": _file_name(record), "source": source, "width": width, "height": height}
        checked[image_id] = image | {key: _known_ids(record, key, category_ids, broken) for key in lists}
    return checked


def _known_ids(record: Mapping[str, Any], key: str, category_ids: set[Any], broken: list[str]) -> list[Any]:
    ids = record.get(key) or ()
    where = f"picture {record['id']}"
    try:
        unknown = [i for i in ids if i not in category_ids]
    except TypeError as error:
        broken.append(f"{where}: {key} is no list of category ids (problem with {error})")
        return []
    if unknown:
        broken.append(f"{where}: unknown category {unknown[0]} in {key}")
    return [i for i in ids if i in category_ids]


def _file_name(record: Mapping[str, Any]) -> str:
    """The file's name; LVIS gives an address instead, whose last parts are folder and name."""
    return str(record.get("file_name") or "/".join(str(record.get("coco_url") or "").split("/")[-2:]))


def _in_fractions(annotation: Any) -> bool:
    """Whether the box can only be fractions of a picture: whole numbers may be the pixel in the corner."""
    try:
        x, y, w, h = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    whole = x.is_integer() and y.is_integer() and w.is_integer() and h.is_integer()
    return not whole and min(x, y) >= 0 and max(x + w, y + h) <= LARGEST_FRACTION


def _bbox(
    annotation: Mapping[str, Any], image: Mapping[str, Any], in_fractions: bool
) -> tuple[float, float, float, float] | str:
    """xywh of an annotation, cut to its picture, or why it has none; ``in_fractions``: the file has such boxes."""
    given = annotation.get("bbox")
    xywh = given or _around(annotation.get("segmentation"))
    try:
        x, y, w, h = (float(value) for value in xywh)  # type: ignore[union-attr]
    except (TypeError, ValueError, OverflowError):
        return f"not four numbers {given}"
    wh = stated_size(image)
    box = cut_xywh((x, y, w, h), wh)
    if isinstance(box, str):
        return f"{box} {given}"
    fits = min(x, y) >= 0 and max(x + w, y + h) <= LARGEST_FRACTION
    if in_fractions and fits and (wh is None or min(wh) > 2):
        return f"not pixels but fractions of the picture {given}"
    return box


def cut_xywh(
    xywh: tuple[float, float, float, float], wh: tuple[float, float] | None
) -> tuple[float, float, float, float] | str:
    """``cut_box`` of xywh; a box inside its picture stays as it is, to the last digit."""
    x, y, w, h = xywh
    box = cut_box((x, y, x + w, y + h), wh)
    if isinstance(box, str):
        return box
    inside = wh is None or (x >= 0 and y >= 0 and x + w <= wh[0] and y + h <= wh[1])
    return xywh if inside else (box[0], box[1], box[2] - box[0], box[3] - box[1])


def _around(segmentation: Any) -> tuple[float, float, float, float] | None:
    """xywh around polygons [[x, y, x, y, …], …], one polygon, or a run-length encoded mask; None for what is not
    that."""
    if isinstance(segmentation, dict):
        return _around_mask(segmentation)
    try:
        flat = not any(isinstance(part, (list, tuple)) for part in segmentation)
        parts = [segmentation] if flat else segmentation
        polygons = [np.array(polygon, dtype=float).reshape(-1, 2) for polygon in parts]
        points = np.concatenate(polygons)
    except (TypeError, ValueError, OverflowError):
        return None
    if len(points) < 3:
        return None
    low, high = points.min(0), points.max(0)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])


def _around_mask(mask: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """xywh around a mask in COCO's run-length encoding, compressed or not; None for a damaged or empty one."""
    try:
        from faster_coco_eval.core.mask import frPyObjects, toBbox
    except ImportError:
        raise MissingExtraError("finding the boxes of masks", "train") from None
    try:
        height, width = mask["size"]
        encoded = frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask
        x, y, w, h = toBbox([encoded])[0].tolist()
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, RuntimeError):
        return None
    return (x, y, w, h) if w and h else None


def _is_area(given: Any) -> bool:
    return isinstance(given, (int, float)) and 0 <= given <= sys.float_info.max
