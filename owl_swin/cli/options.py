"""Options that several commands have, with one name and one sentence each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from owl_swin.errors import OwlSwinError

if TYPE_CHECKING:
    from owl_swin.tiling import Tiles

MODEL = typer.Option(
    "--model",
    help="A name that ships, a .safetensors file, a folder, or a model of the Hugging Face hub, as "
    "google/owlv2-base-patch16-ensemble.",
)
DEVICE = typer.Option("--device", help="cpu, cuda, cuda:1, mps, or auto.")
Model = Annotated[str, MODEL]
Device = Annotated[str, DEVICE]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or half: precision of the model; by default the file's own."),
]
Runtime = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="torch, compile, or for a folder that `owl-swin export` wrote, onnx or openvino; auto is torch, and for "
        "such a folder what it was written for.",
    ),
]
ContentOnly = Annotated[
    bool,
    typer.Option(
        "--content-only",
        help="OWLv2 pads pictures to squares; leave out what shows nothing else. Faster, and nearly the same.",
    ),
]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", help="Longer side in pixels; larger finds smaller things.")
]

Texts = Annotated[
    list[str] | None,
    typer.Option("--query", help="What to find; repeat it. Without any: whatever looks like a thing."),
]
TextList = Annotated[
    str | None, typer.Option("--queries", help="Several at once: names with commas, or a file with one a line.")
]
NameList = Annotated[
    str | None,
    typer.Option(
        "--queries",
        help='Names to label with: with commas, or a file with one a line, where "sofa, couch" is one class and '
        '"# …" a remark.',
    ),
]
Like = Annotated[
    list[str] | None,
    typer.Option(
        "--like",
        "--exemplar",
        metavar="PHOTO[@X0,Y0,X1,Y1]",
        help="A picture of what to find, or the box in it, xmin,ymin,xmax,ymax in pixels. Repeat it: all show one "
        "thing.",
    ),
]
Negative = Annotated[
    list[str] | None,
    typer.Option(
        "--not",
        metavar="PHOTO[@BOX]|TEXT",
        help="What the thing of --like, or of a single --query, is not; repeat it. A picture if there is a file of "
        "that name.",
    ),
]
Join = Annotated[
    bool, typer.Option("--join", help="The texts are not queries of their own but describe the thing of --like.")
]
Weight = Annotated[
    float, typer.Option("--weight", help="With --join, how much --like counts against the texts, 0 to 1.")
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name", help="What the thing of --like is called; by default the text of --join, or the first picture's name."
    ),
]
QueryFiles = Annotated[
    list[Path] | None, typer.Option("--query-file", help="Queries that --save-query kept; repeat it.")
]
AllowUrl = Annotated[
    bool, typer.Option("--allow-url", help="Pictures may be http(s) addresses of the open internet; fetch them.")
]
Tile = Annotated[
    int | None,
    typer.Option(
        "--tile",
        help="Show the model the picture in tiles of so many pixels a side too: finds small things, and reads pictures "
        "of any size.",
    ),
]
Overlap = Annotated[
    float | None,
    typer.Option(
        "--overlap", help="With --tile, the share of a side that neighbours have in common.", show_default="0.2"
    ),
]


def make_tiles(tile: int | None, overlap: float | None) -> "Tiles | None":
    """What --tile and --overlap ask for; None without them."""
    from owl_swin.tiling import Tiles

    if tile is None and overlap is not None:
        raise OwlSwinError("--overlap is for --tile, the side of the tiles in pixels; give that too")
    return None if tile is None else Tiles(tile) if overlap is None else Tiles(tile, overlap)
