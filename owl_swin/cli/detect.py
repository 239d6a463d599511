"""`owl-swin detect`: pictures in, boxes out."""

import json
import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from torch import Tensor

from owl_swin.cli.asking import Asked, add_saved, check_query_file, make_queries
from owl_swin.errors import ImageError, OwlSwinError
from owl_swin.files import make_folder, make_folder_of, write_image
from owl_swin.formats import to_coco, to_label_studio, to_record
from owl_swin.image import open_image
from owl_swin.types import Detections

# Pictures that are decoded and encoded together.
BATCH = 8


class Format(StrEnum):
    """What goes to stdout."""

    TABLE = "table"
    JSONL = "jsonl"
    COCO = "coco"
    LABEL_STUDIO = "label-studio"


def detect(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Pictures; - reads one from stdin.")],
    query: Annotated[
        list[str] | None, typer.Option(help="What to find; repeat it. None: anything that looks like a thing.")
    ] = None,
    queries: Annotated[str | None, typer.Option(help="Several at once, separated by commas.")] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHOTO[@X0,Y0,X1,Y1]",
            help="A picture of what to find, or the box in it, xmin,ymin,xmax,ymax in pixels. Repeat it: all show one "
            "thing.",
        ),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(
            "--not",
            metavar="PHOTO[@BOX]|TEXT",
            help="What the thing of --like, or of a single --query, is not; repeat it. A picture if there is a file of "
            "that name.",
        ),
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="The texts are not queries of their own but describe the thing of --like.")
    ] = False,
    weight: Annotated[
        float, typer.Option(help="With --join, how much the pictures of --like count against the texts, 0 to 1.")
    ] = 0.5,
    name: Annotated[
        str | None,
        typer.Option(help="What the thing of --like is called. None: the text of --join, or the first picture's name."),
    ] = None,
    query_file: Annotated[list[Path] | None, typer.Option(help="Queries that --save-query kept; repeat it.")] = None,
    save_query: Annotated[
        Path | None, typer.Option(help="A .safetensors file to keep the queries of this call in.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Lowest score, 0 to 1.")] = 0.2,
    nms_iou: Annotated[
        float, typer.Option(help="Of boxes of one query that overlap by more, keep the best; 1 keeps all.")
    ] = 0.5,
    objectness: Annotated[
        float | None, typer.Option(help="Lowest objectness of a patch that may answer, 0 to 1.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Most boxes of a picture.")] = 300,
    model: Annotated[str, typer.Option(help="A name that ships, a .safetensors file, or a folder.")] = "nano",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    image_size: Annotated[int | None, typer.Option(help="Longer side in pixels; larger finds smaller things.")] = None,
    format: Annotated[Format, typer.Option(help="Form of the output.")] = Format.TABLE,
    save: Annotated[Path | None, typer.Option(help="Folder for pictures with the boxes drawn in.")] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say which patch of the picture answered (table, jsonl), and with --save draw where each query fits.",
        ),
    ] = False,
) -> None:
    """Find things in pictures by name or by example.

    Example: owl-swin detect kitchen.jpg --query "a red mug" --query "a dog" --format jsonl

    By example: owl-swin detect *.jpg --like mug.jpg@40,60,210,300 --like mug2.jpg --not cup.jpg --not "a blue cup"
    """
    from owl_swin.detector import Detector

    if explain and save is None and format in (Format.COCO, Format.LABEL_STUDIO):
        raise OwlSwinError(f"--explain adds nothing to --format {format.value}; give it --save, or jsonl or table")
    asked = make_queries(Asked(query or (), queries, like or (), negative or (), name, join, weight))
    if save_query is not None:
        check_query_file(save_query, asked)
    detector = Detector.from_pretrained(model, device=device, image_size=image_size)
    own = detector.encode_queries(asked) if asked else None
    encoded = add_saved(detector, own, query_file or ())
    settings: dict[str, Any] = {
        "threshold": threshold,
        "nms_iou": None if nms_iou == 1 else nms_iou,
        "objectness": objectness,
        "top_k": top_k,
    }
    _check_settings(detector, encoded, settings)
    if save is not None:
        make_folder(save)
        _check_apart(images, save)
    folder = _Folder(save) if save is not None else None
    if save_query is not None and own is not None:
        make_folder_of(save_query)
        own.save(save_query)
        print(f"wrote {save_query}", file=sys.stderr)
    failed = 0
    names: list[str] = []
    results: list[Detections] = []
    for start in range(0, len(images), BATCH):
        opened: list[tuple[str, Image.Image]] = []
        for source in images[start : start + BATCH]:
            try:
                opened.append((source, _open(source)))
            except ImageError as error:
                print(f"owl-swin: {error}", file=sys.stderr)
                failed += 1
        seen = detector.encode_images([image for _, image in opened], batch_size=BATCH)
        found = detector.detect_batch(seen, encoded, **settings)
        for (source, image), patches, one in zip(opened, seen, found, strict=True):
            if format is Format.JSONL:
                grid_hw = patches.embeddings.grid_hw if explain else None
                print(json.dumps(to_record(source, one, grid_hw=grid_hw)), flush=True)
            else:
                names.append(source)
                results.append(one)
            if folder is not None:
                folder.save_all(source, image, one, detector.similarity(patches, encoded) if explain else None)
    if format is Format.COCO:
        print(json.dumps(to_coco(names, results)))
    elif format is Format.LABEL_STUDIO:
        print(json.dumps(to_label_studio(names, results, model_version=str(detector.card.get("name", model)))))
    elif format is Format.TABLE:
        for line in _table(names, results, explain):
            print(line)
    if failed:
        if len(images) > 1:
            print(f"owl-swin: {failed} of {len(images)} pictures could not be read", file=sys.stderr)
        raise typer.Exit(2)


def _open(source: str) -> Image.Image:
    if source == "-":
        return open_image(sys.stdin.buffer.read())
    if os.path.isdir(source):
        raise ImageError(f"{source}: is a folder; name the pictures in it, as in {os.path.join(source, '*.jpg')}")
    return open_image(source)


def _check_settings(detector, queries, settings: dict) -> None:
    """Refuses wrong numbers before any picture is read, by a look at one grey picture."""
    detector.detect(Image.new("RGB", (32, 32), "grey"), queries, **settings)


def _check_apart(images: list[str], folder: Path) -> None:
    """A drawing has the name of its picture, so in the same folder it would take the picture's place."""
    for source in images:
        beside = Path(source).parent
        if source != "-" and beside.is_dir() and beside.samefile(folder):
            raise OwlSwinError(f"{source}: lies in the folder of --save and could be overwritten; name another folder")


class _Folder:
    """Drawings as JPEG, named after their pictures; pictures of one name in several folders get numbers."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._taken: set[str] = set()

    def save_all(self, source: str, image: Image.Image, found: Detections, maps: Tensor | None) -> None:
        """The boxes of one picture and, beside them, a heat map for each query, of the scores [Q, h, w]."""
        from owl_swin.render import draw_detections, draw_heat_map

        stem = "stdin" if source == "-" else Path(source).stem
        stem = self._save(stem, draw_detections(image, found))
        for number, scores in enumerate([] if maps is None else maps):
            self._save(f"{stem}-heat-{number + 1}", draw_heat_map(image, scores, title=found.names[number]))

    def _save(self, stem: str, drawing: Image.Image) -> str:
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name)
        path = self._folder / f"{name}.jpg"
        write_image(path, drawing, what="the drawing", quality=92)
        print(f"wrote {path}", file=sys.stderr)
        return name


def _table(names: list[str], results: list[Detections], explain: bool) -> Iterator[str]:
    rows = [
        (name, one.name, f"{one.score:.3f}", *(f"{value:.0f}" for value in one.box_xyxy), *([str(patch)] * explain))
        for name, found in zip(names, results, strict=True)
        for one, patch in zip(found, found.patches.tolist(), strict=True)
    ]
    head = ("picture", "label", "score", "xmin", "ymin", "xmax", "ymax", *(["patch"] * explain))
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows] if rows else []:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()
    for name, found in zip(names, results, strict=True):
        if not len(found):
            yield f"{name}: nothing found"
