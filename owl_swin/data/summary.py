"""What a data set holds, in plain numbers ready for JSON: `owl-swin info` prints them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.broken import reasons
from owl_swin.data.pictures import Pictures
from owl_swin.data.scene import Scene, Scenes, read_header
from owl_swin.errors import ImageError
from owl_swin.image import open_image
from owl_swin.orientation import SWAPS_SIDES, UPRIGHT

# Borders between small, medium and large boxes in square pixels, as COCO has them.
SMALL_PX2, LARGE_PX2 = 32**2, 96**2
# Beyond this many pictures, sizes are taken from so many, evenly spread.
MOST_OPENED = 5000
# A ratio of width to height within 1.1 of a square is called square.
SQUARE = 1.1


def summarise_scenes(scenes: Scenes, *, check: bool = False) -> dict[str, Any]:
    """Counts, box sizes and picture sizes of a set with boxes; what cannot be read joins its ``broken``.

    Pictures are opened only as far as their size; ``check`` decodes every one.
    """
    sizes, turned = _sizes(scenes, check)
    labels = [scene.labels for scene in scenes.scenes]
    counts = np.bincount(np.concatenate(labels), minlength=len(scenes.names))
    per_picture = np.array([len(own) for own in labels])
    named = [", ".join(names) for names in scenes.names]
    federated = any(scene.negatives is not None for scene in scenes.scenes)
    return {
        "pictures": len(scenes.scenes),
        "pictures_without_boxes": int((per_picture == 0).sum()),
        "boxes": int(counts.sum()),
        "boxes_a_picture": _spread(per_picture),
        "boxes_with_masks": sum(m is not None for s in scenes.scenes for m in s.masks[: len(s.labels)]),
        "areas": sum(len(scene.area_labels) for scene in scenes.scenes),
        "classes": len(scenes.names),
        "classes_without_boxes": int((counts == 0).sum()),
        "classes_with_synonyms": sum(len(names) > 1 for names in scenes.names),
        "boxes_of_class": {named[row]: int(counts[row]) for row in np.argsort(-counts, kind="stable")},
        "verified_negatives_a_picture": _spread([len(s.absent(len(named))) for s in scenes.scenes])
        if federated
        else None,
        "pictures_with_unknown_classes": sum(len(scene.unknown) > 0 for scene in scenes.scenes),
        **_box_sizes(scenes.scenes, sizes),
        **_picture_sizes([sizes[s] for s in {_place(s): None for s in scenes.scenes} if s in sizes]),
        "pictures_turned_by_exif": turned,
        "pictures_not_of_stated_size": sum(_other_size(scene, sizes) for scene in scenes.scenes),
        "broken": _broken(scenes.broken),
    }


def summarise_pictures(pictures: Pictures) -> dict[str, Any]:
    """Counts of a set for alignment: pictures of each class, or captions and their lengths in words."""
    summary: dict[str, Any] = {"pictures": len(pictures.images)}
    if pictures.captioned:
        captions = [caption for own in pictures.texts for caption in own]
        summary |= {
            "captions": len(captions),
            "captions_a_picture": _spread([len(own) for own in pictures.texts]),
            "words_a_caption": _spread([len(caption.split()) for caption in captions]),
            "different_captions": len(set(captions)),
        }
    else:
        counts = np.bincount(pictures.labels.numpy(), minlength=len(pictures.texts))
        named = [", ".join(names) for names in pictures.texts]
        summary |= {
            "classes": len(named),
            "classes_with_synonyms": sum(len(names) > 1 for names in pictures.texts),
            "pictures_of_class": {named[row]: int(counts[row]) for row in np.argsort(-counts, kind="stable")},
        }
    return summary | {"broken": _broken(pictures.broken)}


Place = tuple[Path, tuple[int, int, int, int] | None]


def _place(scene: Scene) -> Place:
    return scene.source, scene.tile


def _sizes(scenes: Scenes, check: bool) -> tuple[dict[Place, tuple[int, int]], int]:
    """Upright (width, height) of the pictures looked at, and how many are stored in another orientation."""
    sources = list(dict.fromkeys(scene.source for scene in scenes.scenes))
    if not check and len(sources) > MOST_OPENED:
        sources = [sources[i] for i in np.linspace(0, len(sources) - 1, MOST_OPENED).astype(int)]
    found: dict[Path, tuple[int, int]] = {}
    turned = 0
    for source in sources:
        try:
            found[source], is_turned = _upright_size(source, whole=check)
            turned += is_turned
        except ImageError as error:
            scenes.broken.append(str(error))
    sizes: dict[Place, tuple[int, int]] = {}
    for scene in scenes.scenes:
        if scene.source in found:
            x0, y0, x1, y1 = scene.tile or (0, 0, *found[scene.source])
            sizes[_place(scene)] = (x1 - x0, y1 - y0)
    return sizes, turned


def _upright_size(source: Path, *, whole: bool) -> tuple[tuple[int, int], bool]:
    (width, height), orientation = read_header(source)
    if whole or not width:
        return open_image(source).size, orientation in UPRIGHT
    return ((height, width) if orientation in SWAPS_SIDES else (width, height)), orientation in UPRIGHT


def _box_sizes(scenes: Sequence[Scene], sizes: dict[Place, tuple[int, int]]) -> dict[str, Any]:
    """Shares of small, medium and large boxes (in the pixels that the boxes speak of), and of the picture's area."""
    areas, shares = [np.zeros(0)], [np.zeros(0)]
    for scene in scenes:
        stated = scene.stated_wh
        wh = stated if stated is not None and stated != (1, 1) else sizes.get(_place(scene))
        if wh is None:
            continue
        unit = np.array(wh if stated == (1, 1) else (1, 1))
        sides = (scene.boxes[:, 2:] - scene.boxes[:, :2]) * unit
        areas.append(sides.prod(1))
        shares.append(sides.prod(1) / (wh[0] * wh[1]))
    area, share = np.concatenate(areas), np.concatenate(shares)
    if not len(area):
        return {"box_sizes": None, "box_percent_of_picture": None}
    small, large = float((area < SMALL_PX2).mean()), float((area >= LARGE_PX2).mean())
    named = {"small": small, "medium": 1 - small - large, "large": large}
    percentiles = np.percentile(100 * share, (5, 25, 50, 75, 95))
    return {
        "box_sizes": {name: round(value, 4) for name, value in named.items()},
        "box_percent_of_picture": {
            f"p{p}": round(float(value), 3) for p, value in zip((5, 25, 50, 75, 95), percentiles, strict=True)
        },
    }


def _picture_sizes(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    if not sizes:
        return {
            "pictures_looked_at": 0,
            "width_px": None,
            "height_px": None,
            "aspect_ratio": None,
            "frequent_sizes": {},
        }
    width, height = np.array(sizes).T
    ratio = width / height
    shapes = {
        "portrait": ratio < 1 / SQUARE,
        "square": abs(np.log(ratio)) <= np.log(SQUARE),
        "landscape": ratio > SQUARE,
    }
    return {
        "pictures_looked_at": len(sizes),
        "width_px": _spread(width),
        "height_px": _spread(height),
        "aspect_ratio": _spread(ratio),
        "shapes": {name: round(float(chosen.mean()), 4) for name, chosen in shapes.items()},
        "frequent_sizes": {f"{w}x{h}": n for (w, h), n in Counter(sizes).most_common(3)},
    }


def _other_size(scene: Scene, sizes: dict[Place, tuple[int, int]]) -> bool:
    size = sizes.get(_place(scene))
    return size is not None and scene.stated_wh not in (None, (1, 1), size)


def _spread(values: Any) -> dict[str, float]:
    values = np.asarray(values, dtype=float)
    if not len(values):
        return {"min": 0.0, "median": 0.0, "mean": 0.0, "max": 0.0}
    found = {"min": values.min(), "median": np.median(values), "mean": values.mean(), "max": values.max()}
    return {name: round(float(value), 3) for name, value in found.items()}


def _broken(broken: Sequence[str]) -> dict[str, Any]:
    return {"count": len(broken), "reasons": reasons(broken), "first": list(broken[:10])}
