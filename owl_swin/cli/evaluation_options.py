"""What the commands of `owl-swin eval` share: their options, the model, and how a report is printed."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from owl_swin.cli import options
from owl_swin.cli.printing import emit, note, say
from owl_swin.cli.query_options import is_file
from owl_swin.errors import DataError
from owl_swin.files import make_folder_of, read_text, write_json

if TYPE_CHECKING:
    from owl_swin.detector import Detector
    from owl_swin.evaluation.report import Report
    from owl_swin.postprocess import NmsIou


class Route(StrEnum):
    """How classes are asked for."""

    TEXT = "text"
    EXEMPLAR = "exemplar"


Annotations = Annotated[
    Path, typer.Option(help="COCO JSON with boxes; or YOLO's data.yaml, or a folder of Pascal VOC.")
]
Images = Annotated[Path, typer.Option(help="Folder of the pictures.")]
Model = Annotated[str, options.MODEL]
Device = Annotated[str, options.DEVICE]
ImageSize = Annotated[int | None, typer.Option(help="Longer side in pixels; by default the model's own.")]
Classes = Annotated[str | None, typer.Option(help="Only these: names with commas, or a file with one a line.")]
Nms = Annotated[
    float | None,
    typer.Option(
        help="Of boxes of one class that overlap by more, keep the best; 1 keeps all.",
        show_default="what suits the model",
    ),
]
IgnoreBelow = Annotated[
    float,
    typer.Option(help="Boxes of the file whose score is lower are neither to be found nor false.", min=0, max=1),
]
ValueNames = Annotated[
    Path | None,
    typer.Option(
        help="What the values of label maps mean: one name a line, from value 0 on but for --ignore and --nothing; "
        '"12: wall" a line; ADE20K\'s objectInfo150.txt; or JSON. By default the classes of a model with fixed ones.'
    ),
]
Ignore = Annotated[list[int] | None, typer.Option(help="Values of pixels that are not judged; by default 255.")]
Nothing = Annotated[int | None, typer.Option(help="Value of pixels that show none of the names, if the maps have one.")]
Masks = Annotated[bool, typer.Option("--masks", help="Measure masks, of a set and a model that have some.")]
JsonOut = Annotated[Path | None, typer.Option("--json", help="Write the result here.")]
Exemplars = Annotated[Path | None, typer.Option(help="COCO JSON whose boxes are the exemplars; else other pictures'.")]
ExemplarImages = Annotated[Path | None, typer.Option(help="Folder of the exemplars' pictures, if another.")]
By = Annotated[Route, typer.Option("--with", help="Ask by class name or by an exemplar of another picture.")]


def figures_table(report: "Report") -> list[str]:
    """The figures of a report as lines, each with its 95 % interval where there is one, and a line for each set."""
    lines = []
    for name, value in report.figures.items():
        interval, text = report.intervals.get(name), "none" if value is None else f"{value:.2f}"
        lines.append(f"{name:<20} {text:>7}" + (f"  ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""))
    for row in report.details.get("sets", ()):
        figures = ("none" if row[key] is None else f"{row[key]:.2f}" for key in ("AP", "AP50"))
        lines.append("{:<40} {:>7} {:>7}".format(row["set"], *figures))
    return [line.rstrip() for line in lines]


def evaluated_detector(
    model: str, device: str, image_size: int | None, json_out: Path | None, runtime: str, *, read: Path
) -> "Detector":
    """The model to measure; where the result cannot be written, or would take the place of what is ``read``, that is
    said before any work."""
    from owl_swin.detector import Detector

    if json_out is not None:  # a place that cannot be written is said before the long part, not after it
        make_folder_of(json_out, apart_from=(read, model))
    return Detector.from_pretrained(model, device=device, image_size=image_size, runtime=runtime)


def finish(report: "Report", json_out: Path | None) -> None:
    """Writes and prints the report; with pictures that could not be read it ends in a sentence and exit code 2."""
    result = report.to_json()
    if json_out is not None:
        write_json(json_out, result, what="the result")
    for line in figures_table(report):
        note(line)
    for sentence in report.notes:
        say(f"note: {sentence}")
    emit(json.dumps(result, indent=2) + "\n")
    if report.broken:
        more = f', and {len(report.broken) - 1} more, listed under "broken"' if len(report.broken) > 1 else ""
        raise DataError(f"these figures are not of the whole set: {report.broken[0]}{more}")


def chosen_names(value: str | None) -> list[str] | None:
    """Names separated by commas, or the lines of a file; None when nothing was said."""
    if value is None:
        return None
    try:
        lines = read_text(value).splitlines() if is_file(value) else value.split(",")
    except (OSError, ValueError) as error:
        raise DataError(f"{value}: cannot be read as a list of names ({error})") from None
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise DataError(f"{value!r} names no class; separate names with commas, or give a file with one a line")
    return names


def label_values(names: Path | None, ignore: list[int] | None, nothing: int | None) -> dict[str, Any]:
    """What the values of label maps mean, as ``read_label_maps`` takes it."""
    from owl_swin.data.label_maps import read_value_names

    said = None if names is None else read_value_names(names)
    return {"names": said, "ignore": tuple(ignore or (255,)), "nothing": nothing}


def checked_nms(value: float | None) -> "NmsIou":
    """The overlap as detection takes it; None leaves it to the model."""
    return "model" if value is None else value


def show_progress(done: int, total: int) -> None:
    """A line on stderr now and then."""
    if done % 50 == 0 or done == total:
        end = "\n" if done == total or not sys.stderr.isatty() else "\r"
        print(f"{done}/{total} pictures", end=end, file=sys.stderr, flush=True)
