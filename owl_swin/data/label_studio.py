"""Pictures that were labelled, or whose labels were corrected, in Label Studio: its JSON and JSON-MIN exports."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from owl_swin.data.naming import spoken_names
from owl_swin.data.scene import BoxList, Scenes, upright_size
from owl_swin.errors import DataError
from owl_swin.files import read_json
from owl_swin.image import is_picture_name

# Marks from which a box follows.
WITH_BOXES = ("rectanglelabels", "polygonlabels", "ellipselabels")


def is_label_studio(content: Any) -> bool:
    """Whether JSON looks like an export, or like the tasks of one."""
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict):
        return False
    whole = isinstance(first.get("data"), dict) and {"annotations", "predictions"} & first.keys()
    return bool(whole) or {"annotation_id", "annotator"} <= first.keys()


def read_label_studio(path: Path, images: str) -> Scenes:
    """An export: rectangles, and the boxes around turned ones and polygons, with their labels.

    Pictures lie in ``images`` (empty: beside the file) under the last parts of the names that their tasks have. What
    somebody has looked at counts as complete, also without a box; of several annotations of a picture, that which is
    marked as ground truth counts, else the last. Tasks without one are left out and noted, and so is what has no box.
    """
    content = read_json(path)
    if not is_label_studio(content):
        raise DataError(f"{path}: no export of Label Studio; expected a list of tasks with annotations")
    folder, broken = Path(images) if images else path.parent, list[str]()
    rows: dict[str, int] = {}
    taken: dict[Path, str] = {}
    scenes = []
    for number, task in enumerate(content, start=1):
        where = f"task {task['id'] if isinstance(task, dict) and 'id' in task else number}"
        try:
            name, results = _picture(task), _results(task)
        except (KeyError, TypeError, AttributeError) as error:
            broken.append(f"{where}: not in Label Studio's form (problem with {error})")
            continue
        if name is None or results is None:
            broken.append(f"{where}: {'names no picture' if name is None else 'has no annotation'}")
            continue
        source = _place(folder, name)
        if (other := taken.setdefault(source, name)) != name:
            broken.append(f"{where}: {name} and {other} are both {source.name} here; name the folder above them")
            continue
        boxes = BoxList(broken, (1, 1))
        for result in results:
            for label, box in _boxes(result, source, where, broken):
                row = rows.setdefault(label, len(rows))
                if box is None:
                    boxes.unknown.append(row)
                else:
                    boxes.add(where, row, box, as_given=result.get("value", result))
        scenes.append(boxes.scene(source))
    return Scenes(scenes, [spoken_names(label) or [label] for label in rows], broken)


def _picture(task: Mapping[str, Any]) -> str | None:
    """The path or address of a task's picture."""
    data = task.get("data", task)
    texts = [data.get("image"), *data.values()]
    for text in texts:
        if isinstance(text, str) and (text is data.get("image") or is_picture_name(_path_of(text))):
            return text
    return None


def _results(task: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What was drawn; None where nobody has finished looking."""
    if "data" not in task:  # JSON-MIN: each kind of mark is a list under the name of its control
        marks = [mark for value in task.values() if isinstance(value, list) for mark in value]
        return [mark for mark in marks if isinstance(mark, dict)]
    finished = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    if not finished:
        return None
    chosen = next((one for one in finished if one.get("ground_truth")), finished[-1])
    return list(chosen["result"])


def _boxes(
    result: Mapping[str, Any], source: Path, where: str, broken: list[str]
) -> Iterator[tuple[str, tuple[float, ...] | None]]:
    """Each label of a mark and its box, xyxy in fractions of the picture: () for a broken one, None for a mark that has
    none, as a brush's. Nothing for what is no mark in the picture."""
    value = result.get("value", result)
    kind = str(result.get("type") or next((key for key in value if str(key).endswith("labels")), ""))
    labels = value.get(kind)
    if not kind.endswith("labels") or not isinstance(labels, list):
        return  # a choice, a relation, a text
    box: tuple[float, ...] | None
    try:
        box = _box(value, result, source)
    except (KeyError, TypeError, ValueError, OverflowError):
        box = () if kind in WITH_BOXES else None
    for label in labels:
        if box is None:
            broken.append(f"{where}: {kind} without a box ({label})")
        yield str(label), box


def _box(value: Mapping[str, Any], result: Mapping[str, Any], source: Path) -> tuple[float, ...]:
    """Of a rectangle, turned clockwise about its upper left corner, of an ellipse turned about its middle, or of a
    polygon: all in percent."""
    if "points" in value:
        points = [(float(x), float(y)) for x, y in value["points"]]
    elif "radiusX" in value:
        x, y, radius_x, radius_y = (float(value[key]) for key in ("x", "y", "radiusX", "radiusY"))
        turn = math.radians(float(value.get("rotation") or 0))
        wide, high = _size(value, result, source) if turn else (1.0, 1.0)
        reach_x = math.hypot(radius_x * math.cos(turn), radius_y * high / wide * math.sin(turn))
        reach_y = math.hypot(radius_x * wide / high * math.sin(turn), radius_y * math.cos(turn))
        points = [(x - reach_x, y - reach_y), (x + reach_x, y + reach_y)]
    else:
        x, y, width, height = (float(value[key]) for key in ("x", "y", "width", "height"))
        turn = math.radians(float(value.get("rotation") or 0))
        wide, high = _size(value, result, source) if turn else (1.0, 1.0)
        across = width * math.cos(turn), width * math.sin(turn) * wide / high
        down = -height * math.sin(turn) * high / wide, height * math.cos(turn)
        steps = ((0, 0), (1, 0), (0, 1), (1, 1))
        points = [(x + i * across[0] + j * down[0], y + i * across[1] + j * down[1]) for i, j in steps]
    columns = list(zip(*points, strict=True))
    return tuple(side / 100 for side in (*map(min, columns), *map(max, columns)))


def _size(value: Mapping[str, Any], result: Mapping[str, Any], source: Path) -> tuple[float, float]:
    """Width and height of the picture, or any two numbers of their ratio."""
    for stated in (result, value):
        if stated.get("original_width") and stated.get("original_height"):
            return float(stated["original_width"]), float(stated["original_height"])
    width, height = upright_size(source) or (1, 1)
    return float(width), float(height)


def _path_of(text: str) -> str:
    """The path in what Label Studio calls a picture by: a path, an address, or its own address of a local file."""
    try:
        address = urlsplit(text) if "://" in text or text.startswith("/data/") else None
    except ValueError:  # it is no address, whatever it looks like
        address = None
    if address is None:
        return text
    local = parse_qs(address.query).get("d")
    return local[0] if local else unquote(address.path)


def _place(folder: Path, name: str) -> Path:
    """Where a picture lies: under as many last parts of its name as there are in the folder. What was uploaded has
    eight letters and a dash before its name."""
    path = _path_of(name)
    parts = PurePosixPath(path.replace("\\", "/")).parts
    ways = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    ways += [folder / re.sub(r"^[0-9a-f]{8}-", "", parts[-1])] if parts else []
    for way in ways:
        try:
            if way.is_file():
                return way
        except (OSError, ValueError):
            continue
    return ways[-2] if len(ways) > 1 else folder / path
