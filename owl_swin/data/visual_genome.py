"""Visual Genome (arXiv:1602.07332): objects with free names, or regions with whole phrases."""

from pathlib import Path
from typing import Any

from owl_swin.data.coco import stated_size
from owl_swin.data.naming import pictures_in, spoken
from owl_swin.data.scene import BoxList, Scenes, no_rows
from owl_swin.files import read_json


def read_visual_genome(path: Path, images: Path) -> Scenes:
    """objects.json or region_descriptions.json; pictures lie in ``images`` or folders in it (VG_100K, VG_100K_2).

    Nobody looked for names that are not given, so no picture has verified negatives. Sizes come from image_data.json
    beside the file, where it is; without it the boxes are taken as pixels of the stored pictures.
    """
    data = read_json(path)
    sizes_file = path.parent / "image_data.json"
    sizes = {r.get("image_id", r.get("id")): stated_size(r) for r in _list(sizes_file)} if sizes_file.is_file() else {}
    files = {file.stem: file for file in pictures_in(images)} if images.is_dir() else {}
    rows: dict[str, int] = {}
    broken: list[str] = []
    scenes = []
    for place, record in enumerate(data, start=1):
        try:
            image_id = record.get("image_id", record.get("id"))
            entries = record["objects"] if "objects" in record else record["regions"]
            boxes = BoxList(broken, sizes.get(image_id))
            for number, entry in enumerate(entries, start=1):
                _add(boxes, entry, f"picture {image_id} entry {number}", rows)
        except (KeyError, TypeError, AttributeError) as error:
            broken.append(f"record number {place}: neither objects nor regions of a picture (problem with {error})")
            continue
        source = files.get(str(image_id), images / f"{image_id}.jpg")
        scenes.append(boxes.scene(source, negatives=no_rows()))
    return Scenes(scenes, [[name] for name in rows], broken)


def _add(boxes: BoxList, entry: Any, where: str, rows: dict[str, int]) -> None:
    """Adds an object under each of its names, or a region under its phrase."""
    given = entry.get("names") or entry.get("name") or entry.get("phrase") or ()
    names = [spoken(name).lower().rstrip(".") for name in ([given] if isinstance(given, str) else given)]
    names = list(dict.fromkeys(filter(None, names)))
    if not names:
        boxes.broken.append(f"{where}: has no name")
    values = [entry.get(key, entry.get(long)) for key, long in zip("xywh", ("x", "y", "width", "height"), strict=True)]
    try:
        x, y, w, h = (float(value) for value in values)
        corners: tuple[float, ...] = (x, y, x + w, y + h)
    except (TypeError, ValueError, OverflowError):
        corners = ()
    for name in names:
        boxes.add(where, rows.setdefault(name, len(rows)), corners, as_given=values)


def _list(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    return [record for record in content if isinstance(record, dict)]
