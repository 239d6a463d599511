"""Pascal VOC XML, one file a picture, as VOC itself, LabelImg and many exporters write it."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from owl_swin.data.naming import spoken_names
from owl_swin.data.scene import BoxList, Scene, Scenes
from owl_swin.files import read_text
from owl_swin.image import PICTURE_SUFFIXES

# VOC writes some names as one word, which a text encoder does not know.
SPOKEN = {
    "aeroplane": "aeroplane, airplane",
    "diningtable": "dining table",
    "motorbike": "motorbike, motorcycle",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor, tv",
}


def read_voc(path: Path, images: str) -> Scenes:
    """A folder of XML files, the folder above "Annotations", or an image-set list (ImageSets/Main/train.txt).

    Pictures lie in ``images``, else in "JPEGImages" or "images" beside the folder of XML files, else among them.
    Corners count from 1 and the last pixel is inside, as in VOC. Objects marked difficult are left out; their names are
    unknown in the picture.
    """
    broken: list[str] = []
    files = annotation_files(path)
    folder = Path(images) if images else _pictures_beside(files[0].parent if files else path)
    records = []
    for file in files:
        try:
            records.append((file, ET.parse(file).getroot()))
        except (OSError, ET.ParseError, ValueError, LookupError) as error:  # the last: of an unknown encoding
            reason = getattr(error, "strerror", None) or error
            broken.append(f"{file}: not an XML file that can be read ({reason})")
    seen = {_text(node, "name") for _, root in records for node in root.findall("object")} - {""}
    rows = {name: row for row, name in enumerate(sorted(seen))}
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    scenes = [_scene(file, root, folder, there, rows, broken) for file, root in records]
    return Scenes(scenes, [spoken_names(SPOKEN.get(name, name)) or [name] for name in rows], broken)


def annotation_files(path: Path) -> list[Path]:
    """The XML files that a folder or an image-set list names, in order."""
    if path.is_dir():
        inner = path / "Annotations"
        return sorted((inner if inner.is_dir() else path).glob("*.xml"))
    folder = next((up / "Annotations" for up in path.parents[:3] if (up / "Annotations").is_dir()), path.parent)
    # The lists of one class have a second column that says whether it occurs.
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    files = []
    for line in lines:
        whole = folder / f"{line.removesuffix('.xml')}.xml"
        stem = re.sub(r"\s+-?[01]$", "", line)
        files.append(whole if whole.is_file() else folder / f"{stem.removesuffix('.xml')}.xml")
    return files


def _scene(
    file: Path, root: ET.Element, folder: Path, there: set[str], rows: dict[str, int], broken: list[str]
) -> Scene:
    boxes = BoxList(broken, _stated_size(root))
    for place, node in enumerate(root.findall("object"), start=1):
        where, name = f"{file.name} object {place}", _text(node, "name")
        if not name:
            broken.append(f"{where}: has no name")
        elif _text(node, "difficult") == "1":
            boxes.unknown.append(rows[name])
        else:
            corners = [_text(node, f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
            boxes.add(where, rows[name], _from_one(corners), as_given=corners)
    stated = _text(root, "filename").replace("\\", "/").rsplit("/", 1)[-1]
    # What augments a set often leaves the first picture's name in each copy of its file.
    candidates = [*(file.stem + suffix for suffix in PICTURE_SUFFIXES), stated]
    if Path(stated).stem == file.stem:
        candidates.insert(0, stated)
    name = next((name for name in candidates if name in there), stated or f"{file.stem}.jpg")
    return boxes.scene(folder / name)


def _from_one(corners: list[str]) -> list[float]:
    try:
        x0, y0, x1, y1 = (float(corner) for corner in corners)
    except ValueError:
        return []
    return [x0 - 1, y0 - 1, x1, y1]


def _stated_size(root: ET.Element) -> tuple[int, int] | None:
    try:
        width, height = int(_text(root, "size/width")), int(_text(root, "size/height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None


def _pictures_beside(folder: Path) -> Path:
    for name in ("JPEGImages", "images"):
        if (folder.parent / name).is_dir():
            return folder.parent / name
    return folder


def _text(node: ET.Element, path: str) -> str:
    return (node.findtext(path) or "").strip()
