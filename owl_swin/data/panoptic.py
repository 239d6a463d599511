"""COCO panoptic: pictures of which every pixel belongs to a thing or to some stuff (arXiv:1801.00868)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from owl_swin.data.coco import id_order, read_categories, read_image_records, stated_size
from owl_swin.data.masks import LabelledPart
from owl_swin.data.scene import BoxList, Scenes, missing_files
from owl_swin.files import read_json

# Parts of COCO's names for stuff that nobody says, and those whose kind stands behind them ("wall-brick").
UNSAID = ("other", "merged", "stuff")
KIND_BEHIND = ("wall", "floor")


def read_panoptic(path: Path, images: Path, *, masks: bool = False) -> Scenes:
    """A panoptic JSON as scenes; its PNGs lie in a folder beside it that is called as the file, or "panoptic".

    Things have boxes. Stuff and crowds have none: they are vague boxes, with ``masks`` those whose pixels are known. A
    segment whose PNG is missing is noted and has no mask.
    """
    content = read_json(path)
    broken: list[str] = []
    categories = read_categories(path, [said_category(record) for record in content["categories"]], broken)
    categories.sort(key=lambda category: id_order(category["id"]))
    rows = {category["id"]: row for row, category in enumerate(categories)}
    things = {record["id"] for record in content["categories"] if record.get("isthing", 1)}
    records = read_image_records(content["images"], images, set(rows), broken)
    boxes = {image_id: BoxList(broken, stated_size(image)) for image_id, image in records.items()}
    folder = folder_of_maps(path)
    maps = {}
    for place, record in enumerate(content["annotations"], start=1):
        try:
            image_id, own = record["image_id"], folder / str(record["file_name"])
            if image_id not in records:
                broken.append(f"annotation number {place}: unknown picture {image_id!r}")
                continue
            maps[image_id] = own
        except (KeyError, TypeError) as error:
            broken.append(f"annotation number {place}: not in the panoptic form (problem with {error})")
    missing = missing_files(list(maps.values()))
    broken += [f"{source}: no such label map" for source in missing]
    for record in content["annotations"]:
        image_id = record.get("image_id") if isinstance(record, dict) else None
        if image_id in maps:
            source = maps[image_id] if masks and maps[image_id] not in missing else None
            for segment in record.get("segments_info") or ():
                _add(boxes[image_id], segment, source, f"picture {image_id}", rows, things)
    scenes = [boxes[image_id].scene(image["source"]) for image_id, image in records.items()]
    return Scenes(scenes, [category["synonyms"] or category["names"] for category in categories], broken)


def _add(
    boxes: BoxList, segment: Any, source: Path | None, where: str, rows: Mapping[Any, int], things: set[Any]
) -> None:
    """Adds a segment's box: of a thing, or of an area without one."""
    try:
        number, category = segment["id"], segment["category_id"]
        where = f"{where}, segment {number}"
        if category not in rows or type(number) is not int:
            problem = f"unknown category {category!r}" if category not in rows else "its id must be a whole number"
            boxes.broken.append(f"{where}: {problem}")
            return
        x, y, w, h = (float(value) for value in segment["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        boxes.broken.append(f"{where}: a segment not in the panoptic form (problem with {error})")
        return
    mask = None if source is None else LabelledPart(source, number)
    is_thing = category in things and not segment.get("iscrowd")
    boxes.add(where, rows[category], (x, y, x + w, y + h), as_given=segment["bbox"], mask=mask, area=not is_thing)


def folder_of_maps(path: Path) -> Path:
    """Where the PNGs of a panoptic JSON lie: in a folder beside it that is called as the file, or "panoptic"."""
    own = path.with_suffix("")
    return own if own.is_dir() else path.parent / "panoptic"


def said_category(record: Mapping[str, Any]) -> dict[str, Any]:
    """A category whose name is as one says it: "tree-merged" is tree, "wall-brick" a brick wall."""
    name = record["name"]
    if not isinstance(name, str) or "-" not in name:
        return dict(record)
    parts = [part for part in name.split("-") if part not in UNSAID]
    if parts and parts[0] in KIND_BEHIND:
        parts = parts[::-1]
    return {**record, "name": " ".join(parts) or name}
