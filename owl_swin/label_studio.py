"""Detections as tasks of Label Studio, to be corrected there, and the interface in which they are."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from owl_swin.addresses import is_url
from owl_swin.errors import OwlSwinError
from owl_swin.formats import Found, PathName, Row, named_results, rows_of, scored, xml_text


def to_label_studio(
    names: Sequence[PathName],
    results: Sequence[Found],
    *,
    model_version: str = "owl_swin",
    root: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Label Studio tasks with pre-annotations: boxes in percent of the picture, ``meta`` holds the index of the query.

    A thing with a mask is a polygon a part in place of its box, with holes filled.

    ``root`` is Label Studio's LOCAL_FILES_DOCUMENT_ROOT: the names are then paths below it, and each task shows its
    picture by the address under which Label Studio serves it. Another name raises OwlSwinError.
    """
    tasks = []
    for name, found in named_results(names, results):
        height, width = found.image_hw
        outlines: list[list[list[float]]] = [[]] * len(found.labels)
        if found.masks is not None:
            outlines = found.masks.polygons()
        rows = [
            {
                **region,
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                **scored(row),
                "meta": {"query": row.query},
            }
            for row in rows_of(found)
            for region in _label_studio_regions(row, found.image_hw, outlines[row.number])
        ]
        best = max((row["score"] for row in rows if "score" in row), default=0.0)
        image = name if root is None or is_url(name) else label_studio_address(name, root)
        tasks.append(
            {"data": {"image": image}, "predictions": [{"model_version": model_version, "score": best, "result": rows}]}
        )
    return tasks


def _label_studio_regions(row: Row, image_hw: tuple[int, int], outlines: list[list[float]]) -> list[dict[str, Any]]:
    """What a thing is in Label Studio: its outlines, or without any its box."""
    height, width = image_hw
    if not outlines:
        x0, y0, x1, y1 = row.box_xyxy
        value = {
            "x": 100 * x0 / width,
            "y": 100 * y0 / height,
            "width": 100 * (x1 - x0) / width,
            "height": 100 * (y1 - y0) / height,
            "rotation": 0,
            "rectanglelabels": [row.name],
        }
        return [{"id": f"box{row.number + 1}", "type": "rectanglelabels", "from_name": "label", "value": value}]
    regions: list[dict[str, Any]] = []
    for part, outline in enumerate(outlines, start=1):
        points = [[100 * x / width, 100 * y / height] for x, y in zip(outline[::2], outline[1::2], strict=True)]
        value = {"points": points, "closed": True, "polygonlabels": [row.name]}
        name = f"mask{row.number + 1}" + f"-{part}" * (len(outlines) > 1)
        regions.append({"id": name, "type": "polygonlabels", "from_name": "mask", "value": value})
    return regions


def label_studio_address(name: PathName, root: str | os.PathLike[str]) -> str:
    """Where Label Studio serves a file of this machine, whose LOCAL_FILES_DOCUMENT_ROOT is ``root``."""
    try:
        path, top = Path(os.path.abspath(name)), Path(os.path.abspath(root))  # noqa: PTH100
        if not path.is_relative_to(top):
            path, top = path.resolve(), top.resolve()
        below = path.relative_to(top)
    except (OSError, ValueError):
        raise OwlSwinError(f"{name}: does not lie below {root}, the folder that Label Studio serves") from None
    return f"/data/local-files/?d={quote(os.fsencode(below.as_posix()))}"


def label_studio_interface(names: Sequence[str], *, masks: bool = False) -> str:
    """The labelling interface of a Label Studio project into which tasks with these names import as they are; with
    ``masks`` also those of detections with masks."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", name="image", value="$image")
    for control, own in (("RectangleLabels", "label"), *([("PolygonLabels", "mask")] * masks)):
        labels = ET.SubElement(view, control, name=own, toName="image")
        for name in dict.fromkeys(names):
            ET.SubElement(labels, "Label", value=xml_text(name))
    return ET.tostring(view, encoding="unicode")
