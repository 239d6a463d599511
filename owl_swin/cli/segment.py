"""`owl-swin segment`: what each pixel shows, of what is named or shown, or of a network's fixed classes."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from owl_swin.cli import options
from owl_swin.cli.map_results import PANOPTIC, MapFormat, Maps, PanopticMaps, PngMaps, Shown, closing
from owl_swin.cli.pictures import check_apart, find_pictures, named, open_picture, picture_file, without_drawings
from owl_swin.cli.printing import Progress, emit_line, say
from owl_swin.cli.query_options import QueryOptions, add_saved, make_queries
from owl_swin.cli.thresholds import read_thresholds
from owl_swin.errors import ImageError, MissingExtraError, OwlSwinError
from owl_swin.files import make_folder

if TYPE_CHECKING:
    from PIL import Image

    from owl_swin.queries import Query
    from owl_swin.semantic_map import SemanticMap
    from owl_swin.tiling import Tiles

# Names in the line about a picture; the files have all.
MOST_NAMES = 6

# The map of one picture of the command line, and that picture.
Find = Callable[[str], "tuple[SemanticMap, Shown]"]


def segment(
    photos: Annotated[
        list[str],
        typer.Argument(metavar="PHOTOS...", help="Pictures, folders, or patterns; - reads one picture from stdin."),
    ],
    save: Annotated[Path, typer.Option(help="Folder for the maps.")],
    query: Annotated[
        list[str] | None, typer.Option("--query", help="What may be seen; repeat it. A pixel shows one, or nothing.")
    ] = None,
    queries: options.TextList = None,
    like: options.Like = None,
    negative: options.Negative = None,
    join: options.Join = False,
    weight: options.Weight = 0.5,
    name: options.Name = None,
    query_file: options.QueryFiles = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCORE|NAME=SCORE",
            help="Lowest score, 0 to 1, of all names or of one; below it a pixel shows nothing. Repeat it.",
            show_default="0.2",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="For what is named: a model with masks, as for detect; None is nano. For fixed classes: transformers' "
            "UPerNet on a Swin, a folder, or a name of the Hugging Face hub, as openmmlab/upernet-swin-tiny.",
        ),
    ] = None,
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
            help="Longer side in pixels that the model sees; by default the size that it was made for; for fixed "
            "classes its shorter side, 512 for ADE20K's, and the longer one at most four times that."
        ),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    tile: options.Tile = None,
    overlap: options.Overlap = None,
    allow_url: options.AllowUrl = False,
) -> None:
    """Say what each pixel shows: one of the things that you name or show, or nothing; or a class of a published model.

    Example: owl-swin segment Photos --query sky --query road --query "a dog" --save maps

    For a COCO panoptic set: owl-swin segment Photos --queries "sky, road" --exemplar mug.jpg@40,60,210,300 --save set
    --format coco-panoptic

    With ADE20K's 150 classes: owl-swin segment Photos --model openmmlab/upernet-swin-tiny --save maps
    """
    asked = make_queries(
        QueryOptions(query or (), queries, like or (), negative or (), name, join, weight),
        beside=photos,
        allow_url=allow_url,
    )
    tiles = options.make_tiles(tile, overlap)
    fixed = not asked and not query_file
    if fixed and (threshold or tiles is not None or dtype is not None):
        raise OwlSwinError("--threshold, --tile and --dtype are for what is named; say what may be seen with --query")
    if fixed and model is None:
        raise OwlSwinError(
            "say with --query what may be seen, or with --model which network with fixed classes says it, as "
            "openmmlab/upernet-swin-tiny"
        )
    drawn = save if format is MapFormat.PNG else save / PANOPTIC
    sources = without_drawings(find_pictures(photos, allow_url=allow_url), photos, drawn)
    make_folder(save)
    check_apart(sources, drawn)
    if fixed:
        names, find = _fixed_classes(str(model), device, image_size, allow_url)
    else:
        names, find = _named(
            *(asked, query_file or (), threshold or (), model or "nano", device, dtype, image_size, tiles, allow_url)
        )
    maps: Maps = PngMaps(save) if format is MapFormat.PNG else PanopticMaps(save, names)
    failed = 0
    with closing(maps), Progress(len(sources), with_bar=len(sources) > 1) as progress:
        for done, source in enumerate(sources, start=1):
            try:
                found, shown = find(source)
                maps.add(source, found, shown)
            except (ImageError, MissingExtraError) as error:
                say(str(named(error, source)) if isinstance(error, ImageError) else f"{source}: {error}")
                failed += 1
                continue
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
    return ", ".join(parts) + (f" and {more} more" if more else "") if parts else "nothing"


def _fixed_classes(model: str, device: str, image_size: int | None, allow_url: bool) -> tuple[Sequence[str], Find]:
    """The classes of a published network, and what finds them."""
    from owl_swin.families.closed_set import load_segmenter

    segmenter = load_segmenter(model, device=device)

    def find(source: str) -> "tuple[SemanticMap, Shown]":
        picture = open_picture(source, allow_url=allow_url)
        return segmenter.segment(picture, image_size=image_size), partial(_smaller, picture)

    return segmenter.names, find


def _named(
    asked: "Sequence[str | Query]",
    query_files: Sequence[Path],
    threshold: Sequence[str],
    model: str,
    device: str,
    dtype: str | None,
    image_size: int | None,
    tiles: "Tiles | None",
    allow_url: bool,
) -> tuple[Sequence[str], Find]:
    """What is asked for, and what finds it."""
    from owl_swin.detector import Detector
    from owl_swin.encoder import check_has_masks

    detector = Detector.from_pretrained(model, device=device, dtype=dtype, image_size=image_size)
    check_has_masks(detector.spec)
    encoded = add_saved(detector, detector.encode_queries(asked) if asked else None, query_files)
    assert encoded is not None, "there are queries, or files of them"
    thresholds = read_thresholds(threshold, encoded.names)

    def find(source: str) -> "tuple[SemanticMap, Shown]":
        if tiles is None:
            picture = open_picture(source, allow_url=allow_url)
            return detector.segment(picture, encoded, threshold=thresholds), partial(_smaller, picture)
        try:
            content = picture_file(source, allow_url=allow_url)
            return detector.segment(content, encoded, threshold=thresholds, tiles=tiles), partial(_reduced, content)
        except ImageError as error:
            raise named(error, source) from None

    return list(dict.fromkeys(encoded.names)), find


def _smaller(picture: "Image.Image", side: int) -> "Image.Image":
    """A picture that is in memory, its longer side at most so long."""
    small = picture.copy()
    small.thumbnail((side, side))
    return small


def _reduced(content: str | bytes, side: int) -> "Image.Image":
    """A picture of any size, its longer side at most so long."""
    from owl_swin.huge import open_parts

    with open_parts(content) as parts:
        return parts.reduced(side)
