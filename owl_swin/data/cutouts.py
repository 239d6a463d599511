"""Named cut-outs, pictures with transparency, as folders and lists hold them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from owl_swin.errors import DataError, ImageError
from owl_swin.files import read_json

CUTOUT_SUFFIXES = (".png", ".webp")
SIDES = ("left", "top", "right", "bottom")


class Cutout(NamedTuple):
    """A picture file, what it shows, and at which SIDES the edge of its photograph has cut the thing off."""

    path: Path
    name: str
    touches: tuple[str, ...] = ()


def find_cutouts(folder: Path, names: Sequence[str] = (), *, without: Sequence[str] = ()) -> list[Cutout]:
    """Cut-outs of a folder: RGBA pictures called after what they show ("t-shirt.png", "red_mug-2.webp").

    A JSON file of records {"file_name", "name"} in ``images`` may stand for the folder, or lie in it as cutouts.json,
    as `owl-swin cutouts` writes it; files then lie in ``images`` beside it. With ``names`` only these; never those in
    ``without``.
    """
    listed = folder if folder.is_file() else folder / "cutouts.json"
    if listed.is_file():
        try:
            records = read_json(listed)["images"]
            found = [_listed(listed.parent / "images", record) for record in records]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{listed}: not a list of named cut-outs (problem with {error})") from None
    elif folder.is_dir():
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in CUTOUT_SUFFIXES)
        found = [Cutout(p, re.sub(r"-\d+$", "", p.stem).replace("_", " ").strip()) for p in files]
    else:
        raise DataError(f"{folder}: neither a folder of cut-outs nor a JSON file that lists them")
    missing = sorted({*names, *without} - {one.name for one in found})
    if missing:
        raise DataError(f"{folder}: has no cut-out called {missing[0]!r}")
    return [one for one in found if one.name not in without and (not names or one.name in names)]


def _listed(folder: Path, record: dict[str, object]) -> Cutout:
    touches = record.get("touches") or []
    if not isinstance(touches, list) or not set(touches) <= set(SIDES):
        raise ValueError(f"touches, which lists some of {', '.join(SIDES)}")
    return Cutout(folder / str(record["file_name"]), str(record["name"]), tuple(touches))


def read_cutout(path: Path) -> Image.Image:
    """What is there of the cut-out, RGBA; one that cannot be read, or shows nothing, raises ImageError."""
    try:
        with Image.open(path) as picture:
            cutout = picture.convert("RGBA")
    except OSError as error:
        raise ImageError(f"{path}: cannot be read as a cut-out ({error})") from None
    box = cutout.getchannel("A").getbbox()
    if box is None:
        raise ImageError(f"{path}: shows nothing, every pixel is transparent")
    return cutout.crop(box)
