"""Pictures with boxes and names, for detection: reading them, and holding the decoded ones in bounded memory."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from owl_swin.errors import DataError, ImageError
from owl_swin.image import open_image
from owl_swin.training.config import DataConfig

logger = logging.getLogger("owl_swin")


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a picture lies, its boxes [N, 4] in xyxy pixels, and for each a row of the set's names."""

    source: Path
    boxes: np.ndarray
    labels: np.ndarray
    tile: tuple[int, int, int, int] | None = None  # xyxy part of the source that is the picture
    stated_wh: tuple[int, int] | None = None  # size that the annotations speak of

    def boxes_on(self, picture: Image.Image) -> np.ndarray:
        """The boxes in pixels of the picture as it is, which may be stored smaller than annotated."""
        if self.stated_wh is None or self.stated_wh == picture.size:
            return self.boxes
        x, y = picture.width / self.stated_wh[0], picture.height / self.stated_wh[1]
        return self.boxes * np.array([x, y, x, y], dtype=np.float32)


@dataclass(slots=True)
class Scenes:
    """One set. Every name is annotated wherever it occurs, so a name that a scene lacks is a negative there."""

    scenes: list[Scene]
    names: list[list[str]]  # the ways to say each class
    broken: list[str] = field(default_factory=list)
    cache_bytes: int = 4 << 30
    _cache: dict[object, Image.Image] = field(default_factory=dict)

    def picture(self, scene: Scene) -> Image.Image:
        """The decoded picture, kept while there is room."""
        key = (scene.source, scene.tile)
        if key in self._cache:
            return self._cache[key]
        sheet = self._cache.get(scene.source) or open_image(scene.source)
        picture = sheet if scene.tile is None else sheet.crop(scene.tile)
        kept = scene.source if scene.tile is not None else key
        size = sheet.width * sheet.height * 3
        if kept not in self._cache and size <= self.cache_bytes:
            self._cache[kept] = sheet
            self.cache_bytes -= size
        return picture

    def unreadable(self) -> DataError:
        """What to raise when no picture of the set can be read."""
        return DataError(
            f"none of 100 pictures drawn from {self.scenes[0].source.parent} could be read: {self.broken[-1]}"
        )


def load_scenes(config: DataConfig) -> Scenes:
    """Reads one set of kind "coco" or "sheets". Broken entries are left out and listed in ``broken``."""
    if config.kind not in ("coco", "sheets"):
        raise DataError(f"{config.path}: sets of kind {config.kind!r} have no boxes to detect; use 'coco' or 'sheets'")
    try:
        path, images = Path(config.path), Path(config.images)
        scenes = read_coco(path, images) if config.kind == "coco" else _read_sheets(path, config.split)
    except OSError as error:
        raise DataError(f"{config.path}: cannot be read ({error.strerror or error})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{config.path}: not a JSON file ({error})") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{config.path}: not in the form of kind {config.kind!r} (problem with {error})") from None
    if not scenes.scenes or not scenes.names:
        raise DataError(f"{config.path}: holds {len(scenes.scenes)} pictures and {len(scenes.names)} names, need both")
    if scenes.broken:
        logger.warning("%s: %d entries left out; the first is %s", config.path, len(scenes.broken), scenes.broken[0])
    return scenes


def read_coco(path: Path, images: Path) -> Scenes:
    """COCO detection form: "images", "annotations" with xywh boxes, "categories". Crowd regions are left out."""
    data = json.loads(path.read_text())
    categories = sorted(data["categories"], key=lambda c: c["id"])
    rows = {c["id"]: row for row, c in enumerate(categories)}
    image_ids = {record["id"] for record in data["images"]}
    by_image: dict[int, list[Mapping]] = {}
    broken: list[str] = []
    for annotation in data["annotations"]:
        if annotation["category_id"] not in rows:
            broken.append(f"annotation {annotation.get('id')}: unknown category {annotation['category_id']}")
        elif annotation["image_id"] not in image_ids:
            broken.append(f"annotation {annotation.get('id')}: unknown picture {annotation['image_id']}")
        elif not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    scenes = []
    for record in data["images"]:
        boxes, labels = [], []
        for annotation in by_image.get(record["id"], ()):
            x, y, w, h = annotation["bbox"]
            x0, y0 = max(x, 0), max(y, 0)
            x1, y1 = min(x + w, record["width"]), min(y + h, record["height"])
            if not (x1 - x0 > 0 and y1 - y0 > 0):  # NaN fails this too
                broken.append(f"annotation {annotation.get('id')}: empty box {annotation['bbox']}")
                continue
            boxes.append((x0, y0, x1, y1))
            labels.append(rows[annotation["category_id"]])
        scenes.append(
            Scene(
                images / record["file_name"],
                np.array(boxes, dtype=np.float32).reshape(-1, 4),
                np.array(labels, dtype=np.int64),
                stated_wh=(record["width"], record["height"]),
            )
        )
    return Scenes(scenes, [[c["name"]] for c in categories], broken)


def _read_sheets(path: Path, split: str) -> Scenes:
    manifest = json.loads(path.read_text())
    side, cols = manifest["tile_px"], manifest["sheet_grid"][1]
    scenes = []
    seen = sorted({label for sheet in manifest[split] for label in sheet["labels"]})
    rows = {label: row for row, label in enumerate(seen)}
    for sheet in manifest[split]:
        for place, (label, box) in enumerate(zip(sheet["labels"], sheet["boxes_xyxy"], strict=True)):
            x, y = place % cols * side, place // cols * side
            scenes.append(
                Scene(
                    path.parent / sheet["sheet"],
                    np.array([box], dtype=np.float32),
                    np.array([rows[label]]),
                    (x, y, x + side, y + side),
                )
            )
    names = [[n.strip() for n in manifest["classes"][label].split(",")] for label in seen]
    return Scenes(scenes, names)


def readable(scenes: Scenes, scene: Scene) -> Image.Image | None:
    """The picture, or None (noted once in ``broken``) when its file cannot be read."""
    try:
        return scenes.picture(scene)
    except ImageError as error:
        if str(error) not in scenes.broken:
            scenes.broken.append(str(error))
            logger.warning("left out: %s", error)
        return None
