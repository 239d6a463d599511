"""What an evaluation compares answers with: a COCO or LVIS file through the reader that training has too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owl_swin.data.broken import left_out, reading
from owl_swin.data.coco import LVIS_LISTS, read_coco_file
from owl_swin.data.naming import find_classes
from owl_swin.data.scene import missing_files
from owl_swin.errors import DataError


def read_truth(
    annotations: str | Path, images: str | Path, classes: Sequence[str] | None = None, *, background: bool = False
) -> dict[str, Any]:
    """A set in COCO's form, as CocoFile has it: "images", "categories", "annotations"; "notes" say what was left out.

    With ``classes``, only these and their annotations. A category of id 0 without boxes, which Roboflow's exports add
    for the whole, goes unless ``background``. A set of whose pictures or annotations none is there raises DataError.
    """
    path = Path(annotations)
    with reading(path, "a COCO detection file"):
        file = read_coco_file(path, Path(images))
    if file.images and file.categories and file.n_annotations and not file.annotations:
        many = f"none of its {file.n_annotations} annotations"
        raise DataError(f"{path}: {many} can be used; the first problem: {file.broken[0]}")
    check_pictures([image["source"] for image in file.images], path)
    truth: dict[str, Any] = {
        "info": {},
        "images": file.images,
        "categories": file.categories,
        "annotations": file.annotations,
        "notes": [left_out(path, file.broken)] if file.broken else [],
    }
    if not background:
        used = {annotation["category_id"] for annotation in file.annotations}
        truth = only_categories(truth, [c["id"] for c in file.categories if c["id"] != 0 or 0 in used])
    if classes is not None:
        truth = only_categories(truth, class_ids(truth, classes, path))
    if truth["images"] and not counted_boxes(truth):
        n_classes, n_images = len(truth["categories"]), len(truth["images"])
        truth["notes"].append(f"no average precision: no box of {n_classes} classes is in {n_images} pictures")
    return truth


def is_federated(truth: dict[str, Any]) -> bool:
    """Whether the set says of its pictures which classes were looked for, as LVIS does."""
    return any(LVIS_LISTS[0] in record for record in truth["images"])


def check_pictures(sources: Sequence[Path], where: Path) -> None:
    """Raises DataError when there are pictures and none of their files is there, as with a wrong folder."""
    if sources and len(missing_files(sources)) == len(set(sources)):
        raise DataError(
            f"{where}: none of its {len(sources)} pictures is there, the first would be {sources[0]}; "
            "name the folder of the pictures"
        )


def class_ids(truth: dict[str, Any], classes: Sequence[str], where: str | Path) -> list[Any]:
    """Category ids of classes called by their names; one that is no class of the set raises DataError."""
    categories = truth["categories"]
    return [categories[row]["id"] for row in find_classes(classes, [c["name"] for c in categories], where)]


def only_categories(truth: dict[str, Any], ids: Sequence[Any]) -> dict[str, Any]:
    """The set with some of its categories, in its own order, and their annotations."""
    kept = set(ids)
    return {
        **truth,
        "categories": [c for c in truth["categories"] if c["id"] in kept],
        "annotations": [a for a in truth["annotations"] if a["category_id"] in kept],
    }


def one_category_a_name(truth: dict[str, Any]) -> dict[str, Any]:
    """The set with categories of one name made one: what is asked by name or shown cannot tell them apart."""
    first: dict[str, Any] = {}
    same = {c["id"]: first.setdefault(c["name"], c["id"]) for c in truth["categories"]}
    annotations = [{**a, "category_id": same[a["category_id"]]} for a in truth["annotations"]]
    return only_categories({**truth, "annotations": annotations}, list(first.values()))


def counted_boxes(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations that must be found: all but crowds."""
    return [a for a in truth["annotations"] if not a.get("iscrowd")]
