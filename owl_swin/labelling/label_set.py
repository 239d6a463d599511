"""Labelled pictures as a data set in COCO's form whose annotations carry a score, and as tasks of Label Studio."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from owl_swin.detections import Detections
from owl_swin.label_studio import to_label_studio
from owl_swin.labelling.journal import LabelledPicture


def label_set(
    pictures: Sequence[LabelledPicture], root: str, listed: Sequence[str], info: dict[str, Any]
) -> dict[str, Any]:
    """The set; files are named from ``root`` on, boxes are [x, y, width, height], ids count from 1.

    Categories are the names that were looked for in every picture (``listed``), then those of captions that were found
    somewhere. Where captions gave names, each picture says as LVIS does which categories were looked for in vain: of
    the others nothing is known there.
    """
    found = dict.fromkeys(name for picture in pictures for name in picture.names)
    category_ids = {name: number for number, name in enumerate(dict.fromkeys([*listed, *found]), start=1)}
    by_captions = any(picture.asked for picture in pictures)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, start=1):
        name = os.path.relpath(picture.image, root)
        record: dict[str, Any] = {"id": image_id, "file_name": name.replace(os.sep, "/")}
        record |= {"width": picture.width, "height": picture.height}
        if by_captions:
            absent = dict.fromkeys([*listed, *picture.asked])
            absent_ids = [category_ids[one] for one in absent if one in category_ids and one not in picture.names]
            record |= {"neg_category_ids": absent_ids, "not_exhaustive_category_ids": []}
        images.append(record)
        for name, score, (x0, y0, x1, y1) in zip(picture.names, picture.scores, picture.boxes, strict=True):
            box = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[name],
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    return {"info": info, "images": images, "categories": categories, "annotations": annotations}


def label_studio_tasks(
    pictures: Sequence[LabelledPicture], *, made_by: str, root: str | os.PathLike[str] | None = None
) -> list[dict[str, Any]]:
    """Tasks with the boxes as predictions, to be corrected; ``root`` as in ``formats.to_label_studio``."""
    found = [_detections(picture) for picture in pictures]
    return to_label_studio([picture.image for picture in pictures], found, model_version=made_by, root=root)


def _detections(picture: LabelledPicture) -> Detections:
    names = tuple(dict.fromkeys(picture.names))
    return Detections(
        torch.tensor(picture.boxes, dtype=torch.float64).reshape(-1, 4),
        torch.tensor(picture.scores, dtype=torch.float64),
        torch.tensor([names.index(name) for name in picture.names], dtype=torch.long),
        names,
        (picture.height, picture.width),
        torch.zeros(len(picture.names), dtype=torch.long),
    )
