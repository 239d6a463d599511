"""The masks of things as annotation files write them: polygons, or run lengths."""

from typing import Any

import numpy as np

from owl_swin.errors import DataError, MissingExtraError
from owl_swin.rle import compressed, rle_counts, rle_size

# Numbers of the smallest polygon: three points.
LEAST_NUMBERS = 6
# Points lie no further outside of a picture than so many times its longer side: filling takes memory for each edge.
FARTHEST = 10


def outline_rle(segmentation: Any, image_hw: tuple[int, int]) -> dict[str, Any]:
    """COCO's "segmentation" of a thing in a picture of that size, as a compressed run-length encoding.

    It may be polygons [[x, y, x, y, …], …], which together are one mask, one polygon, or run lengths. Polygons are
    filled as COCO does. A mask that is damaged, empty or of another size raises DataError.
    """
    if isinstance(segmentation, dict):
        if rle_size(segmentation) != tuple(image_hw):
            height, width = rle_size(segmentation)
            raise DataError(f"a mask of {width}x{height} pixels in a picture of {image_hw[1]}x{image_hw[0]}")
        counts = rle_counts(segmentation)
        found = {"size": list(image_hw), "counts": compressed(counts)}
    else:
        found = _filled(_polygons(segmentation), image_hw)
        counts = rle_counts(found)
    if not counts[1::2].any():
        raise DataError("an empty mask")
    return found


def box_rle(xywh: tuple[float, float, float, float], image_hw: tuple[int, int]) -> dict[str, Any]:
    """The mask that is a box."""
    x, y, w, h = xywh
    return _filled([[x, y, x, y + h, x + w, y + h, x + w, y]], image_hw)


def _polygons(segmentation: Any) -> list[list[float]]:
    """The polygons of three points or more."""
    if not isinstance(segmentation, (list, tuple)) or not segmentation:
        raise DataError("no mask: expected polygons or run lengths")
    flat = not any(isinstance(part, (list, tuple)) for part in segmentation)
    try:
        polygons = [[float(n) for n in part] for part in ([segmentation] if flat else segmentation)]
    except (TypeError, ValueError, OverflowError):
        raise DataError("a polygon must be numbers [x, y, x, y, …]") from None
    if not all(np.isfinite(polygon).all() and len(polygon) % 2 == 0 for polygon in polygons):
        raise DataError("a polygon must be finite numbers [x, y, x, y, …]")
    kept = [polygon for polygon in polygons if len(polygon) >= LEAST_NUMBERS]
    if not kept:
        raise DataError("a polygon needs three points")
    return kept


def _filled(polygons: list[list[float]], image_hw: tuple[int, int]) -> dict[str, Any]:
    try:
        from faster_coco_eval.core.mask import frPyObjects, merge
    except ImportError:
        raise MissingExtraError("filling polygons", "train") from None
    height, width = image_hw
    if any(abs(n) > FARTHEST * max(height, width) for polygon in polygons for n in polygon):
        raise DataError(f"a polygon that reaches far out of a picture of {width}x{height}")
    found = merge(frPyObjects(polygons, height, width))
    counts = found["counts"]
    return {"size": [height, width], "counts": counts.decode() if isinstance(counts, bytes) else counts}
