"""Pictures with a class name each, as squares of uint8: tiles, crops, labelled files, folders, cutouts."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from owl_swin.data.broken import image_reason
from owl_swin.data.coco import read_coco
from owl_swin.data.config import DataConfig
from owl_swin.data.naming import images_folder, pictures_in, spoken_names, texts_of
from owl_swin.data.scene import open_annotated
from owl_swin.data.tiles import Manifest
from owl_swin.errors import ImageError
from owl_swin.files import read_json
from owl_swin.frame import square_around
from owl_swin.image import ImageSource, open_image

# Pixels [S, S, 3] uint8, and the ways to say what is there.
Sample = tuple[np.ndarray, tuple[str, ...]]

# A box with a shorter side than this shows too little of its object, in pixels of the stored picture.
MIN_CROP_PX = 16
# Surroundings of a crop on every side, in shares of the box's longer side.
CROP_MARGIN = 0.1
# File in a folder of class folders: folder name → "name, synonym".
FOLDER_NAMES = "names.json"


def square(source: ImageSource, size: int) -> np.ndarray:
    """The middle square of a picture, upright, as [size, size, 3] uint8; an unreadable one raises ImageError."""
    picture = open_image(source)
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    return _resized(picture, size, (left, top, left + side, top + side))


def squares(
    entries: Iterable[tuple[str, ImageSource, tuple[str, ...]]], size: int, broken: list[str]
) -> Iterator[Sample]:
    """Samples of (where, picture, texts); pictures without a text or that cannot be read are noted in ``broken``."""
    for where, source, texts in entries:
        if not texts:
            broken.append(f"{where}: has no text")
            continue
        try:
            yield square(source, size), texts
        except ImageError as error:
            broken.append(f"{where}: {image_reason(error)}" if isinstance(source, bytes) else str(error))


def read_tiles(config: DataConfig, broken: list[str]) -> Iterator[Sample]:
    """The tiles of sheets."""
    manifest = Manifest.read(Path(config.path), config.split, config.names)
    for tile, label in manifest.pictures(range(len(manifest.names)), broken):
        yield (
            (np.array(tile) if manifest.side == config.size else square(tile, config.size)),
            tuple(manifest.names[label]),
        )


def read_crops(config: DataConfig, broken: list[str]) -> Iterator[Sample]:
    """The boxes of a COCO file, each as a square with some surroundings, inside the picture where it fits."""
    path = Path(config.path)
    scenes = read_coco(path, images_folder(path, config.images), ignore_below=config.ignore_below)
    broken += scenes.broken
    for scene in scenes.scenes:
        if not len(scene.boxes):
            continue
        try:
            picture = open_annotated(scene)
        except ImageError as error:
            broken.append(str(error))
            continue
        for box, label in zip(scene.boxes_on(picture).tolist(), scene.labels.tolist(), strict=True):
            if min(box[2] - box[0], box[3] - box[1]) >= MIN_CROP_PX:
                crop = picture.crop(square_around(box, (picture.height, picture.width), CROP_MARGIN))
                yield square(crop, config.size), tuple(scenes.names[label])


def read_labelled(config: DataConfig, broken: list[str]) -> Iterator[Sample]:
    """Image records with a ``label``: "name, synonym"."""
    path = Path(config.path)
    folder = images_folder(path, config.images)
    records = image_records(path, "label", broken)
    entries = ((name, folder / name, tuple(spoken_names(label))) for name, label in records)
    yield from squares(entries, config.size, broken)


def read_folders(config: DataConfig, broken: list[str]) -> Iterator[Sample]:
    """A folder for each class, in ``path`` or in its folder of the split; names.json may say what folders mean."""
    path = Path(config.path)
    root = path / config.split if (path / config.split).is_dir() else path
    names_file = next((folder / FOLDER_NAMES for folder in (root, path) if (folder / FOLDER_NAMES).is_file()), None)
    meanings: dict[str, str] = read_json(names_file) if names_file else {}
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        names = tuple(spoken_names(meanings.get(folder.name, folder.name)))
        yield from squares(((str(one), one, names) for one in pictures_in(folder)), config.size, broken)


def read_cutouts(config: DataConfig, broken: list[str], *, backgrounds: int = 3) -> Iterator[Sample]:
    """RGBA pictures with a ``name``, each before several random backgrounds."""
    rng = np.random.default_rng(0)
    path = Path(config.path)
    folder = images_folder(path, config.images)
    for name, text in image_records(path, "name", broken):
        try:
            open_image(folder / name)  # tells what is wrong in one sentence; the transparency is read below
            with Image.open(folder / name) as file:
                cutout = file.convert("RGBA").resize((config.size, config.size))
        except ImageError as error:
            broken.append(str(error))
            continue
        for _ in range(backgrounds):
            colours = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
            canvas = Image.fromarray(colours).resize(cutout.size, Image.Resampling.BILINEAR).convert("RGBA")
            yield np.array(Image.alpha_composite(canvas, cutout).convert("RGB")), (text,)


def image_records(path: Path, key: str, broken: list[str]) -> Iterator[tuple[str, str]]:
    """File name and the text under ``key`` of each image record."""
    for place, record in enumerate(read_json(path)["images"], start=1):
        known: dict[str, Any] = record if isinstance(record, dict) else {}
        name, text = texts_of(known.get("file_name")), texts_of(known.get(key))
        if name and text:
            yield name[0], text[0]
        else:
            broken.append(f"image record number {place}: has no {'file_name' if text else key}")


def _resized(picture: Image.Image, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(picture.resize((size, size), Image.Resampling.BICUBIC, box))
