"""`owl-swin detect`: pictures in, boxes out."""

import io
import json
import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from owl_swin.cli.output import make_folder, write_whole
from owl_swin.errors import ImageError, OwlSwinError, QueryError
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
) -> None:
    """Find things in pictures by name.

    Example: owl-swin detect kitchen.jpg --query "a red mug" --query "a dog" --format jsonl
    """
    from owl_swin.detector import Detector

    detector = Detector.from_pretrained(model, device=device, image_size=image_size)
    asked = [*(query or []), *_split_commas(queries)]
    encoded = detector.encode_queries(asked) if asked else None
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
    failed = 0
    names: list[str] = []
    results: list[Detections] = []
    taken: set[str] = set()
    for start in range(0, len(images), BATCH):
        opened: list[tuple[str, Image.Image]] = []
        for source in images[start : start + BATCH]:
            try:
                opened.append((source, _open(source)))
            except ImageError as error:
                print(f"owl-swin: {error}", file=sys.stderr)
                failed += 1
        found = detector.detect_batch([image for _, image in opened], encoded, batch_size=BATCH, **settings)
        for (source, image), one in zip(opened, found, strict=True):
            if format is Format.JSONL:
                print(json.dumps(to_record(source, one)), flush=True)
            else:
                names.append(source)
                results.append(one)
            if save is not None:
                _save_drawing(save, source, image, one, taken)
    if format is Format.COCO:
        print(json.dumps(to_coco(names, results)))
    elif format is Format.LABEL_STUDIO:
        print(json.dumps(to_label_studio(names, results, model_version=str(detector.card.get("name", model)))))
    elif format is Format.TABLE:
        for line in _table(names, results):
            print(line)
    if failed:
        if len(images) > 1:
            print(f"owl-swin: {failed} of {len(images)} pictures could not be read", file=sys.stderr)
        raise typer.Exit(2)


def _split_commas(queries: str | None) -> list[str]:
    if queries is None:
        return []
    names = [name.strip() for name in queries.split(",") if name.strip()]
    if not names:
        raise QueryError(f"--queries names nothing: {queries!r}; separate the names with commas")
    return names


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


def _save_drawing(folder: Path, source: str, image: Image.Image, found: Detections, taken: set[str]) -> None:
    """Writes the drawing as JPEG, named after the picture; pictures of one name in several folders get numbers."""
    from owl_swin.render import draw_detections

    stem = "stdin" if source == "-" else Path(source).stem
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    path = folder / f"{name}.jpg"
    content = io.BytesIO()
    draw_detections(image, found).save(content, "JPEG", quality=92)
    write_whole(path, content.getvalue())
    print(f"wrote {path}", file=sys.stderr)


def _table(names: list[str], results: list[Detections]) -> Iterator[str]:
    rows = [
        (name, one.name, f"{one.score:.3f}", *(f"{value:.0f}" for value in one.box_xyxy))
        for name, found in zip(names, results, strict=True)
        for one in found
    ]
    head = ("picture", "label", "score", "xmin", "ymin", "xmax", "ymax")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows] if rows else []:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()
    for name, found in zip(names, results, strict=True):
        if not len(found):
            yield f"{name}: nothing found"
