"""YOLO form: data.yaml or a list of class names, and a text file of relative boxes beside each picture's folder."""

from pathlib import Path
from typing import Any

from owl_swin.data.naming import pictures_in, spoken_names
from owl_swin.data.scene import BoxList, Scene, Scenes
from owl_swin.errors import DataError, MissingExtraError, brief
from owl_swin.files import read_text
from owl_swin.image import PICTURE_SUFFIXES

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
LIST_NAMES = ("classes.txt", "obj.names", "labels.txt")
# Boxes may reach over the border by a rounding error; beyond this they are in pixels.
LARGEST = 1.01


def read_yolo(path: Path, images: str, split: str, *, ignore_below: float = 0.0) -> Scenes:
    """data.yaml (``names``, ``path``, and pictures under the name of the split), classes.txt, or a folder with one.

    Labels of images/a.jpg lie in labels/a.txt, or beside the picture: "class cx cy w h" a line in fractions of the
    picture; of a polygon "class x y x y …" the box around it is taken, and of a pose (data.yaml has ``kpt_shape``) the
    box before its points. One number more is the score of a guessed box, and those under ``ignore_below`` become vague.
    A picture without a label file has no boxes.
    """
    path = next((path / name for name in YAML_NAMES + LIST_NAMES if (path / name).is_file()), path)
    if path.suffix in (".yaml", ".yml"):
        classes, places, pose = _read_yaml(path, "" if images else split)
    else:
        pose = 0
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        classes = dict(enumerate(names))
        places = [path.parent / "images" if (path.parent / "images").is_dir() else path.parent]
    broken: list[str] = []
    rows = {number: row for row, number in enumerate(sorted(classes))}
    pictures = [one for place in ([Path(images)] if images else places) for one in _pictures(place)]
    scenes = [_scene(one, rows, BoxList(broken, (1, 1), ignore_below=ignore_below), pose) for one in pictures]
    return Scenes(scenes, [spoken_names(classes[number]) or [classes[number]] for number in sorted(classes)], broken)


def label_file(picture: Path) -> Path:
    """Where the labels of a picture lie: the last folder "images" on its way becomes "labels"; else a folder "labels"
    beside its own has them, or its own."""
    parts, name = list(picture.parent.parts), f"{picture.stem}.txt"
    places = [picture.parent.parent / "labels" / name, picture.with_suffix(".txt")]
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        places = [Path(*parts[:last], "labels", *parts[last + 1 :]) / name, *places]
    return next((place for place in places if place.is_file()), places[0])


def _read_yaml(path: Path, split: str) -> tuple[dict[int, str], list[Path], int]:
    """Class names by number, the folders or lists of the split's pictures (no split: none), and how many numbers of
    points follow a box."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("reading YOLO's data.yaml", "train") from None

    try:
        content = yaml.load(read_text(path), yaml.BaseLoader)  # texts and no other values: "no" is a name, not False
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    classes = _classes(path, content["names"])
    pose = _pose(path, content.get("kpt_shape"))
    if not split:
        return classes, [], pose
    keys = {"val": ("val", "valid", "validation")}.get(split, (split,))
    places: Any = next((content[key] for key in keys if content.get(key)), None)
    if places is None:
        known = [key for key in ("train", "val", "valid", "test") if content.get(key)]
        raise DataError(f"{path}: has no split {split!r}; it has {', '.join(known) or 'none'}")
    root = path.parent / _text(path, "path", content.get("path") or "")
    root = root if root.is_dir() else path.parent  # "path" may speak of another machine
    listed = places if isinstance(places, list) else [places]
    return classes, [_resolved(root, _text(path, split, place)) for place in listed], pose


def _pose(path: Path, shape: Any) -> int:
    """How many numbers the points of a thing have, from ``kpt_shape``: so many points of two or three numbers."""
    if shape is None:
        return 0
    try:
        points, each = (int(number) for number in shape)
    except (TypeError, ValueError):
        points, each = 0, 0
    if points < 1 or each not in (2, 3):
        raise DataError(f"{path}: kpt_shape must be a number of points and 2 or 3, got {brief(shape)}")
    return points * each


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{path}: {key} must be a text, got {brief(value)}")
    return value


def _classes(path: Path, names: Any) -> dict[int, str]:
    """Class names by number, of a list or a mapping of numbers."""
    if not isinstance(names, (list, dict)):
        raise DataError(f"{path}: names must be a list of class names, or a number: name a line, got {brief(names)}")
    classes = {int(number): name for number, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    for number, name in classes.items():
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{path}: the name of class {number} must be a text, got {brief(name)}")
    return classes


def _resolved(root: Path, place: str) -> Path:
    # Exporters write "../train/images" for the folder train/images beside data.yaml.
    found = [root / place, root / place.removeprefix("../")]
    return next((one for one in found if one.exists()), found[0])


def _pictures(place: Path) -> list[Path]:
    """Pictures of a folder and the folders in it, or of a list with a path a line, relative to the list."""
    if place.is_dir():
        return pictures_in(place)
    lines = [line.strip() for line in read_text(place).splitlines()]
    return [place.parent / line for line in lines if line]


def _scene(picture: Path, rows: dict[int, int], boxes: BoxList, pose: int) -> Scene:
    broken, labels = boxes.broken, label_file(picture)
    try:
        lines = read_text(labels).splitlines() if labels.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        broken.append(f"{labels}: cannot be read ({getattr(error, 'strerror', None) or error})")
        return boxes.scene(picture, unknown=rows.values())
    for number, line in enumerate(lines, start=1):
        where, fields = f"{labels.parent.name}/{labels.name} line {number}", line.split()
        if not fields:
            continue
        try:
            label, values = _whole(fields[0]), [float(value) for value in fields[1:]]
        except ValueError:
            broken.append(f"{where}: not numbers {line[:60]!r}")
            continue
        if pose and len(values) in (4 + pose, 5 + pose):
            values = values[:4] + values[4 + pose :]
        # Four numbers are a box and six or more polygon corners, in pairs; an odd one is the score.
        score = values.pop() if len(values) > 4 and len(values) % 2 else 1.0
        if label not in rows:
            broken.append(f"{where}: unknown class {label}")
        elif len(values) < 4:
            broken.append(f"{where}: not 'class cx cy w h' {line[:60]!r}")
            boxes.unknown.append(rows[label])
        elif max(values) > LARGEST:
            broken.append(f"{where}: not fractions of the picture {line[:60]!r}")
            boxes.unknown.append(rows[label])
        else:
            boxes.add(where, rows[label], _corners(values), as_given=line[:60], score=score)
    return boxes.scene(picture)


def _whole(text: str) -> int:
    """A whole number, which may be written as 3.0; ValueError for another."""
    if not float(text).is_integer():
        raise ValueError(f"not a whole number {text}")
    return int(float(text))


def _corners(values: list[float]) -> tuple[float, float, float, float]:
    if len(values) > 4:
        return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    x, y, w, h = values
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def is_yolo(folder: Path) -> bool:
    """Whether a folder looks like a set in YOLO form."""
    named = any((folder / name).is_file() for name in YAML_NAMES)
    listed = any((folder / name).is_file() for name in LIST_NAMES)
    return named or (listed and ((folder / "labels").is_dir() or any(_has_label(p) for p in folder.glob("*.txt"))))


def _has_label(path: Path) -> bool:
    return any(path.with_suffix(suffix).is_file() for suffix in PICTURE_SUFFIXES)
