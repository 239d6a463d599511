"""Any teacher, shown pictures in tiles too."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from owl_swin.detections import Detections
from owl_swin.frame import Crop
from owl_swin.postprocess import DetectOptions
from owl_swin.teachers.teacher import Teacher, checked
from owl_swin.tiling import FoundInView, Tiles, join_views


class Tiled:
    """A teacher that is shown each whole picture and then its tiles, as many together as it was given pictures.

    What several of them show is found once. A Detector does this itself, with less memory.
    """

    def __init__(self, teacher: Teacher, tiles: Tiles):
        self._teacher, self._tiles = teacher, tiles
        self.name = teacher.name
        self.identity: dict[str, Any] = {"teacher": teacher.identity, "tiles": asdict(tiles)}

    def find(
        self, pictures: Sequence[Image.Image], texts: Sequence[tuple[str, ...]], threshold: float
    ) -> list[Detections]:
        """As the protocol has it."""
        together = max(1, len(pictures))
        return [self._find(one, own, threshold, together) for one, own in zip(pictures, texts, strict=True)]

    def at_scale(self, scale: float) -> "Tiled":
        """The teacher at that scale; the tiles stay."""
        return Tiled(self._teacher.at_scale(scale), self._tiles)

    def _find(self, picture: Image.Image, texts: tuple[str, ...], threshold: float, together: int) -> Detections:
        crops: list[Crop | None] = [None, *self._tiles.crops((picture.height, picture.width))]
        found: dict[int, FoundInView] = {}
        for start in range(0, len(crops), together):
            some = crops[start : start + together]
            shown = [picture if crop is None else picture.crop(crop) for crop in some]
            answers = self._teacher.find(shown, [texts] * len(some), threshold)
            for number, (one, view, crop) in enumerate(zip(answers, shown, some, strict=True), start):
                found[number] = FoundInView(_in_picture(checked(one, view, texts, self.name), crop, picture), crop, 0)
        most = max(1, sum(len(view.found) for view in found.values()))
        return join_views(found, DetectOptions(threshold=threshold, max_detections=most))


def _in_picture(found: Detections, crop: Crop | None, picture: Image.Image) -> Detections:
    """What was found in a tile, in pixels of its picture."""
    x, y = (0, 0) if crop is None else crop[:2]
    boxes = found.boxes + found.boxes.new_tensor([x, y, x, y])
    return Detections(boxes, found.scores, found.labels, found.names, (picture.height, picture.width), found.patches)
