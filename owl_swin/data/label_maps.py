"""Pictures of which each pixel has a class: PNG label maps as ADE20K's, COCO panoptic, or the masks of a COCO file."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.broken import reading
from owl_swin.data.map_files import read_label_map, read_segment_map
from owl_swin.data.naming import find_classes, pictures_in, place_pictures
from owl_swin.data.panoptic import folder_of_maps, said_category
from owl_swin.data.truth import check_pictures, read_truth
from owl_swin.errors import DataError
from owl_swin.files import read_json, read_text
from owl_swin.rle import decode_rle
from owl_swin.semantic_map import NOTHING

# At a pixel that is not judged.
IGNORED = -2
# Values that a map can have, and the mark of those that nobody named.
VALUES, UNNAMED = 65536, -3
# "12: wall", "12<tab>wall" in a list of names.
NUMBERED = re.compile(r"\s*(\d+)\s*[:\t]\s*(.*\S)\s*")


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A picture and what gives its labels [H, W] int32: rows of the set's names, NOTHING or IGNORED."""

    source: Path
    labels: Callable[[], np.ndarray]


@dataclass(frozen=True, slots=True)
class LabelMaps:
    """A set of pictures of which each pixel has one of ``names``. ``has_nothing``: or none of them, which is judged
    too; ``notes`` say what was left out."""

    names: tuple[str, ...]
    pictures: list[LabelledPicture]
    has_nothing: bool = False
    notes: list[str] = field(default_factory=list)

    def only(self, classes: Sequence[str], where: str | Path) -> "LabelMaps":
        """The set with some of its classes; pixels of the others are not judged."""
        rows = sorted(find_classes(classes, self.names, where))
        change = np.full(len(self.names) + 2, IGNORED, dtype=np.int32)
        change[rows] = np.arange(len(rows))
        change[[NOTHING, IGNORED]] = NOTHING, IGNORED
        pictures = [LabelledPicture(one.source, partial(_changed, one.labels, change)) for one in self.pictures]
        return LabelMaps(tuple(self.names[row] for row in rows), pictures, self.has_nothing, self.notes)


def read_label_maps(
    annotations: str | Path,
    images: str | Path,
    *,
    names: Mapping[int, str] | Sequence[str] | None = None,
    ignore: Sequence[int] = (255,),
    nothing: int | None = None,
) -> LabelMaps:
    """A folder of label maps, called as their pictures; COCO panoptic JSON; or a COCO file with masks.

    Of label maps ``names`` are those of the values, in a list those of all values from 0 on but ``ignore``, which are
    not judged, and ``nothing``, which is of what shows none of the names. So ADE20K's are ``ignore=[0]``, Pascal VOC's
    ``nothing=0``. In a COCO file a pixel that no mask covers shows nothing, and of two masks the smaller one counts.
    """
    path = Path(annotations)
    if path.is_dir():
        if not names:
            raise DataError(f"{path}: label maps are numbers; name the list of what they mean with --names")
        return _folder(path, Path(images), names, ignore, nothing)
    if path.suffix.lower() != ".json":
        raise DataError(f"{path}: expected a folder of label maps, or a COCO file with masks")
    with reading(path, "a COCO file"):
        content = read_json(path)
        things = content["annotations"]
        if things and "segments_info" in things[0]:
            return _panoptic(path, Path(images), content)
    return _of_masks(path, Path(images))


def read_value_names(path: str | Path) -> dict[int, str] | list[str]:
    """The names in a file: one a line, "12: wall" or "12<tab>wall" where lines have their values, ADE20K's own table
    (objectInfo150.txt), or JSON: a list, or an object of values and names."""
    path = Path(path)
    with reading(path, "a list of names"):
        if path.suffix.lower() == ".json":
            content = read_json(path)
            named = isinstance(content, dict)
            names = {int(value): str(name) for value, name in content.items()} if named else [*map(str, content)]
        else:
            names = _names_of(read_text(path))
    if not names:
        raise DataError(f"{path}: holds no names; expected one a line, or JSON of values and names")
    return names


def _names_of(text: str) -> dict[int, str] | list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and lines[0].startswith("Idx\t"):
        columns = [line.split("\t") for line in lines[1:]]
        return {int(row[0]): row[-1].strip() for row in columns if row[0].isdigit()}
    numbered = [found for found in map(NUMBERED.fullmatch, lines) if found]
    return {int(found[1]): found[2] for found in numbered} if lines and len(numbered) == len(lines) else lines


def _folder(
    folder: Path,
    images: Path,
    names: Mapping[int, str] | Sequence[str],
    ignore: Sequence[int],
    nothing: int | None,
) -> LabelMaps:
    if not images.is_dir():
        raise DataError(f"{images}: no such folder; it should hold the pictures of the label maps")
    apart = {*ignore} | ({nothing} if nothing is not None else set())
    if apart and not 0 <= min(apart) <= max(apart) < VALUES:
        raise DataError(f"{folder}: label maps have values of 0 to {VALUES - 1}, not {[*apart]}")
    if not isinstance(names, Mapping):
        free = (value for value in range(VALUES) if value not in apart)
        names = dict(zip(free, names, strict=False))
    rows = list(dict.fromkeys(names[value] for value in sorted(names) if value not in apart))
    row_of = {name: row for row, name in enumerate(rows)}
    lookup = np.full(VALUES, UNNAMED, dtype=np.int32)
    for value, name in names.items():
        if 0 <= value < VALUES:
            lookup[value] = row_of.get(name, UNNAMED)
    lookup[list(ignore)] = IGNORED
    if nothing is not None:
        lookup[nothing] = NOTHING
    stem = {path.relative_to(folder).with_suffix("").as_posix(): path for path in pictures_in(folder)}
    pictures, without = [], 0
    for source in pictures_in(images):
        own = stem.pop(source.relative_to(images).with_suffix("").as_posix(), None)
        if own is None:
            without += 1
        else:
            pictures.append(LabelledPicture(source, partial(_looked_up, own, lookup)))
    if not pictures:
        raise DataError(f"{folder}: no map in it is called as a picture in {images}; expected a.png for a.jpg")
    notes = []
    if without or stem:
        notes.append(f"left out: {without} pictures without a map and {len(stem)} maps without a picture")
    return LabelMaps(tuple(rows), pictures, nothing is not None, notes)


def _looked_up(path: Path, lookup: np.ndarray) -> np.ndarray:
    values = read_label_map(path)
    labels = lookup[np.clip(values, 0, VALUES - 1)]
    unnamed = (labels == UNNAMED) | (values < 0)
    if unnamed.any():
        value, last = int(values[unnamed].max()), int(np.flatnonzero(lookup >= 0).max(initial=-1))
        shifted = "; where 0 is no class, as in ADE20K's maps, say --ignore 0" if value == last + 1 else ""
        raise DataError(
            f"{path}: its value {value} has no name, the last that has one is {last}; give a list that names it, or "
            f"--ignore {value}{shifted}"
        )
    return labels


def _changed(labels: Callable[[], np.ndarray], change: np.ndarray) -> np.ndarray:
    return change[labels()]


def _of_masks(path: Path, images: Path) -> LabelMaps:
    truth = read_truth(path, images, masks=True)
    names = list(dict.fromkeys(category["name"] for category in truth["categories"]))
    row_of = {category["id"]: names.index(category["name"]) for category in truth["categories"]}
    things: dict[Any, list[tuple[int, dict[str, Any]]]] = {record["id"]: [] for record in truth["images"]}
    # What is unsure is painted first, and the smallest last.
    for annotation in sorted(truth["annotations"], key=lambda a: (not a.get("vague"), -a["area"])):
        row = IGNORED if annotation.get("vague") else row_of[annotation["category_id"]]
        things[annotation["image_id"]].append((row, annotation["segmentation"]))
    pictures = [
        LabelledPicture(record["source"], partial(_painted, (record["height"], record["width"]), things[record["id"]]))
        for record in truth["images"]
    ]
    return LabelMaps(tuple(names), pictures, has_nothing=True, notes=truth["notes"])


def _painted(image_hw: tuple[int, int], things: Sequence[tuple[int, dict[str, Any]]]) -> np.ndarray:
    labels = np.full(image_hw, NOTHING, dtype=np.int32)
    for row, rle in things:
        labels[decode_rle(rle)] = row
    return labels


def _panoptic(path: Path, images: Path, content: dict[str, Any]) -> LabelMaps:
    """Of segments that are of no class nothing is known. Classes are called as in training."""
    name_of = {category["id"]: str(said_category(category)["name"]) for category in content["categories"]}
    names = list(dict.fromkeys(name_of.values()))
    row_of = {category: names.index(name) for category, name in name_of.items()}
    folder = folder_of_maps(path)
    segments = {record["image_id"]: record for record in content["annotations"]}
    known = [record for record in content["images"] if record["id"] in segments]
    sources = place_pictures(images, [str(record["file_name"]) for record in known])
    check_pictures(sources, path)
    pictures = []
    for source, record in zip(sources, known, strict=True):
        own = segments[record["id"]]
        rows = {int(one["id"]): row_of[one["category_id"]] for one in own["segments_info"]}
        pictures.append(LabelledPicture(source, partial(_of_segments, folder / str(own["file_name"]), rows)))
    return LabelMaps(tuple(names), pictures)


def _of_segments(path: Path, rows: Mapping[int, int]) -> np.ndarray:
    segments = read_segment_map(path)
    ids, places = np.unique(segments, return_inverse=True)
    return np.array([rows.get(int(i), IGNORED) for i in ids], dtype=np.int32)[places].reshape(segments.shape)
