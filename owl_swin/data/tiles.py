"""Sheets of equal tiles with a manifest: each tile is a picture of one named object with one box."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from owl_swin.data.naming import read_class_names, spoken_names
from owl_swin.data.scene import BoxList, Scenes
from owl_swin.errors import ImageError
from owl_swin.files import read_json
from owl_swin.image import open_image


@dataclass(frozen=True, slots=True)
class Manifest:
    """What manifest.json says: tiles of ``side`` pixels, ``rows`` x ``cols`` a sheet, and the names of each class.

    Tiles of a class without a name are left out.
    """

    side: int
    rows: int
    cols: int
    names: list[list[str]]
    sheets: list[dict[str, Any]]
    folder: Path
    heldout: tuple[int, ...] | None

    @staticmethod
    def read(path: Path, split: str, names_file: str = "") -> "Manifest":
        """The part ``split`` of a manifest. ``names_file`` gives its classes other names, a line each in their order;
        an empty line leaves a class out."""
        content = read_json(path)
        rows, cols = content["sheet_grid"]
        names = [spoken_names(entry) for entry in content["classes"]]
        if names_file:
            names = read_class_names(names_file, len(names), "sheets")
        heldout = tuple(content["heldout"]) if "heldout" in content else None
        return Manifest(content["tile_px"], rows, cols, names, content[split], path.parent, heldout)

    def tiles(self, sheet: dict[str, Any], broken: list[str]) -> Iterator[tuple[int, int, int, int]]:
        """Place, label, and left and top pixel of the tiles in use."""
        for place, label in enumerate(sheet["labels"][: self.rows * self.cols]):
            if not isinstance(label, int) or not 0 <= label < len(self.names):
                broken.append(f"{sheet['sheet']} tile {place}: unknown class {label}")
                continue
            if self.names[label]:
                yield place, label, place % self.cols * self.side, place // self.cols * self.side

    def pictures(self, labels: Collection[int], broken: list[str]) -> Iterator[tuple[Image.Image, int]]:
        """The tiles of some labels as pictures, each with its label, one sheet open at a time. A
        sheet that cannot be read, or is of another size than stated, is noted in ``broken``."""
        stated = (self.cols * self.side, self.rows * self.side)
        for sheet in self.sheets:
            tiles = [tile for tile in self.tiles(sheet, broken) if tile[1] in labels]
            if not tiles:
                continue
            try:
                picture = open_image(self.folder / sheet["sheet"])
            except ImageError as error:
                broken.append(str(error))
                continue
            if picture.size != stated:
                why = f"size differs from the manifest's ({picture.size}, stated is {stated})"
                broken.append(f"{sheet['sheet']}: {why}")
                continue
            for _, label, x, y in tiles:
                yield picture.crop((x, y, x + self.side, y + self.side)), label


def read_sheets(path: Path, split: str, names_file: str = "") -> Scenes:
    """A scene a tile. Only names that occur in the split, so that a name which it never shows is no negative.

    Classes to which ``names_file`` gives the same names are one.
    """
    manifest = Manifest.read(path, split, names_file)
    broken: list[str] = []
    tiles = [
        (path.parent / sheet["sheet"], label, (x, y), sheet["boxes_xyxy"][place])
        for sheet in manifest.sheets
        for place, label, x, y in manifest.tiles(sheet, broken)
    ]
    # The label that stands for each: of classes made one by the file, the first.
    names = manifest.names
    first = {row: names.index(names[row]) if names_file else row for row in {label for _, label, _, _ in tiles}}
    seen = sorted(set(first.values()))
    rows = {label: seen.index(one) for label, one in first.items()}
    side = manifest.side
    scenes = []
    for source, label, (x, y), box in tiles:
        boxes = BoxList(broken, (side, side))
        boxes.add(f"{source.name} tile at {x}, {y}", rows[label], box)
        scenes.append(boxes.scene(source, tile=(x, y, x + side, y + side), stated_wh=None))
    return Scenes(scenes, [names[label] for label in seen], broken)
