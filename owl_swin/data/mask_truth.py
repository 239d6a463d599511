"""The masks of a set that answers are compared with, as run lengths in pixels of the annotated pictures."""

from pathlib import Path
from typing import Any

from owl_swin.data.broken import left_out
from owl_swin.data.coco import stated_size
from owl_swin.data.outlines import box_rle, outline_rle
from owl_swin.data.scene import upright_size
from owl_swin.errors import DataError
from owl_swin.rle import rle_area, rle_size


def with_masks(truth: dict[str, Any], path: Path) -> dict[str, Any]:
    """The set of the file ``path``, read with its outlines, with a compressed mask as "segmentation" of every one.

    A thing without a mask, or with one that is damaged, is neither to be found nor false: it becomes a crowd over its
    box, and a note counts these. An area that the file does not state is that of the mask. Every image record gets a
    size: the stated one, else that of its masks, else the picture's. A set of whose things none has a mask raises
    DataError.
    """
    sizes: dict[Any, tuple[int, int]] = {}
    for annotation in truth["annotations"]:
        if isinstance(annotation.get("segmentation"), dict):
            _note_size(sizes, annotation)
    images = [_with_size(record, sizes.get(record["id"])) for record in truth["images"]]
    size_of = {record["id"]: (record["height"], record["width"]) for record in images}
    things = sum(not annotation["iscrowd"] for annotation in truth["annotations"])
    broken: list[str] = []
    annotations = [_with_mask(a, size_of[a["image_id"]], broken) for a in truth["annotations"]]
    without = sum(bool(new.get("maskless")) for new in annotations)
    if things and not any(not annotation["iscrowd"] for annotation in annotations):
        first = f"; the first problem: {broken[0]}" if broken else ""
        raise DataError(
            f'{path}: none of its {things} things has a mask ("segmentation": polygons or run lengths){first}'
            "; its boxes alone can be measured"
        )
    notes = [*truth["notes"]]
    if without:
        notes.append(f"{without} of {things} things have no mask and are neither to be found nor false")
    if broken:
        notes.append(left_out(path, broken))
    return {**truth, "images": images, "annotations": annotations, "notes": notes}


def _note_size(sizes: dict[Any, tuple[int, int]], annotation: dict[str, Any]) -> None:
    try:
        sizes.setdefault(annotation["image_id"], rle_size(annotation["segmentation"]))
    except DataError:  # said when the mask is read
        return


def _with_size(record: dict[str, Any], of_masks: tuple[int, int] | None) -> dict[str, Any]:
    width, height = stated_size(record) or (of_masks or (0, 0))[::-1]
    if not (width and height):
        width, height = upright_size(record["source"]) or (1, 1)
    return {**record, "width": max(1, round(width)), "height": max(1, round(height))}


def _with_mask(annotation: dict[str, Any], image_hw: tuple[int, int], broken: list[str]) -> dict[str, Any]:
    """An annotation with its mask, or as a crowd over its box."""
    kept = {key: value for key, value in annotation.items() if key not in ("area_stated", "where")}
    outline = annotation.get("segmentation")
    try:
        if outline:
            rle = outline_rle(outline, image_hw)
            area = annotation["area"] if annotation.get("area_stated") else float(rle_area(rle))
            return kept | {"segmentation": rle, "area": area}
        maskless = not annotation["iscrowd"]  # exports of sets with boxes have empty lists
    except DataError as error:
        broken.append(f"{annotation['where']}: {error}")
        maskless = False
    covered = {"segmentation": box_rle(annotation["bbox"], image_hw), "iscrowd": 1, "vague": True}
    return kept | covered | ({"maskless": True} if maskless else {})
