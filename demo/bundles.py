"""What leaves the page of several photos: their answers in one zip, in each form."""

import io
import json
import re
import threading
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from owl_swin import (
    Detections,
    ImageError,
    draw_detections,
    label_studio_interface,
    to_coco,
    to_csv,
    to_label_studio,
    to_record,
    to_voc,
    to_yolo,
    yolo_data,
)
from owl_swin.demo.exports import annotation
from owl_swin.demo.photos import Photo
from owl_swin.demo.running import Stopped

PICTURES = "Pictures"
# A form, and what its zip is called.
FORMS = {
    "JSON": "json",
    "COCO": "coco",
    "YOLO": "yolo",
    "VOC": "voc",
    "CSV": "csv",
    "Label Studio": "label-studio",
    PICTURES: "boxes",
}
# Endings of the files about one photo, which no folder beside them may have.
ENDINGS = (".json", ".txt", ".xml", ".jpg")
# Signs that some file systems refuse, and names that Windows has for devices.
REFUSED = re.compile(r'[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# Of a path: folders above the file, and letters of a part, whose bytes file systems count.
MOST_FOLDERS, MOST_LETTERS = 8, 60
QUALITY = 90


@dataclass(frozen=True, slots=True)
class Answered:
    """A photo of the batch with what was found in it, ``edited`` by hand or not."""

    photo: Photo
    found: Detections
    edited: bool = False


def free_paths(names: Sequence[str]) -> list[str]:
    """Paths for files of these names in a zip, in order: with their folders and signs as far as all systems take them,
    never out of the folder that it is unpacked in, and no two that differ only in their ending or in capitals."""
    taken: set[str] = set()
    paths = []
    for name in names:
        folders, file = _safe_path(name)
        path, number = PurePosixPath(file), 1
        free = path.stem
        while (key := "/".join([*folders, free]).casefold()) in taken:
            number += 1
            free = f"{path.stem}-{number}"
        taken.add(key)
        paths.append("/".join([*folders, f"{free}{path.suffix}"]))
    return paths


def _safe_path(name: str) -> tuple[list[str], str]:
    parts = [part for part in unicodedata.normalize("NFC", name).replace("\\", "/").split("/") if part.strip(". ")]
    *folders, file = [_safe_part(part) for part in parts] or ["photo"]
    folders = [folder + "_" if folder.lower().endswith(ENDINGS) else folder for folder in folders[-MOST_FOLDERS:]]
    return folders, file


def _safe_part(part: str) -> str:
    part = REFUSED.sub("_", part).strip(" ").rstrip(".") or "_"
    if len(part) > MOST_LETTERS:
        stem, dot, ending = part.rpartition(".")
        ending = dot + ending if stem and len(ending) <= 5 else ""
        part = part[: MOST_LETTERS - len(ending)].rstrip(" .") + ending
    return f"_{part}" if DEVICES.fullmatch(part) else part


def write_bundle(path: Path, form: str, batch: Sequence[Answered], stop: threading.Event) -> Iterator[int]:
    """Writes the answers in one of FORMS, as `owl-swin detect --format` does, telling how many photos are done.

    Files are called as the photos are, in the folders that these came in. Raises Stopped when it was told to stop.
    """
    names, batch = free_paths([one.photo.name for one in batch]), with_same_names(batch)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in _whole(form, names, batch):
            bundle.writestr(name, text)
        for done, (name, one) in enumerate(zip(names, batch, strict=True), start=1):
            if stop.is_set():
                raise Stopped
            stem = PurePosixPath(name).with_suffix("")
            if form == "JSON":
                bundle.writestr(f"{stem}.json", json.dumps(to_record(name, one.found), indent=1) + "\n")
            elif form == "YOLO":
                bundle.writestr(f"labels/{stem}.txt", to_yolo(one.found))
            elif form == "VOC":
                bundle.writestr(f"Annotations/{stem}.xml", to_voc(name, one.found))
            elif form == PICTURES:
                bundle.writestr(f"{stem}.jpg", _drawn(one), zipfile.ZIP_STORED)  # packed already
            yield done


def with_same_names(batch: Sequence[Answered]) -> list[Answered]:
    """The same, each with the names of all in one order: boxes that were drawn by hand may have names of their own."""
    names = tuple(dict.fromkeys(name for one in batch for name in one.found.names))
    out = []
    for one in batch:
        labels = one.found.labels.new_tensor([names.index(one.found.names[i]) for i in one.found.labels.tolist()])
        out.append(replace(one, found=replace(one.found, names=names, labels=labels)))
    return out


def _whole(form: str, names: Sequence[str], batch: Sequence[Answered]) -> list[tuple[str, str]]:
    """The files that are about all photos together: name and content."""
    found = [one.found for one in batch]
    queries = found[0].names if found else ()
    if form == "COCO":
        return [("annotations.json", json.dumps(to_coco(names, found), indent=1) + "\n")]
    if form == "CSV":
        return [("detections.csv", to_csv(names, found))]
    if form == "YOLO":
        return [("data.yaml", yolo_data(queries))]
    if form == "Label Studio":
        tasks = to_label_studio(names, found)
        tasks = [annotation(task) if one.edited else task for task, one in zip(tasks, batch, strict=True)]
        return [
            ("tasks.json", json.dumps(tasks, indent=1) + "\n"),
            ("interface.xml", label_studio_interface(queries, masks=any(one.masks for one in found)) + "\n"),
        ]
    return []


def _drawn(one: Answered) -> bytes:
    try:
        image = one.photo.open()
    except ImageError as error:  # uploads are kept for a day
        raise ImageError(f"is no longer there ({error.reason}); choose it again", of=one.photo.name) from None
    content = io.BytesIO()
    draw_detections(image, one.found).save(content, "JPEG", quality=QUALITY)
    return content.getvalue()
