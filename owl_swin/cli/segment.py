"""`owl-swin segment`: what each pixel of a picture shows, by a network with fixed classes."""

import enum
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from owl_swin.cli import options
from owl_swin.cli.pictures import check_apart, find_pictures, open_picture
from owl_swin.cli.printing import Progress, emit_line, note, say
from owl_swin.cli.results import FreeNames, stem_of
from owl_swin.errors import ImageError
from owl_swin.files import make_folder, write_image, write_json

if TYPE_CHECKING:
    from PIL import Image

    from owl_swin.semantic_map import SemanticMap

# Names in the line about a picture; the files have all.
MOST_NAMES = 6
# Longest side of a drawing: JPEG has an end, and so has the patience of who looks at it.
DRAWN = 8192
# Folder of the PNGs of a panoptic set.
PANOPTIC = "panoptic"


class MapFormat(enum.StrEnum):
    """Form of the maps."""

    PNG = "png"
    COCO_PANOPTIC = "coco-panoptic"


def segment(
    photos: Annotated[
        list[str],
        typer.Argument(metavar="PHOTOS...", help="Pictures, folders, or patterns; - reads one picture from stdin."),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="transformers' UPerNet on a Swin: a folder, or a name of the Hugging Face hub, as "
            "openmmlab/upernet-swin-tiny.",
        ),
    ],
    save: Annotated[Path, typer.Option(help="Folder for the maps.")],
    format: Annotated[
        MapFormat,
        typer.Option(
            help="png: a map a picture, whose values are the classes, with a palette, NAME.json that says which they "
            "are, and NAME-drawn.jpg to look at. coco-panoptic: panoptic.json and a PNG a picture in panoptic/."
        ),
    ] = MapFormat.PNG,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Longer side in pixels that the model sees. None: the shorter side is the model's own, 512 for "
            "ADE20K's, and the longer one at most four times that."
        ),
    ] = None,
    device: options.Device = "auto",
    allow_url: options.AllowUrl = False,
) -> None:
    """Name each pixel: a map of the classes that a published segmentation model knows, in the picture's own pixels.

    Example: owl-swin segment Photos --model openmmlab/upernet-swin-tiny --save maps

    For a COCO panoptic set: owl-swin segment Photos --model openmmlab/upernet-swin-base --save set --format
    coco-panoptic
    """
    sources = find_pictures(photos, allow_url=allow_url)
    make_folder(save)
    check_apart(sources, save if format is MapFormat.PNG else save / PANOPTIC)

    from owl_swin.families.closed_set import load_segmenter

    segmenter = load_segmenter(model, device=device)
    maps: Maps = PngMaps(save) if format is MapFormat.PNG else PanopticMaps(save, segmenter.names)
    failed = 0
    with closing(maps), Progress(len(sources), with_bar=len(sources) > 1) as progress:
        for done, source in enumerate(sources, start=1):
            try:
                picture = open_picture(source, allow_url=allow_url)
            except ImageError as error:
                say(str(error))
                failed += 1
                continue
            found = segmenter.segment(picture, image_size=image_size)
            maps.add(source, picture, found)
            emit_line(f"{source}: {said(found)}")
            progress.show(done)
    if failed:
        if len(sources) > 1:
            say(f"{failed} of {len(sources)} pictures could not be read")
        raise typer.Exit(2)


def said(found: "SemanticMap") -> str:
    """The largest classes of a picture with their shares, on one line."""
    shares = [(found.names[label], share) for label, share in found.shares().items() if label >= 0]
    parts = [f"{name} {100 * share:.1f} %" for name, share in shares[:MOST_NAMES]]
    more = len(shares) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")


class Maps(Protocol):
    """Where maps go."""

    def add(self, source: str, picture: "Image.Image", found: "SemanticMap") -> None: ...
    def close(self) -> None: ...


@contextmanager
def closing(maps: Maps) -> Iterator[None]:
    """Writes what is finished, also where Ctrl-C ends the command."""
    try:
        yield
    except KeyboardInterrupt:
        maps.close()
        say("stopped; the maps that are finished are written")
        raise typer.Exit(130) from None
    maps.close()


class PngMaps:
    """A map with a palette, its legend and a drawing for each picture."""

    def __init__(self, folder: Path):
        self._folder, self._names = folder, FreeNames()

    def add(self, source: str, picture: "Image.Image", found: "SemanticMap") -> None:
        """Writes the files of one picture."""
        from owl_swin.map_formats import to_label_image, to_legend
        from owl_swin.render import draw_semantic_map

        name = self._names.take(stem_of(source))
        write_image(self._folder / f"{name}.png", to_label_image(found), what="the map")
        write_json(self._folder / f"{name}.json", {"image": source, "map": f"{name}.png", **to_legend(found)})
        drawing = draw_semantic_map(*_drawable(picture, found))
        write_image(self._folder / f"{self._names.take(f'{name}-drawn')}.jpg", drawing, what="the drawing")
        note(f"wrote {self._folder / name}.png")

    def close(self) -> None:
        """Everything is written."""


def _drawable(picture: "Image.Image", found: "SemanticMap") -> "tuple[Image.Image, SemanticMap]":
    """The picture and its map, smaller where a side is longer than DRAWN."""
    step = -(-max(found.image_hw) // DRAWN)
    if step == 1:
        return picture, found
    labels = found.labels[::step, ::step].contiguous()
    small = picture.resize((labels.shape[1], labels.shape[0]))
    return small, replace(found, labels=labels, scores=found.scores[::step, ::step].contiguous())


class PanopticMaps:
    """A PNG a picture, and at the end the JSON about them all."""

    def __init__(self, folder: Path, names: Sequence[str]):
        from owl_swin.map_formats import panoptic_categories

        self._folder, self._names = folder, FreeNames()
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories = panoptic_categories(names)
        make_folder(folder / PANOPTIC)

    def add(self, source: str, picture: "Image.Image", found: "SemanticMap") -> None:
        """Writes one picture's PNG."""
        from owl_swin.map_formats import to_panoptic_image

        name = f"{self._names.take(stem_of(source))}.png"
        image, segments = to_panoptic_image(found)
        write_image(self._folder / PANOPTIC / name, image, what="the map")
        number, (height, width) = len(self._images) + 1, found.image_hw
        self._images.append({"id": number, "file_name": source, "width": width, "height": height})
        self._annotations.append({"image_id": number, "file_name": name, "segments_info": segments})

    def close(self) -> None:
        """Writes the JSON."""
        path = self._folder / "panoptic.json"
        content = {"images": self._images, "annotations": self._annotations, "categories": self._categories}
        write_json(path, content, indent=None)
        note(f"wrote {path}")
