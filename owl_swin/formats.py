"""Detections in the forms that other programs read. Plain dicts, ready for JSON."""

from collections.abc import Sequence
from typing import Any

from owl_swin.types import Detections


def to_record(name: str, found: Detections, *, grid_hw: tuple[int, int] | None = None) -> dict[str, Any]:
    """One line of JSON: the picture, its size, and the rows of transformers' zero-shot-object-detection pipeline.

    With ``grid_hw``, rows and columns of the grid of patches, each detection also says which patch answered, counted
    from 0 row by row.
    """
    height, width = found.image_hw
    record: dict[str, Any] = {"image": name, "width": width, "height": height}
    rows = found.to_dicts()
    if grid_hw is not None:
        record["grid"] = list(grid_hw)
        rows = [{**row, "patch": patch} for row, patch in zip(rows, found.patches.tolist(), strict=True)]
    return {**record, "detections": rows}


def to_coco(names: Sequence[str], results: Sequence[Detections]) -> dict[str, Any]:
    """A COCO data set whose annotations carry a score: boxes are [x, y, width, height], ids count from 1."""
    categories: dict[str, int] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (name, found) in enumerate(zip(names, results, strict=True), start=1):
        height, width = found.image_hw
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for query in found.names:
            categories.setdefault(query, len(categories) + 1)
        for one in found:
            x0, y0, x1, y1 = one.box_xyxy
            box = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[one.name],
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                    "score": round(one.score, 6),
                }
            )
    named = [{"id": category_id, "name": name} for name, category_id in categories.items()]
    return {"images": images, "categories": named, "annotations": annotations}


def to_label_studio(
    names: Sequence[str], results: Sequence[Detections], *, model_version: str = "owl_swin"
) -> list[dict[str, Any]]:
    """Label Studio tasks with pre-annotations: boxes in percent of the picture."""
    tasks = []
    for name, found in zip(names, results, strict=True):
        height, width = found.image_hw
        rows: list[dict[str, Any]] = []
        for one in found:
            x0, y0, x1, y1 = one.box_xyxy
            rows.append(
                {
                    "type": "rectanglelabels",
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": width,
                    "original_height": height,
                    "value": {
                        "x": 100 * x0 / width,
                        "y": 100 * y0 / height,
                        "width": 100 * (x1 - x0) / width,
                        "height": 100 * (y1 - y0) / height,
                        "rotation": 0,
                        "rectanglelabels": [one.name],
                    },
                    "score": round(one.score, 6),
                }
            )
        best = max((row["score"] for row in rows), default=0.0)
        tasks.append(
            {"data": {"image": name}, "predictions": [{"model_version": model_version, "score": best, "result": rows}]}
        )
    return tasks


def to_fiftyone(found: Detections) -> list[dict[str, Any]]:
    """The keyword arguments of fiftyone.Detection, one dict a detection: boxes are [x, y, width, height] in [0, 1] of
    the picture.

    >>> sample["found"] = fiftyone.Detections(detections=[fiftyone.Detection(**row) for row in to_fiftyone(found)])
    """
    height, width = found.image_hw
    rows = []
    for one in found:
        x0, y0, x1, y1 = one.box_xyxy
        box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
        rows.append({"label": one.name, "bounding_box": box, "confidence": round(one.score, 6)})
    return rows
