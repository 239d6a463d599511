"""Which form a data set is in, by what lies there."""

import json
from pathlib import Path
from typing import Any

from owl_swin.data.label_studio import is_label_studio
from owl_swin.data.naming import pictures_in
from owl_swin.data.yolo import is_yolo
from owl_swin.errors import DataError
from owl_swin.files import read_json

BY_SUFFIX = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".tar": "captions", ".yaml": "yolo", ".yml": "yolo"}


def guess_kind(path: str) -> str | None:
    """A kind of DataConfig, or None where nothing looks like data. A damaged JSON file raises DataError."""
    place = Path(path)
    if place.suffix in BY_SUFFIX:
        return BY_SUFFIX[place.suffix]
    try:
        if place.is_dir():
            return _of_folder(place)
        if place.suffix == ".txt" and place.is_file():
            return "voc" if any((up / "Annotations").is_dir() for up in place.parents[:3]) else "yolo"
        if place.suffix == ".json" and place.is_file():
            return _of_json(read_json(place))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read as a data set ({reason})") from None
    return None


def _of_folder(folder: Path) -> str | None:
    if any(folder.glob("*.tar")):
        return "captions"
    if any(folder.glob("*.xml")) or any(folder.glob("Annotations/*.xml")):
        return "voc"
    if is_yolo(folder):
        return "yolo"
    inner = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    return "folders" if any(pictures_in(entry, deep=False) for entry in inner[:20]) else None


def _of_json(content: Any) -> str | None:
    if is_label_studio(content):
        return "label_studio"
    if isinstance(content, list):
        known = isinstance(content[0], dict) and {"objects", "regions"} & content[0].keys() if content else ()
        return "visual_genome" if known else None
    if not isinstance(content, dict):
        return None
    if "tile_px" in content:
        return "sheets"
    images, annotations = (
        [r for r in content.get(key) or () if isinstance(r, dict)] for key in ("images", "annotations")
    )
    if any("caption" in record for record in annotations[:20]):
        return "coco_captions"
    if any("neg_category_ids" in record for record in images[:20]):
        return "lvis"
    if any("segments_info" in record for record in annotations[:20]):
        return "coco_panoptic"
    for key, kind in (("label", "labelled"), ("name", "cutouts")):
        if not annotations and any(key in record for record in images[:20]):
            return kind
    return "coco" if images and "categories" in content else None
