"""Training scenes out of annotated pictures: crop, flip, stretch, and mosaics. Boxes are xyxy pixels throughout."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from owl_swin.data.masks import Mask
from owl_swin.errors import ImageError

logger = logging.getLogger("owl_swin")


class MaskPiece(NamedTuple):
    """The mask of the box ``row`` of a canvas: uint8 ``covered [h, w]`` (255: all), whose first pixel lies at (x, y);
    around that is nothing of it."""

    row: int
    x: int
    y: int
    covered: np.ndarray


@dataclass(frozen=True, slots=True)
class Canvas:
    """A finished training scene: pixels [H, W, 3] uint8, boxes [N, 4], labels [N], scores [N] (0: a vague box),
    ``rows [N]``: the box's place among those of all its pictures, one picture after another, and the masks of those
    boxes that have one."""

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    rows: np.ndarray
    masks: tuple[MaskPiece, ...] = ()


@dataclass(frozen=True, slots=True)
class Annotated:
    """A picture, its boxes [N, 4] in pixels of it, labels [N], scores [N] (0: a vague box), and how often each box is
    drawn to be the middle of a close-up, odds [N]; ``masks`` of the boxes (none, or N; None: not known)."""

    picture: Image.Image
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    odds: np.ndarray
    masks: tuple[Mask | None, ...] = ()


# A box smaller than this many pixels on the canvas teaches nothing.
MIN_SIDE_PX = 4.0
# A crop around an object is at least this tall, so that a tiny one is not blown up to a blur.
MIN_ZOOM_PX = 24.0


def mosaic(
    pictures: Sequence[Annotated],
    hw: tuple[int, int],
    rng: np.random.Generator,
    *,
    min_kept: float,
    zoom: float = 0.0,
) -> Canvas:
    """1, 4, 9, … pictures row by row on one canvas of ``hw`` pixels, each cropped and flipped at random."""
    side = math.isqrt(len(pictures))
    assert side * side == len(pictures)
    height, width = hw
    ys = np.linspace(0, height, side + 1).round().astype(int)
    xs = np.linspace(0, width, side + 1).round().astype(int)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    boxes, scores, rows, first = [], [], [], 0
    labels: list[np.ndarray] = []
    masks: list[MaskPiece] = []
    for row in range(side):
        for col in range(side):
            cell_hw = (int(ys[row + 1] - ys[row]), int(xs[col + 1] - xs[col]))
            scene = pictures[row * side + col]
            cell = place(scene, cell_hw, rng, min_kept=min_kept, zoom=zoom)
            pixels[ys[row] : ys[row + 1], xs[col] : xs[col + 1]] = cell.pixels
            before, x, y = sum(len(own) for own in labels), int(xs[col]), int(ys[row])
            masks += [MaskPiece(m.row + before, m.x + x, m.y + y, m.covered) for m in cell.masks]
            boxes.append(cell.boxes + np.array([xs[col], ys[row], xs[col], ys[row]], dtype=np.float32))
            labels.append(cell.labels)
            scores.append(cell.scores)
            rows.append(first + cell.rows)
            first += len(scene.boxes)
    joined = [np.concatenate(own) for own in (boxes, labels, scores, rows)]
    return Canvas(pixels, joined[0], joined[1], joined[2], joined[3], tuple(masks))


def place(
    scene: Annotated,
    hw: tuple[int, int],
    rng: np.random.Generator,
    *,
    min_kept: float,
    zoom: float = 0.0,
) -> Canvas:
    """A random crop of the picture, flipped half the time, stretched to ``hw`` by at most a third.

    With probability ``zoom`` the crop is around one object, so that it fills much of the canvas. Boxes that keep less
    than ``min_kept`` of their area in the crop are dropped, the others are cut to it. Of a vague box (score 0) every
    part stays: what it shows is no background either.
    """
    picture, boxes, labels, scores = scene.picture, scene.boxes, scene.labels, scene.scores
    if zoom and scene.odds.any() and rng.random() < zoom:
        chosen = rng.choice(len(boxes), p=scene.odds / scene.odds.sum())
        crop = _crop_around(boxes[chosen], (picture.height, picture.width), hw, rng)
    else:
        crop = _random_crop((picture.height, picture.width), hw, rng)
    x0, y0, x1, y1 = crop
    pixels = np.asarray(picture.resize((hw[1], hw[0]), Image.Resampling.BILINEAR, crop))
    scale = np.array([hw[1] / (x1 - x0), hw[0] / (y1 - y0)] * 2, dtype=np.float32)
    moved = (boxes - np.array([x0, y0, x0, y0], dtype=np.float32)) * scale
    limit = np.array([hw[1], hw[0]] * 2, dtype=np.float32)
    cut = moved.clip(0, limit)
    kept = _area(cut) >= min_kept * _area(moved)
    kept &= (cut[:, 2:] - cut[:, :2]).min(1, initial=np.inf) >= MIN_SIDE_PX
    kept |= (scores == 0) & (_area(cut) > 0)
    cut, labels, scores = cut[kept], labels[kept], scores[kept]
    masks = _masks_in(scene, np.flatnonzero(kept), cut, crop, hw)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
        masks = [MaskPiece(m.row, hw[1] - m.x - m.covered.shape[1], m.y, m.covered[:, ::-1]) for m in masks]
        cut = cut[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32) + np.array([hw[1], 0, hw[1], 0], np.float32)
    return Canvas(pixels, cut, labels, scores, np.flatnonzero(kept), tuple(masks))


def _masks_in(
    scene: Annotated,
    kept: np.ndarray,
    boxes: np.ndarray,
    crop: tuple[float, float, float, float],
    hw: tuple[int, int],
) -> list[MaskPiece]:
    """The masks of the ``kept`` boxes, which lie at ``boxes`` in a crop of the picture that fills ``hw`` pixels. One
    whose file cannot be read, or that has nothing in its box, is not known."""
    pieces = []
    for row, place in enumerate(kept.tolist()):
        mask = scene.masks[place] if scene.masks else None
        if mask is None:
            continue
        try:
            whole = mask.pixels()
        except ImageError as error:
            logger.warning("a mask left out: %s", error)
            continue
        x0, y0 = (int(side) for side in np.floor(boxes[row, :2]))
        x1, y1 = (min(math.ceil(side), most) for side, most in zip(boxes[row, 2:], hw[::-1], strict=True))
        # Of the canvas to the picture, and of the picture to its mask, which may be stored smaller.
        to_mask = np.array([whole.shape[1] / scene.picture.width, whole.shape[0] / scene.picture.height] * 2)
        scale = np.array([(crop[2] - crop[0]) / hw[1], (crop[3] - crop[1]) / hw[0]] * 2)
        part = (np.array([x0, y0, x1, y1]) * scale + np.array([crop[0], crop[1]] * 2)) * to_mask
        part = part.clip(0, [whole.shape[1], whole.shape[0]] * 2)
        ink = Image.fromarray(whole.astype(np.uint8) * 255)
        covered = np.asarray(ink.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, tuple(part.tolist())))
        if covered.any():
            pieces.append(MaskPiece(row, x0, y0, covered))
    return pieces


def _random_crop(
    picture_hw: tuple[int, int], hw: tuple[int, int], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """xyxy of a crop of 40 to 100 % of what fits, whose shape is that of ``hw`` stretched by at most a third."""
    height, width = picture_hw
    aspect = hw[1] / hw[0] * np.exp(rng.uniform(-0.28, 0.28))
    wide = min(width, height * aspect)
    tall = min(height, wide / aspect)  # the division may round to just above the height
    scale = np.sqrt(rng.uniform(0.4, 1.0)) if rng.random() < 0.7 else 1.0
    wide, tall = wide * scale, tall * scale
    x, y = rng.uniform(0, width - wide), rng.uniform(0, height - tall)
    return float(x), float(y), float(x + wide), float(y + tall)


def _crop_around(
    box: np.ndarray, picture_hw: tuple[int, int], hw: tuple[int, int], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """xyxy of a crop with the shape of ``hw`` that holds the box, 1.05 to 3 times as large, or all there is."""
    height, width = picture_hw
    aspect = hw[1] / hw[0]
    x0, y0, x1, y1 = (float(value) for value in box)
    tall = max((x1 - x0) / aspect, y1 - y0, MIN_ZOOM_PX) * np.exp(rng.uniform(np.log(1.05), np.log(3.0)))
    tall = min(tall, height, width / aspect)
    wide = min(tall * aspect, width)
    x = np.clip(rng.uniform(min(x1 - wide, x0), max(x1 - wide, x0)), 0, width - wide)
    y = np.clip(rng.uniform(min(y1 - tall, y0), max(y1 - tall, y0)), 0, height - tall)
    return float(x), float(y), float(x + wide), float(y + tall)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
