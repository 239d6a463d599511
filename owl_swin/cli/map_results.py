"""Where the maps of a call go: a PNG with its legend and a drawing a picture, or one COCO panoptic set."""

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from owl_swin.cli.printing import note, say
from owl_swin.cli.results import FreeNames, stem_of
from owl_swin.errors import OwlSwinError
from owl_swin.files import make_folder, remove_file, write_image, write_json
from owl_swin.made_here import MADE_HERE, check_set_may_be_written, made_here, may_be_written
from owl_swin.signals import STOPPED

if TYPE_CHECKING:
    from PIL import Image

    from owl_swin.semantic_map import SemanticMap

# Longest side of a drawing: JPEG has an end, and so has the patience of who looks at it.
DRAWN = 8192
# Folder of the PNGs of a panoptic set.
PANOPTIC = "panoptic"

# The picture of a map, its longer side at most so long.
Shown = Callable[[int], "Image.Image"]


class MapFormat(enum.StrEnum):
    """Form of the maps."""

    PNG = "png"
    COCO_PANOPTIC = "coco-panoptic"


class Maps(Protocol):
    """Where maps go."""

    def add(self, source: str, found: "SemanticMap", shown: Shown) -> None: ...
    def close(self) -> None: ...


@contextmanager
def closing(maps: Maps) -> Iterator[None]:
    """Writes what is finished, also where Ctrl-C, SIGTERM, a full disk, too little memory or a closed pipe ends the
    command."""
    try:
        yield
    except STOPPED:
        maps.close()
        say("stopped; the maps that are finished are written")
        raise
    except (OwlSwinError, OSError, RuntimeError, MemoryError, SystemExit):  # the last of a closed pipe
        with suppress(OwlSwinError, OSError):
            maps.close()
        raise
    maps.close()


class PngMaps:
    """A map with a palette, its legend and a drawing for each picture. Those of before are written over; files of that
    name which another hand made, as an annotator's of the same picture, are not."""

    def __init__(self, folder: Path):
        self._folder, self._names = folder, FreeNames()

    def add(self, source: str, found: "SemanticMap", shown: Shown) -> None:
        """Writes the files of one picture."""
        from owl_swin.map_formats import to_label_image, to_legend
        from owl_swin.render import draw_semantic_map

        name = self._names.take(stem_of(source), self._is_free)
        write_image(self._folder / f"{name}.png", to_label_image(found), what="the map", comment=MADE_HERE)
        write_json(self._folder / f"{name}.json", {"image": source, "map": f"{name}.png", **to_legend(found)})
        picture = shown(DRAWN)
        drawing = draw_semantic_map(picture, found.resized((picture.height, picture.width)))
        drawn = self._names.take(f"{name}-drawn", lambda name: may_be_written(self._folder / f"{name}.jpg"))
        write_image(self._folder / f"{drawn}.jpg", drawing, what="the drawing", comment=MADE_HERE)
        note(f"wrote {self._folder / name}.png")

    def _is_free(self, name: str) -> bool:
        """A legend is of the map beside it, and goes with it."""
        path = self._folder / f"{name}.png"
        return may_be_written(path) and (path.is_file() or not path.with_suffix(".json").exists())

    def close(self) -> None:
        """Everything is written."""


class PanopticMaps:
    """A PNG a picture, and at the end the JSON about them all."""

    def __init__(self, folder: Path, names: Sequence[str]):
        from owl_swin.map_formats import panoptic_categories

        self._folder, self._names, self._path = folder, FreeNames(), folder / f"{PANOPTIC}.json"
        check_set_may_be_written(self._path, folder / PANOPTIC, option="--save")
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories = panoptic_categories(names)
        make_folder(folder / PANOPTIC)

    def add(self, source: str, found: "SemanticMap", shown: Shown) -> None:
        """Writes one picture's PNG."""
        from owl_swin.map_formats import to_panoptic_image

        name = f"{self._names.take(stem_of(source))}.png"
        image, segments = to_panoptic_image(found)
        write_image(self._folder / PANOPTIC / name, image, what="the map", comment=MADE_HERE)
        if not self._images:  # a run that is killed leaves no segments of before on new maps
            remove_file(self._path, what="the segments")
        number, (height, width) = len(self._images) + 1, found.image_hw
        self._images.append({"id": number, "file_name": source, "width": width, "height": height})
        self._annotations.append({"image_id": number, "file_name": name, "segments_info": segments})

    def close(self) -> None:
        """Writes the JSON; without any map that of before stays."""
        if not self._images and self._path.exists():
            return
        content = {"images": self._images, "annotations": self._annotations, "categories": self._categories}
        write_json(self._path, made_here(content), indent=None)
        note(f"wrote {self._path}")
