"""Makes a detection set out of named cut-outs: on photographs, with their boxes and masks (arXiv:1708.01642)."""

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from owl_swin.errors import DataError, ImageError
from owl_swin.files import make_folder, read_json, remove_file, write_image, write_json
from owl_swin.image import open_image
from owl_swin.made_here import MADE_HERE, check_set_may_be_written, coco_info
from owl_swin.rle import encode_rle

# Height of a pasted thing as a share of the photograph's shorter side.
HEIGHTS = (0.15, 0.6)
CUTOUT_SUFFIXES = (".png", ".webp")
# A thing of which less than this share of its pixels stays visible behind later ones gets no box.
LEAST_VISIBLE = 0.5


def paste_scenes(
    cutouts: Sequence[tuple[Path, str]],
    photographs: Sequence[Path],
    folder: Path,
    *,
    pictures: int,
    most_things: int = 4,
    longer_side_px: int = 320,
    sizes: tuple[float, float] | None = None,
    seed: int = 0,
) -> Path:
    """Writes ``pictures`` scenes of 1 to ``most_things`` cut-outs and their COCO file; returns the file.

    ``cutouts`` are pictures with transparency and their names. Things are scaled, mirrored half the time, and may cover
    one another; boxes and masks are of what can be seen. ``sizes``, each above 0 and at most 1, are the smallest and
    the largest longer side of a thing as a share of the photograph's, and between them a thing of twice the size is as
    likely as one of half; None: heights of 0.15 to 0.6 of its shorter side. Photographs are scaled down to
    ``longer_side_px``. The same seed gives the same scenes. A set of before is written over; one of another hand raises
    OwlSwinError.
    """
    if sizes is not None and not 0 < sizes[0] <= sizes[1] <= 1:
        raise DataError(f"sizes must be two numbers above 0 and at most 1, the smaller first, got {sizes}")
    if not cutouts or not photographs:
        raise DataError(f"pasting needs cut-outs and photographs, got {len(cutouts)} and {len(photographs)}")
    names = sorted({name for _, name in cutouts})
    rows = {name: i + 1 for i, name in enumerate(names)}
    images: list[dict] = []
    annotations: list[dict] = []
    target = folder / "annotations.json"
    check_set_may_be_written(target, folder / "images", option="--to")
    make_folder(folder / "images")
    for index in range(pictures):
        rng = random.Random(seed * 1_000_003 + index)
        canvas = open_image(rng.choice(photographs))
        canvas.thumbnail((longer_side_px, longer_side_px))
        owner = np.full((canvas.height, canvas.width), -1)
        placed: list[tuple[str, int]] = []
        for _ in range(rng.randint(1, most_things)):
            path, name = rng.choice(cutouts)
            mask = _paste(canvas, _read_cutout(path), rng, sizes)
            owner[mask] = len(placed)
            placed.append((name, int(mask.sum())))
        if not images:  # a run that is stopped leaves no boxes of before on new pictures
            remove_file(target, what="the annotations")
        file_name = f"{index:06d}.jpg"
        write_image(folder / "images" / file_name, canvas, quality=92, comment=MADE_HERE)
        images.append({"id": index + 1, "file_name": file_name, "width": canvas.width, "height": canvas.height})
        for place, (name, pixels) in enumerate(placed):
            ys, xs = np.nonzero(owner == place)
            if pixels and len(ys) >= LEAST_VISIBLE * pixels:
                x, y = int(xs.min()), int(ys.min())
                box = [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": rows[name],
                        "bbox": box,
                        "area": len(ys),
                        "iscrowd": 0,
                        "segmentation": encode_rle(owner == place),
                    }
                )
    categories = [{"id": row, "name": name} for name, row in rows.items()]
    content = {"info": coco_info(), "images": images, "annotations": annotations, "categories": categories}
    write_json(target, content, what="the annotations", indent=None)
    return target


def find_cutouts(folder: Path, names: Sequence[str] = (), *, without: Sequence[str] = ()) -> list[tuple[Path, str]]:
    """Cut-outs of a folder: RGBA pictures called after what they show ("t-shirt.png", "red_mug-2.webp").

    A JSON file of records {"file_name", "name"} in ``images`` may stand for the folder; files then lie in ``images``
    beside it. With ``names`` only these; never those in ``without``.
    """
    if folder.is_file():
        try:
            records = read_json(folder)["images"]
            found = [(folder.parent / "images" / r["file_name"], str(r["name"])) for r in records]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: not a list of named cut-outs (problem with {error})") from None
    elif folder.is_dir():
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in CUTOUT_SUFFIXES)
        found = [(p, re.sub(r"-\d+$", "", p.stem).replace("_", " ").strip()) for p in files]
    else:
        raise DataError(f"{folder}: neither a folder of cut-outs nor a JSON file that lists them")
    missing = sorted({*names, *without} - {name for _, name in found})
    if missing:
        raise DataError(f"{folder}: has no cut-out called {missing[0]!r}")
    return [(path, name) for path, name in found if name not in without and (not names or name in names)]


def _read_cutout(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            cutout = picture.convert("RGBA")
    except OSError as error:
        raise ImageError(f"{path}: cannot be read as a cut-out ({error})") from None
    box = cutout.getchannel("A").getbbox()
    if box is None:
        raise ImageError(f"{path}: shows nothing, every pixel is transparent")
    return cutout.crop(box)


def _paste(
    canvas: Image.Image, cutout: Image.Image, rng: random.Random, sizes: tuple[float, float] | None
) -> np.ndarray:
    """Pastes in place at a random place and size; returns which pixels [H, W] it covers."""
    if sizes is None:
        scale = rng.uniform(*HEIGHTS) * min(canvas.size) / cutout.height
    else:
        share = math.exp(rng.uniform(*map(math.log, sizes)))
        scale = share * max(canvas.size) / max(cutout.size)
    scale = min(scale, canvas.width / cutout.width, canvas.height / cutout.height)
    width, height = max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale))
    thing = cutout.resize((width, height), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    x, y = rng.randint(0, canvas.width - width), rng.randint(0, canvas.height - height)
    canvas.paste(thing, (x, y), thing)
    mask = np.zeros((canvas.height, canvas.width), dtype=bool)
    mask[y : y + height, x : x + width] = np.asarray(thing.getchannel("A")) > 127
    return mask
