"""Annotation files that the protocols read, and the pictures of a set through the encoder one by one."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from owl_swin.boxes import xyxy_to_xywh
from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage
from owl_swin.errors import DataError, ImageError
from owl_swin.types import Detections

Progress = Callable[[int, int], None]

# Pictures that are decoded and encoded together.
BATCH = 8
# Of these lists LVIS says what was looked for in a picture.
LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def read_json(path: str | Path) -> Any:
    """A JSON file; one that cannot be read raises DataError."""
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file ({error})") from None


def read_boxes(path: str | Path, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """A COCO or LVIS detection file as a dict of images, categories and annotations, with the keys that are used.

    Annotations of pictures or classes that the file does not list are left out; with ``classes``, so are all others.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text())
        truth: dict[str, Any] = {
            "info": {},
            "images": [_image(record) for record in data["images"]],
            "categories": [
                {"id": c["id"], "name": c["name"]} | ({"frequency": c["frequency"]} if "frequency" in c else {})
                for c in data["categories"]
            ],
        }
        annotations = [{"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a} for a in data["annotations"]]
        places = [(a["category_id"], a["image_id"]) for a in annotations]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: not a COCO detection file (problem with {error})") from None
    if classes is not None:
        truth["categories"] = [c for c in truth["categories"] if c["name"] in check_names(truth, classes, path)]
    category_ids, image_ids = ({record["id"] for record in truth[key]} for key in ("categories", "images"))
    truth["annotations"] = [
        annotation
        for annotation, (category, image) in zip(annotations, places, strict=True)
        if category in category_ids and image in image_ids
    ]
    return truth


def check_names(truth: dict[str, Any], classes: Sequence[str], path: str | Path) -> set[str]:
    """The names as a set; one that is no class of the file raises DataError."""
    known = [c["name"] for c in truth["categories"]]
    for name in classes:
        if name not in known:
            raise DataError(f"{path}: has no class {name!r}; its classes are {', '.join(known)}")
    return set(classes)


def without_background(truth: dict[str, Any]) -> dict[str, Any]:
    """The set without a category of id 0 that has no boxes, as Roboflow's exports add one for the whole."""
    used = {a["category_id"] for a in truth["annotations"]}
    return {**truth, "categories": [c for c in truth["categories"] if c["id"] != 0 or 0 in used]}


def counted_boxes(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations that must be found: all but crowds."""
    return [a for a in truth["annotations"] if not a.get("iscrowd")]


def encode_set(
    detector: Detector,
    records: Sequence[dict[str, Any]],
    images: str | Path,
    broken: list[str],
    progress: Progress | None = None,
) -> Iterator[tuple[dict[str, Any], EncodedImage]]:
    """Each record with its encoded picture, in order; a picture that cannot be read is added to ``broken`` instead."""
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        paths = [Path(images) / record["file_name"] for record in batch]
        for offset, encoded in enumerate(_encode_batch(detector, paths, broken)):
            if encoded is not None:
                yield batch[offset], encoded
            if progress is not None:
                progress(start + offset + 1, len(records))


def _encode_batch(detector: Detector, paths: list[Path], broken: list[str]) -> list[EncodedImage | None]:
    try:
        return list(detector.encode_images(paths, batch_size=BATCH))
    except ImageError:  # one of them cannot be read: which one?
        encoded: list[EncodedImage | None] = []
        for path in paths:
            try:
                encoded.append(detector.encode_image(path))
            except ImageError as error:
                broken.append(str(error))
                encoded.append(None)
        return encoded


def coco_rows(found: Detections, record: dict[str, Any], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO result rows of one picture, in annotated pixels; label i is the class ``category_ids[i]``."""
    boxes = xyxy_to_xywh(in_annotated_pixels(found, record)).tolist()
    return [
        {"image_id": record["id"], "category_id": category_ids[label], "bbox": box, "score": score}
        for box, label, score in zip(boxes, found.labels.tolist(), found.scores.tolist(), strict=True)
    ]


def in_annotated_pixels(found: Detections, record: dict[str, Any]) -> torch.Tensor:
    """Boxes [N, 4], xyxy, in a picture of the size that the annotation file states."""
    height, width = found.image_hw
    scale = torch.tensor([record["width"] / width, record["height"] / height] * 2)
    return found.boxes.cpu() * scale


def _image(record: dict[str, Any]) -> dict[str, Any]:
    """The keys of one picture's record; LVIS gives an address where COCO gives a file name."""
    name = record["file_name"] if "file_name" in record else "/".join(record["coco_url"].split("/")[-2:])
    image = {"id": record["id"], "file_name": name, "width": record["width"], "height": record["height"]}
    return image | {key: list(record[key]) for key in LVIS_LISTS if key in record}
