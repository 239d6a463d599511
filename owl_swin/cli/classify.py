"""`owl-swin classify`: what a whole picture shows, by a published network with fixed classes."""

import enum
import json
from typing import Annotated

import typer

from owl_swin.cli import options
from owl_swin.cli.pictures import find_pictures, open_picture
from owl_swin.cli.printing import emit, printable, say
from owl_swin.cli.table import table_lines
from owl_swin.errors import ImageError


class ClassFormat(enum.StrEnum):
    """Form of the output."""

    TABLE = "table"
    JSONL = "jsonl"


def classify(
    photos: Annotated[
        list[str],
        typer.Argument(metavar="PHOTOS...", help="Pictures, folders, or patterns; - reads one picture from stdin."),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="A published Swin classifier: a name, as microsoft/swin-tiny-patch4-window7-224, "
            "timm/swin_base_patch4_window7_224.ms_in1k, torchvision/swin_t or swin_large_patch4_window7_224_22kto1k, a "
            "folder, or a .safetensors file.",
        ),
    ],
    top_k: Annotated[int, typer.Option(help="So many of the likeliest classes of each picture.", min=1)] = 5,
    format: Annotated[ClassFormat, typer.Option(help="Form of the output.")] = ClassFormat.TABLE,
    device: options.Device = "auto",
    allow_url: options.AllowUrl = False,
) -> None:
    """Name whole pictures by the classes that a published Swin classifier was trained on.

    Example: owl-swin classify photo.jpg --model microsoft/swin-tiny-patch4-window7-224

    For names of your own, without training: Detector.classify in Python.
    """
    sources = find_pictures(photos, allow_url=allow_url)

    from owl_swin.families.closed_set import load_classifier

    classifier = load_classifier(model, device=device)
    failed, rows = 0, []
    try:
        for source in sources:
            try:
                picture = open_picture(source, allow_url=allow_url)
            except ImageError as error:
                say(str(error))
                failed += 1
                continue
            best = classifier.classify(picture).ranked()[:top_k]
            if format is ClassFormat.JSONL:
                classes = [{"label": label, "score": round(score, 6)} for label, score in best]
                record = {"image": source, "width": picture.width, "height": picture.height, "classes": classes}
                emit(json.dumps(record) + "\n")
            else:
                rows += [(source, label, f"{score:.3f}") for label, score in best]
    finally:  # also where it is stopped
        if rows:
            lines = table_lines(("picture", "class", "score"), rows, left=(0, 1))
            emit("".join(f"{printable(line)}\n" for line in lines))
    if failed:
        if len(sources) > 1:
            say(f"{failed} of {len(sources)} pictures could not be read")
        raise typer.Exit(2)
