"""Cuts the things of a labelled set out of their photographs, by their masks or by those of a model."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.ops import box_iou

from owl_swin.data.cutouts import SIDES
from owl_swin.data.scene import Scene, Scenes, readable
from owl_swin.detector import Detector
from owl_swin.errors import DataError
from owl_swin.files import make_folder, remove_file, write_image, write_json
from owl_swin.made_here import MADE_HERE, check_set_may_be_written, made_here

# Sides in pixels, longer and shorter, of the smallest box that is cut out.
LEAST_SIDES_PX = (36, 12)
# A thing is cut off by the edge of its photograph where its box comes so near; cut off at more sides, it is left.
EDGE_PX, MOST_TOUCHED = 2.0, 1
# Of what a model finds under the same name, the box must overlap by so much for its mask to be that of the thing.
SAME_IOU = 0.7
# Such a mask must fill so much of the box, and reach from side to side of so much of it.
LEAST_FILLED, LEAST_REACHED = 0.25, 0.75
# Pixels by which the edge of a thing fades.
FADE_PX = 1.0
# What a model is asked for: weak answers too, and those that lie over others.
ASKED: dict[str, Any] = {"threshold": 0.02, "nms_iou": 0.8, "rivals": 0.0, "top_k": 300, "masks": True}


@dataclass(frozen=True, slots=True)
class Cut:
    """What a run came to: the list that it wrote, how many things were cut out, and how many boxes were left because
    they were ``small``, cut off, or had no ``mask`` that fits."""

    path: Path
    kept: int
    small: int
    unmasked: int


def cut_out(
    scenes: Scenes,
    folder: Path,
    detector: Detector | None = None,
    *,
    names: Sequence[str] = (),
    without: Sequence[str] = (),
    least_score: float = 0.6,
    most: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Cut:
    """Writes the things of a set as RGBA pictures and cutouts.json, for ``paste_scenes``, into ``folder``.

    A box without a mask of its own is cut out by what ``detector`` finds in its place under its name; with None it is
    left. Of boxes that were guessed only those with ``least_score``. ``names`` and ``without`` are first names of the
    set's classes; of each there are at most ``most`` (0: all), drawn by ``seed``. Cut-outs of before are written over,
    those of another hand raise OwlSwinError; a set of which nothing can be cut out raises DataError.
    """
    called = [ways[0] for ways in scenes.names]
    if missing := sorted({*names, *without} - set(called)):
        raise DataError(f"the set has no class called {missing[0]!r}")
    if not 0 <= least_score <= 1:
        raise DataError(f"least_score must lie in 0 to 1, got {least_score}")
    target = folder / "cutouts.json"
    check_set_may_be_written(target, folder / "images", option="--to")
    wanted = {row for row, name in enumerate(called) if name not in without and (not names or name in names)}
    left = _chosen(scenes, wanted, least_score, most, seed)
    make_folder(folder / "images")
    remove_file(target, what="the list of cut-outs")
    records: list[dict[str, Any]] = []
    small = unmasked = 0
    for done, (place, rows) in enumerate(left.items(), 1):
        scene = scenes.scenes[place]
        picture = readable(scenes, scene)
        if picture is None:
            continue
        boxes = torch.from_numpy(scene.boxes_on(picture))
        fits = [row for row in rows if _touched(boxes[row].tolist(), picture.size) is not None]
        small += len(rows) - len(fits)
        for row, mask in zip(fits, _masks(scene, picture, boxes, fits, called, detector), strict=True):
            if mask is None:
                unmasked += 1
                continue
            file_name = f"{len(records):06d}.png"
            write_image(folder / "images" / file_name, _cut(picture, mask, boxes[row].tolist()), comment=MADE_HERE)
            name, touches = called[scene.labels[row]], _touched(boxes[row].tolist(), picture.size)
            records.append({"file_name": file_name, "name": name, "touches": touches})
        if progress is not None:
            progress(done, len(left))
    if not records:
        raise DataError(
            f"nothing was cut out: {small} boxes are too small or cut off, {unmasked} have no mask that fits"
        )
    write_json(target, made_here({"images": records}), what="the list of cut-outs", indent=None)
    return Cut(target, len(records), small, unmasked)


def _chosen(scenes: Scenes, wanted: set[int], least_score: float, most: int, seed: int) -> dict[int, list[int]]:
    """Rows of boxes to cut out, for each place of a scene that has any."""
    of_name: dict[int, list[tuple[int, int]]] = {}
    for place, scene in enumerate(scenes.scenes):
        for row, label in enumerate(scene.labels.tolist()):
            if label in wanted and (scene.scores is None or scene.scores[row] >= least_score):
                of_name.setdefault(label, []).append((place, row))
    rng = random.Random(seed)
    kept = [rng.sample(own, most) if 0 < most < len(own) else own for own in of_name.values()]
    chosen: dict[int, list[int]] = {}
    for place, row in sorted(pair for own in kept for pair in own):
        chosen.setdefault(place, []).append(row)
    return chosen


def _touched(box: Sequence[float], size: tuple[int, int]) -> list[str] | None:
    """The sides at which the picture (width, height) cuts a box off; None where the box is not to be cut out."""
    x0, y0, x1, y1 = box
    near = (x0 < EDGE_PX, y0 < EDGE_PX, x1 > size[0] - EDGE_PX, y1 > size[1] - EDGE_PX)
    shorter, longer = sorted((x1 - x0, y1 - y0))
    if longer < LEAST_SIDES_PX[0] or shorter < LEAST_SIDES_PX[1] or sum(near) > MOST_TOUCHED:
        return None
    return [side for side, touches in zip(SIDES, near, strict=True) if touches]


def _masks(
    scene: Scene,
    picture: Image.Image,
    boxes: torch.Tensor,
    rows: Sequence[int],
    called: Sequence[str],
    detector: Detector | None,
) -> list[np.ndarray | None]:
    """The mask [H, W] of each of these boxes, its own or the model's; None where there is none that fits."""
    own = [scene.masks[row] if row < len(scene.masks) else None for row in rows]
    made: list[np.ndarray | None] = []
    found = None
    if detector is not None and any(mask is None for mask in own):
        asked = list(dict.fromkeys(called[scene.labels[row]] for row in rows))
        found = detector.detect(picture, asked, **ASKED)
    for row, mask in zip(rows, own, strict=True):
        if mask is not None:
            shown = Image.fromarray(mask.pixels()).resize(picture.size, Image.Resampling.NEAREST)
            own_pixels = np.asarray(shown)
            made.append(own_pixels if own_pixels[_within(boxes[row].tolist())].any() else None)
            continue
        made.append(None)
        if found is None or found.masks is None or not len(found):
            continue
        overlap = box_iou(boxes[row][None].to(found.boxes), found.boxes)[0]
        overlap[found.labels != found.names.index(called[scene.labels[row]])] = 0
        best = int(overlap.argmax())
        if overlap[best] >= SAME_IOU:
            by_model = found.masks[best].cpu().numpy()
            made[-1] = by_model if _fits(by_model, boxes[row].tolist()) else None
    return made


def _fits(mask: np.ndarray, box: Sequence[float]) -> bool:
    part = mask[_within(box)]
    ys, xs = np.nonzero(part)
    if len(ys) < LEAST_FILLED * part.size:
        return False
    return bool((np.ptp(ys) + 1) * (np.ptp(xs) + 1) >= LEAST_REACHED * part.size)


def _within(box: Sequence[float]) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box
    return slice(max(0, int(y0)), int(np.ceil(y1))), slice(max(0, int(x0)), int(np.ceil(x1)))


def _cut(picture: Image.Image, mask: np.ndarray, box: Sequence[float]) -> Image.Image:
    rows, columns = _within(box)
    thing = picture.crop((columns.start, rows.start, min(columns.stop, picture.width), min(rows.stop, picture.height)))
    alpha = Image.fromarray(mask[rows, columns].astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(FADE_PX))
    thing.putalpha(alpha)
    return thing
