"""What an evaluation compares answers with: a COCO or LVIS file through the reader that training has too."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.broken import left_out, reading
from owl_swin.data.coco import LVIS_LISTS, CocoFile, cut_xywh, read_coco_file, stated_size
from owl_swin.data.guess import guess_kind
from owl_swin.data.label_studio import read_label_studio
from owl_swin.data.mask_truth import with_masks
from owl_swin.data.naming import find_classes
from owl_swin.data.scene import missing_files, upright_size
from owl_swin.data.voc import read_voc
from owl_swin.data.yolo import read_yolo
from owl_swin.errors import DataError

logger = logging.getLogger("owl_swin")

# Kinds of sets in other forms than COCO's.
BOX_FORMS = ("yolo", "voc", "label_studio")
# A guessed box with a score below this is as likely wrong as right: no truth to compare answers with.
LEAST_SURE = 0.5


def read_truth(
    annotations: str | Path,
    images: str | Path,
    classes: Sequence[str] | None = None,
    *,
    background: bool = False,
    ignore_below: float = LEAST_SURE,
    masks: bool = False,
) -> dict[str, Any]:
    """A set in COCO's form, as CocoFile has it: "images", "categories", "annotations"; "notes" say what was left out.

    The file is in COCO's or LVIS' form; or it is YOLO's data.yaml or list of classes, a folder or list of Pascal VOC,
    or an export of Label Studio.

    With ``classes``, only these and their annotations. A category of id 0 without boxes, which Roboflow's exports add
    for the whole, goes unless ``background``. A guessed box whose ``score`` is under ``ignore_below`` is neither to be
    found nor false: it becomes a crowd that is ``vague``, or in LVIS a name that was not annotated exhaustively. A set
    of whose pictures or annotations none is there raises DataError.

    With ``masks`` each annotation has its mask as run lengths, as ``mask_truth.with_masks`` says.
    """
    path = Path(annotations)
    kind = guess_kind(str(path)) if path.suffix != ".json" or _is_list(path) else None
    with reading(path, "a COCO detection file"):
        file = (
            _as_coco(path, kind, Path(images), ignore_below)
            if kind in BOX_FORMS
            else read_coco_file(path, Path(images), outlines=masks)
        )
    if file.images and file.categories and file.n_annotations and not file.annotations:
        many = f"none of its {file.n_annotations} annotations"
        raise DataError(f"{path}: {many} can be used; the first problem: {file.broken[0]}")
    check_pictures([image["source"] for image in file.images], path)
    annotated = _inside_pictures(file)  # which adds to what is broken
    truth: dict[str, Any] = {
        "info": {},
        "images": file.images,
        "categories": file.categories,
        "annotations": annotated,
        "notes": [left_out(path, file.broken)] if file.broken else [],
    }
    truth = _without_vague(truth, ignore_below)
    if masks:
        truth = with_masks(truth, path)
    if not background:
        used = {annotation["category_id"] for annotation in file.annotations}
        truth = only_categories(truth, [c["id"] for c in file.categories if c["id"] != 0 or 0 in used])
    if classes is not None:
        truth = only_categories(truth, class_ids(truth, classes, path))
    if truth["images"] and not counted_boxes(truth):
        n_classes, n_images = len(truth["categories"]), len(truth["images"])
        truth["notes"].append(f"no average precision: no box of {n_classes} classes is in {n_images} pictures")
    return truth


def _inside_pictures(file: CocoFile) -> list[dict[str, Any]]:
    """The annotations, cut to their pictures also where the file states no size: what lies outside of one is not there
    to be found."""
    sizes = {one["id"]: stated_size(one) or upright_size(one["source"]) for one in file.images}
    inside = []
    for a in file.annotations:
        box = cut_xywh(tuple(a["bbox"]), sizes[a["image_id"]])
        if isinstance(box, str):
            file.broken.append(f"picture {a['image_id']}: {box} {a['bbox']}")
        else:
            cut = {} if box == tuple(a["bbox"]) else {"bbox": list(box), "area": min(a["area"], box[2] * box[3])}
            inside.append(a | cut)
    return inside


def _without_vague(truth: dict[str, Any], ignore_below: float) -> dict[str, Any]:
    """The set with the guessed boxes of a score under ``ignore_below`` as what is neither to be found nor false."""

    def is_vague(annotation: dict[str, Any]) -> bool:
        return not annotation["iscrowd"] and (
            annotation.get("score", 1.0) < ignore_below or annotation.get("score") == 0
        )

    vague = [a for a in truth["annotations"] if is_vague(a)]
    if not vague:
        return truth
    said = f"{len(vague)} guessed boxes with a score under {ignore_below:g} are neither to be found nor false"
    truth = {**truth, "notes": [*truth["notes"], said]}
    if not is_federated(truth):
        crowds = [{**a, "iscrowd": 1, "vague": True} if is_vague(a) else a for a in truth["annotations"]]
        return {**truth, "annotations": crowds}
    pairs: dict[Any, set[Any]] = {}
    for a in vague:
        pairs.setdefault(a["image_id"], set()).add(a["category_id"])
    negatives, not_exhaustive = LVIS_LISTS
    records = [
        {
            **record,
            negatives: [i for i in record.get(negatives, ()) if i not in pairs.get(record["id"], ())],
            not_exhaustive: list(dict.fromkeys([*record.get(not_exhaustive, ()), *pairs.get(record["id"], ())])),
        }
        for record in truth["images"]
    ]
    return {**truth, "images": records, "annotations": [a for a in truth["annotations"] if not is_vague(a)]}


def _is_list(path: Path) -> bool:
    """Whether a JSON file holds a list, as no set in COCO's form does."""
    try:
        with open(path, "rb") as file:
            return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    except (OSError, ValueError):
        return False


def _as_coco(path: Path, kind: str | None, images: Path, ignore_below: float) -> CocoFile:
    """A set in one of BOX_FORMS. Where boxes of a class may be missing in a picture, as VOC's difficult things are,
    no answer of the class is false there: a crowd of it fills the picture."""
    if kind == "yolo":
        scenes = read_yolo(path, str(images), "", ignore_below=ignore_below)
    else:
        scenes = (read_voc if kind == "voc" else read_label_studio)(path, str(images))
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes.scenes, start=1):
        width, height = scene.stated_wh or (1, 1)
        scale = np.ones(4)
        if (width, height) == (1, 1):
            width, height = upright_size(scene.source) or (1, 1)
            scale = np.array([width, height] * 2) if scene.stated_wh else scale
        record = {"id": number, "file_name": scene.source.name, "source": scene.source}
        records.append(record | {"width": width, "height": height})
        for label, box in zip(scene.labels.tolist(), scene.boxes.astype(float) * scale, strict=True):
            annotations.append(_annotation(number, label, box))
        for label, box in zip(scene.vague_labels.tolist(), scene.vague_boxes.astype(float) * scale, strict=True):
            annotations.append(_annotation(number, label, box) | {"score": 0.0})
        whole = np.array([0, 0, width, height], dtype=float)
        unsure = [_annotation(number, label, whole, iscrowd=1) | {"vague": True} for label in scene.unknown.tolist()]
        annotations += unsure
    categories = [
        {"id": number, "name": ", ".join(names), "names": names, "synonyms": []}
        for number, names in enumerate(scenes.names, start=1)
    ]
    return CocoFile(records, categories, annotations, [], scenes.broken, len(annotations))


def _annotation(image_id: int, label: int, xyxy: np.ndarray, iscrowd: int = 0) -> dict[str, Any]:
    x0, y0, x1, y1 = xyxy.tolist()
    sides = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
    return {"image_id": image_id, "category_id": label + 1, "iscrowd": iscrowd, **sides}


def is_federated(truth: dict[str, Any]) -> bool:
    """Whether the set says of its pictures which classes were looked for, as LVIS does."""
    return any(LVIS_LISTS[0] in record for record in truth["images"])


def check_pictures(sources: Sequence[Path], where: Path) -> None:
    """Raises DataError when there are pictures and none of their files is there, as with a wrong folder; warns when
    some are not."""
    missing = list(missing_files(sources))
    if missing and len(missing) == len(set(sources)):
        raise DataError(
            f"{where}: none of its {len(sources)} pictures is there, the first would be {sources[0]}; "
            "name the folder of the pictures"
        )
    if missing:
        logger.warning(
            "%s: %d of %d pictures are not there, the first is %s", where, len(missing), len(sources), missing[0]
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
