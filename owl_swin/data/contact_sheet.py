"""A sheet of sample pictures with their boxes and names, or with their texts below, to be looked at."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from owl_swin.data.pictures import Pictures
from owl_swin.data.scene import Scene, Scenes, readable
from owl_swin.detections import Detections
from owl_swin.errors import DataError
from owl_swin.image import open_image
from owl_swin.render import draw_detections, picture_grid

COLUMNS = 4
CELL = 400  # pixels
TEXT_LINES = 3


def sheet_of_scenes(scenes: Scenes, n: int = 12) -> Image.Image:
    """``n`` pictures, evenly spread over those with boxes, with boxes and first names; below it how many boxes."""
    with_boxes = [scene for scene in scenes.scenes if len(scene.boxes)] or scenes.scenes
    cells, captions = [], []
    for scene in _spread(with_boxes, 3 * n):
        picture = readable(scenes, scene)
        if picture is None:
            continue
        cells.append(_drawn(picture, scene, [names[0] for names in scenes.names]))
        boxes = "1 box" if len(scene.boxes) == 1 else f"{len(scene.boxes)} boxes"
        captions.append(f"{scene.source.name}: {boxes}")
    chosen = _spread(range(len(cells)), n)
    return _sheet([cells[i] for i in chosen], [captions[i] for i in chosen], lines=1)


def sheet_of_pictures(pictures: Pictures, n: int = 24) -> Image.Image:
    """``n`` pictures of a set for alignment with their texts below."""
    rows = _spread(range(len(pictures.images)), n)
    cells = [Image.fromarray(pictures.images[row].permute(1, 2, 0).numpy()) for row in rows]
    side = CELL // 2
    small = [cell.resize((side, side), Image.Resampling.BICUBIC) for cell in cells]
    texts = [" / ".join(pictures.texts[int(pictures.labels[row])]) for row in rows]
    return _sheet(small, texts, cell=side, columns=2 * COLUMNS, lines=TEXT_LINES)


def _drawn(picture: Image.Image, scene: Scene, names: Sequence[str]) -> Image.Image:
    """The picture in a cell's size with its boxes, large ones first so that small ones stay in sight."""
    scale = CELL / max(picture.size)
    small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    boxes = torch.from_numpy(scene.boxes_on(picture) * np.float32(scale))
    order = (boxes[:, 2:] - boxes[:, :2]).prod(1).argsort()  # the first is drawn last
    n = len(boxes)
    found = Detections(
        boxes[order],
        torch.ones(n),
        torch.from_numpy(scene.labels)[order],
        tuple(names),
        (small.height, small.width),
        torch.zeros(n, dtype=torch.long),
    )
    return draw_detections(open_image(small), found, with_scores=False)


def _sheet(
    cells: Sequence[Image.Image], texts: Sequence[str], *, cell: int = CELL, columns: int = COLUMNS, lines: int
) -> Image.Image:
    if not cells:
        raise DataError("no picture of the set can be read, so there is none to show")
    return picture_grid(cells, texts, cell=cell, columns=columns, lines=lines)


def _spread(items: Sequence, n: int) -> list:
    """``n`` of the items at equal distances, or all."""
    if len(items) <= n:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, n)]
