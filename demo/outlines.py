"""Outlines of masks for the page: paths of SVG, as fine as a page can show them, and no longer than it can bear."""

import math

import numpy as np

from owl_swin import BoxMasks, Detections
from owl_swin.demo.photos import SHOWN_PX

# Paths that were made, by the patch and the box of their masks.
Paths = dict[tuple[float, ...], str]
# Of the paths of one mask: those of a photo that is full of boxes take some hundred kilobytes.
MOST_POINTS = 400


def paths_of(found: Detections, made: Paths) -> list[str]:
    """The outline of each mask, holes included, as a path to be filled by the rule "evenodd", in pixels of the photo;
    "" without any pixel.

    ``made`` keeps them from one answer about the same embeddings to the next.
    """
    if found.masks is None:
        return [""] * len(found)
    keys = [(patch, *box) for patch, box in zip(found.patches.tolist(), found.boxes.tolist(), strict=True)]
    for number, key in enumerate(keys):
        if key not in made:
            made[key] = path_of(found.masks, number)
    return [made[key] for key in keys]


def path_of(masks: BoxMasks, number: int) -> str:
    """That of one mask: to half a pixel of what the page shows, if that takes no more than MOST_POINTS points; else
    coarser, and in the end without its smallest parts and holes."""
    pixel = max(1.0, max(masks.image_hw) / SHOWN_PX)
    unit = 1 if pixel > 1 else 10  # steps of a pixel, or a tenth of one where the page shows more than it has
    rings: list[np.ndarray] = []
    for tolerance in (pixel / 2, 2 * pixel, 8 * pixel):
        rings = [np.reshape(ring, (-1, 2)) for part in masks.rings(number, tolerance) for ring in part]
        if sum(map(len, rings)) <= MOST_POINTS:
            break
    else:
        rings.sort(key=lambda ring: -np.ptp(ring, axis=0).max())
        rings[0] = rings[0][:: math.ceil(len(rings[0]) / MOST_POINTS)]
        ends = np.cumsum([len(ring) for ring in rings])
        rings = rings[: int((ends <= MOST_POINTS).sum())]
    return "".join(_path(ring, unit) for ring in rings)


def _path(ring: np.ndarray, unit: int) -> str:
    """A closed polygon [N, 2]: its first corner, then the way from each to the next; "" where none is left of it."""
    points = np.round(ring * unit).astype(int)
    steps = np.diff(points, axis=0)
    steps = steps[steps.any(1)]
    if not len(steps):
        return ""
    start, *ways = (" ".join(_number(int(value), unit) for value in pair) for pair in [points[0], *steps])
    return f"M{start}l{' '.join(ways)}z"


def _number(value: int, unit: int) -> str:
    return str(value // unit if value % unit == 0 else value / unit)
