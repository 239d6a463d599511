"""Label maps as training scenes: areas that show a name, without boxes of things."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from owl_swin.data.label_maps import LabelledPicture, read_label_maps, read_value_names
from owl_swin.data.masks import KEPT_MAPS
from owl_swin.data.naming import images_folder, pictures_in, spoken_names
from owl_swin.data.scene import BoxList, Scene, Scenes
from owl_swin.errors import DataError, ImageError

# Threads that decode maps while a set is read; Pillow lets others work meanwhile.
READERS = 8


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """The pixels of a labelled picture that show the name ``row``."""

    picture: LabelledPicture
    row: int

    def pixels(self) -> np.ndarray:
        """Which pixels [H, W] it covers."""
        return _labels(self.picture) == self.row


@lru_cache(maxsize=KEPT_MAPS)
def _labels(picture: LabelledPicture) -> np.ndarray:
    return picture.labels()


def read_label_scenes(path: Path, images: str, names: str, ignore: tuple[int, ...]) -> Scenes:
    """A folder of label maps, read once to see what each shows; ``names`` is the file that says what values mean, of
    which those in ``ignore`` mean nothing. A map that cannot be read is noted, and its picture left out."""
    found = read_label_maps(path, images or _pictures_of(path), names=read_value_names(names), ignore=ignore)
    broken = list(found.notes)
    said = [spoken_names(name) or [name] for name in found.names]
    with ThreadPoolExecutor(READERS) as pool:
        read = list(pool.map(_scene, found.pictures))
    scenes = [scene for scene in read if isinstance(scene, Scene)]
    return Scenes(scenes, said, broken + [problem for problem in read if isinstance(problem, str)])


def _pictures_of(maps: Path) -> Path:
    """The folder of the pictures of maps: that of the maps, where each lies beside its picture, else as of any set."""
    names = [path.with_suffix("") for path in pictures_in(maps)]
    return maps if len(set(names)) < len(names) else images_folder(maps, "")


def _scene(picture: LabelledPicture) -> Scene | str:
    """The areas of one picture, or what is wrong with its map."""
    try:
        labels = picture.labels()
    except (DataError, ImageError) as error:
        return str(error)
    boxes = BoxList([], (labels.shape[1], labels.shape[0]))
    for row in np.unique(labels[labels >= 0]).tolist():
        ys, xs = (np.flatnonzero((labels == row).any(axis)) for axis in (1, 0))
        corners = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
        x0, y0, x1, y1 = (float(corner) for corner in corners)
        boxes.keep(row, (x0, y0, x1, y1), 0.0, LabelledRow(picture, row))
    return boxes.scene(picture.source)
