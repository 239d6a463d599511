"""Detections in the forms that other programs read: rows, JSON, text and XML, and the classes of other libraries."""

import csv
import io
import math
import os
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from owl_swin.errors import MissingExtraError, QueryError

if TYPE_CHECKING:
    from torch import Tensor

    from owl_swin.masks import BoxMasks

# The keys of a box in transformers' pipelines.
CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Of masks as an array; more are given in a form of a few bytes a mask.
MOST_MASK_BYTES = 2**28
CSV_COLUMNS = ("image", "width", "height", "query", "label", "score", *CORNERS)


PathName = str | os.PathLike[str]


class Found(Protocol):
    """What the functions here read of a Detections, which calls some of them."""

    @property
    def boxes(self) -> "Tensor": ...  # [N, 4], xyxy pixels

    @property
    def scores(self) -> "Tensor": ...  # [N]; NaN: a box that no model gave a score, but a hand

    @property
    def labels(self) -> "Tensor": ...  # [N], indices of names

    @property
    def patches(self) -> "Tensor": ...  # [N]

    @property
    def masks(self) -> "BoxMasks | None": ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def image_hw(self) -> tuple[int, int]: ...


class Row(NamedTuple):
    """A detection in plain numbers, and which one it is."""

    number: int
    query: int
    name: str
    score: float | None
    box_xyxy: tuple[float, float, float, float]


def to_dicts(found: Found) -> list[dict[str, Any]]:
    """Rows as transformers' zero-shot-object-detection pipeline writes them, with boxes to a hundredth of a pixel.

    Beside its keys each row has ``query``, the index of the query: two queries may have one name. Of detections with
    masks each also has ``segmentation``, COCO's run-length encoding of its mask. Here as in the other forms a score of
    NaN, of a box that was made by hand, is None or left out, and so is a mask that it has not.
    """
    rows = []
    for row in rows_of(found):
        box = {corner: round(value, 2) for corner, value in zip(CORNERS, row.box_xyxy, strict=True)}
        values = {"label": row.name, "query": row.query, "score": row.score, "box": box}
        mask = mask_of(found, row)
        rows.append(values if mask is None else {**values, "segmentation": mask.rle_of(row.number)})
    return rows


def to_record(name: PathName, found: Found, *, grid_hw: tuple[int, int] | None = None) -> dict[str, Any]:
    """One line of JSON: the picture, its size, and the rows of to_dicts().

    With ``grid_hw``, rows and columns of the grid of patches in the model's frame, each detection also says which patch
    answered, counted from 0 row by row.
    """
    height, width = found.image_hw
    record: dict[str, Any] = {"image": os.fspath(name), "width": width, "height": height}
    rows = to_dicts(found)
    if grid_hw is not None:
        record["grid"] = list(grid_hw)
        rows = [{**row, "patch": patch} for row, patch in zip(rows, found.patches.tolist(), strict=True)]
    return {**record, "detections": rows}


def to_video_record(
    name: PathName, number: int, time_s: float, found: Found, track_ids: Sequence[int | None]
) -> dict[str, Any]:
    """One line of JSON about a frame of a video: as to_record(), with the frame's number and its time in seconds, and
    in each row the number of the thing, ``track_id``."""
    height, width = found.image_hw
    rows = [{**row, "track_id": track_id} for row, track_id in zip(to_dicts(found), track_ids, strict=True)]
    head = {"video": os.fspath(name), "frame": number, "time_s": round(time_s, 6), "width": width, "height": height}
    return {**head, "detections": rows}


def to_coco(names: Sequence[PathName], results: Sequence[Found]) -> dict[str, Any]:
    """A COCO data set whose annotations carry a score: boxes are [x, y, width, height], ids count from 1.

    Every query is a category, also where two have one name; pictures that were asked for one name share its category.
    ``query`` of an annotation is the index among its picture's queries. Masks are ``segmentation``, run-length encoded.
    """
    content = CocoSet()
    for name, found in named_results(names, results):
        content.add(name, found)
    return content.content()


class CocoSet:
    """A COCO data set that grows by one picture after another, of whose masks only the encoding is kept."""

    def __init__(self) -> None:
        self._categories: dict[tuple[str, int], int] = {}  # a name and how often it came before among a picture's → id
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, name: str, found: Found) -> None:
        """One picture, and what was found in it."""
        height, width = found.image_hw
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        before: Counter[str] = Counter()
        category_ids = []
        for query in found.names:
            key = query, before[query]
            category_ids.append(self._categories.setdefault(key, len(self._categories) + 1))
            before[query] += 1
        for row in rows_of(found):
            x0, y0, x1, y1 = row.box_xyxy
            box = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
            mask = mask_of(found, row)
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[row.query],
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                    **scored(row),
                    "query": row.query,
                    **({} if mask is None else mask.coco(row.number)),
                }
            )

    def content(self) -> dict[str, Any]:
        """What to_coco() gives."""
        named = [{"id": category_id, "name": name} for (name, _), category_id in self._categories.items()]
        return {"images": self._images, "categories": named, "annotations": self._annotations}


def to_fiftyone(found: Found) -> list[dict[str, Any]]:
    """The keyword arguments of fiftyone.Detection, one dict a detection: boxes are [x, y, width, height] in [0, 1] of
    the picture, ``query`` the index of the query, and ``mask``, where there is one, covers its box.

    >>> sample["found"] = fiftyone.Detections(detections=[fiftyone.Detection(**row) for row in to_fiftyone(found)])
    """
    height, width = found.image_hw
    rows = []
    for row in rows_of(found):
        x0, y0, x1, y1 = row.box_xyxy
        box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
        values = {"label": row.name, "bounding_box": box, "confidence": row.score, "query": row.query}
        mask = mask_of(found, row)
        rows.append(values if mask is None else {**values, "mask": mask.part(row.number)[1].cpu().numpy()})
    return rows


def to_yolo(found: Found, *, with_scores: bool = False) -> str:
    """The label file of a picture in YOLO form: "class cx cy w h" a line, in [0, 1] of the picture.

    The class is the index of the query. Of detections with masks a line is "class x0 y0 x1 y1 …", the outline of the
    thing, in which its parts are joined, or else its box's. ``with_scores`` adds the score at the end of each line, as
    Ultralytics writes predictions; data sets have none.
    """
    height, width = found.image_hw
    lines = []
    for row in rows_of(found):
        x0, y0, x1, y1 = row.box_xyxy
        if found.masks is None:
            values = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
        else:
            outline = found.masks.outline(row.number) or [x0, y0, x1, y0, x1, y1, x0, y1]
            values = [place / side for place, side in zip(outline, (width, height) * (len(outline) // 2), strict=True)]
        values += [row.score] if with_scores and row.score is not None else []
        lines.append(" ".join([str(row.query), *(f"{value:.6f}" for value in values)]) + "\n")
    return "".join(lines)


def yolo_data(names: Sequence[str]) -> str:
    """The data.yaml beside the folders labels/ and images/ of a set in YOLO form."""
    lines = ["path: .", "train: images", "val: images", "names:"]
    return "\n".join([*lines, *(f"  {index}: {_yaml_text(name)}" for index, name in enumerate(names))]) + "\n"


def to_voc(name: PathName, found: Found) -> str:
    """The XML file of a picture in Pascal VOC form: corners count from 1 and the last pixel is inside.

    Beside VOC's elements each object has a ``score`` and the index of its ``query``.
    """
    height, width = found.image_hw
    root = ET.Element("annotation")
    path = Path(name)
    _add_texts(root, {"folder": path.parent.name, "filename": path.name, "path": os.fspath(name)})
    _add_texts(ET.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    _add_texts(root, {"segmented": 0})
    for row in rows_of(found):
        thing = ET.SubElement(root, "object")
        _add_texts(thing, {"name": row.name, "pose": "Unspecified", "truncated": 0, "difficult": 0})
        _add_texts(thing, {**scored(row), "query": row.query})
        x0, y0, x1, y1 = (round(value) for value in row.box_xyxy)
        xmin, ymin = min(x0 + 1, width), min(y0 + 1, height)
        corners = {"xmin": xmin, "ymin": ymin, "xmax": max(x1, xmin), "ymax": max(y1, ymin)}
        _add_texts(ET.SubElement(thing, "bndbox"), corners)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def to_csv(names: Sequence[PathName], results: Sequence[Found], *, header: bool = True) -> str:
    """A row a detection: picture, its size, index and name of the query, score, and corners in pixels.

    Texts with a comma, quote or line break stand in quotes (RFC 4180).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(CSV_COLUMNS)
    for name, found in named_results(names, results):
        height, width = found.image_hw
        for row in rows_of(found):
            corners = [round(value, 2) for value in row.box_xyxy]
            writer.writerow([name, width, height, row.query, row.name, row.score, *corners])
    return text.getvalue()


def to_supervision(found: Found) -> Any:
    """The same as supervision.Detections: class_id is the index of the query, data["class_name"] its name; mask is
    bool [N, H, W], or where that is very large supervision's CompactMask, which stands in for it."""
    import numpy as np

    try:
        from supervision import Detections
    except ImportError:
        raise MissingExtraError("supervision.Detections", "interop") from None
    return Detections(
        xyxy=found.boxes.detach().cpu().numpy().astype(np.float32).reshape(-1, 4),
        confidence=found.scores.detach().cpu().numpy().astype(np.float32),
        class_id=found.labels.cpu().numpy().astype(int),
        mask=None if found.masks is None else _supervision_masks(found.masks),
        data={"class_name": np.array(_labels(found), dtype=str)},
    )


def _supervision_masks(masks: "BoxMasks") -> Any:
    if math.prod(masks.shape) <= MOST_MASK_BYTES:
        return masks.numpy()
    import numpy as np

    try:
        from supervision import CompactMask
    except ImportError:  # an older one, which knows no other form
        return masks.numpy()
    covered = np.array([masks.part_xyxy(i) for i in range(len(masks))])
    return CompactMask.from_coco_rle(masks.rle(), covered - [0, 0, 1, 1], masks.image_hw)


def to_pandas(found: Found) -> Any:
    """A pandas.DataFrame, one row a detection: label, score, xmin, ymin, xmax, ymax in pixels, query, patch, and where
    there are masks segmentation, COCO's run-length encoding."""
    try:
        import pandas
    except ImportError:
        raise MissingExtraError("pandas.DataFrame", "interop") from None
    boxes = found.boxes.detach().cpu().numpy()
    columns: dict[str, Any] = {
        "label": pandas.Series(_labels(found), dtype="str"),
        "score": found.scores.detach().cpu().numpy(),
        **{corner: boxes[:, i] for i, corner in enumerate(CORNERS)},
        "query": found.labels.cpu().numpy(),
        "patch": found.patches.cpu().numpy(),
        **({} if found.masks is None else {"segmentation": pandas.Series(found.masks.rle(), dtype=object)}),
    }
    return pandas.DataFrame(columns)


def named_results(names: Sequence[PathName], results: Sequence[Found]) -> Iterator[tuple[str, Found]]:
    """Each picture's name with its detections."""
    if isinstance(names, (str, os.PathLike)) or hasattr(results, "image_hw"):
        raise QueryError("expected a list of names and a list of Detections; for one picture write [name], [found]")
    if len(names) != len(results):
        raise QueryError(f"expected a name for each Detections, got {len(names)} names for {len(results)}")
    for name, found in zip(names, results, strict=True):
        yield os.fspath(name), found


def rows_of(found: Found) -> Iterator[Row]:
    """The detections as plain numbers, scores to a millionth; None where a hand made the box."""
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    for number, (query, score, (x0, y0, x1, y1)) in enumerate(rows):
        rounded = None if math.isnan(score) else round(score, 6)
        yield Row(number, query, found.names[query], rounded, (x0, y0, x1, y1))


def scored(row: Row) -> dict[str, float]:
    """The score, where there is one."""
    return {} if row.score is None else {"score": row.score}


def mask_of(found: Found, row: Row) -> "BoxMasks | None":
    """The masks that hold that of a row; None where it has none, as a box has that was made by hand among others that
    have theirs: its mask is without a pixel."""
    by_hand = found.masks is not None and row.score is None and not bool((found.masks.logits[row.number] > 0).any())
    return None if by_hand else found.masks


def _labels(found: Found) -> list[str]:
    return [found.names[label] for label in found.labels.tolist()]


def _add_texts(parent: ET.Element, values: Mapping[str, object]) -> None:
    for tag, value in values.items():
        ET.SubElement(parent, tag).text = xml_text(str(value))


def _yaml_text(text: str) -> str:
    """The text in double quotes, with escapes for what YAML does not hold as it is."""
    marks = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(marks.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'


def xml_text(text: str) -> str:
    """The text without what no XML file may hold, whose place a replacement character takes."""
    allowed = (
        c if c in "\t\n\r" or " " <= c < "\ud800" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "�" for c in text
    )
    return "".join(allowed)
