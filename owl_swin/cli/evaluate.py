"""`owl-swin eval PROTOCOL`: measuring a model under a stated protocol. JSON on stdout, a table on stderr."""

import io
import json
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from owl_swin.cli.query_options import is_file
from owl_swin.errors import DataError, OwlSwinError
from owl_swin.files import make_folder_of, read_text, write_bytes, write_json

if TYPE_CHECKING:
    from owl_swin.detector import Detector
    from owl_swin.evaluation.report import Report

app = typer.Typer(
    help="Measure a model under a stated protocol; figures in percent, with 95 % intervals over pictures.",
    epilog="Example: owl-swin eval detect --annotations test.json --images pictures --json result.json",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Route(StrEnum):
    """How classes are asked for."""

    TEXT = "text"
    EXEMPLAR = "exemplar"


Annotations = Annotated[
    Path, typer.Option(help="COCO JSON with boxes; or YOLO's data.yaml, or a folder of Pascal VOC.")
]
Images = Annotated[Path, typer.Option(help="Folder of the pictures.")]
Model = Annotated[str, typer.Option(help="A name that ships, a .safetensors file, or a folder.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")]
ImageSize = Annotated[int | None, typer.Option(help="Longer side in pixels; by default the model's own.")]
Classes = Annotated[str | None, typer.Option(help="Only these: names with commas, or a file with one a line.")]
Nms = Annotated[float, typer.Option(help="Of boxes of one class that overlap by more, keep the best; 1 keeps all.")]
JsonOut = Annotated[Path | None, typer.Option("--json", help="Write the result here.")]
Exemplars = Annotated[Path | None, typer.Option(help="COCO JSON whose boxes are the exemplars; else other pictures'.")]
ExemplarImages = Annotated[Path | None, typer.Option(help="Folder of the exemplars' pictures, if another.")]
By = Annotated[Route, typer.Option("--with", help="Ask by class name or by an exemplar of another picture.")]


@app.command()
def detect(
    annotations: Annotations,
    images: Images,
    model: Model = "nano",
    classes: Classes = None,
    nms_iou: Nms = 0.5,
    image_size: ImageSize = None,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """COCO average precision, asked by class name.

    Example: owl-swin eval detect --annotations test.json --images pictures
    """
    from owl_swin.evaluation.detection import evaluate_detection

    detector = _detector(model, device, image_size, json_out)
    settings: dict[str, Any] = {"classes": _names(classes), "nms_iou": _nms(nms_iou), "progress": _progress}
    _finish(evaluate_detection(detector, annotations, images, **settings), json_out)


@app.command()
def lvis(
    annotations: Annotations,
    images: Images,
    model: Model = "nano",
    classes: Classes = None,
    fixed: Annotated[bool, typer.Option(help="Fixed AP too: the best 10,000 a class, no limit a picture.")] = True,
    nms_iou: Nms = 0.5,
    image_size: ImageSize = None,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """LVIS average precision, standard and fixed, by frequency, with its rules for what was annotated.

    Example: owl-swin eval lvis --annotations lvis_v1_minival.json --images coco
    """
    from owl_swin.evaluation.lvis import evaluate_lvis

    detector = _detector(model, device, image_size, json_out)
    settings: dict[str, Any] = {
        "classes": _names(classes),
        "fixed": fixed,
        "nms_iou": _nms(nms_iou),
        "progress": _progress,
    }
    _finish(evaluate_lvis(detector, annotations, images, **settings), json_out)


@app.command()
def odinw(
    annotations: Annotated[Path, typer.Option(help="Folder with a COCO set in each of its folders.")],
    model: Model = "nano",
    split: Annotated[str, typer.Option(help="The part of each set, as its folder or file is called.")] = "test",
    nms_iou: Nms = 0.5,
    image_size: ImageSize = None,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """Many small sets: a row each and their mean.

    Example: owl-swin eval odinw --annotations odinw
    """
    from owl_swin.evaluation.odinw import evaluate_odinw

    detector = _detector(model, device, image_size, json_out)
    _finish(evaluate_odinw(detector, annotations, split=split, nms_iou=_nms(nms_iou), progress=_progress), json_out)


@app.command()
def split(
    annotations: Annotations,
    images: Images,
    base: Annotated[str, typer.Option(help="Classes trained on: names with commas, or a file with one a line.")],
    novel: Annotated[str, typer.Option(help="Classes never trained on, likewise.")],
    model: Model = "nano",
    nms_iou: Nms = 0.5,
    image_size: ImageSize = None,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """Base against novel classes, asked together, and the harmonic mean.

    Example: owl-swin eval split --annotations test.json --images pictures --base car,dog --novel cat
    """
    from owl_swin.evaluation.open_vocabulary import evaluate_split

    detector = _detector(model, device, image_size, json_out)
    lists: dict[str, Any] = {"base": _names(base) or [], "novel": _names(novel) or []}
    _finish(evaluate_split(detector, annotations, images, **lists, nms_iou=_nms(nms_iou), progress=_progress), json_out)


@app.command()
def oneshot(
    annotations: Annotations,
    images: Images,
    model: Model = "nano",
    classes: Classes = None,
    shots: Annotated[int, typer.Option(help="Exemplars of a class, joined into one query.")] = 1,
    draws: Annotated[int, typer.Option(help="How often exemplars are drawn; figures are means.")] = 5,
    exemplars: Exemplars = None,
    exemplar_images: ExemplarImages = None,
    seen: Annotated[str | None, typer.Option(help="Classes that training saw, for a figure of their own.")] = None,
    unseen: Annotated[str | None, typer.Option(help="Classes that it did not see, likewise.")] = None,
    absent: Annotated[bool, typer.Option("--absent", help="Ask each picture for classes it has not, too.")] = False,
    with_text: Annotated[bool, typer.Option("--with-text", help="Give the class's name beside its exemplars.")] = False,
    weight: Annotated[float, typer.Option(help="With --with-text, how much the exemplars count, 0 to 1.")] = 0.5,
    negatives: Annotated[int, typer.Option(help="So many other classes, by one exemplar each, as negatives.")] = 0,
    nms_iou: Nms = 0.5,
    image_size: ImageSize = None,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """Average precision when each class is shown by a box of another picture.

    Example: owl-swin eval oneshot --annotations test.json --images pictures --shots 3
    """
    from owl_swin.evaluation.oneshot import evaluate_oneshot

    detector = _detector(model, device, image_size, json_out)
    result = evaluate_oneshot(
        detector,
        annotations,
        images,
        classes=_names(classes),
        exemplars=exemplars,
        exemplar_images=exemplar_images,
        shots=shots,
        draws=draws,
        seen=_names(seen) or (),
        unseen=_names(unseen) or (),
        absent=absent,
        with_text=with_text,
        weight=weight,
        negatives=negatives,
        nms_iou=_nms(nms_iou),
        progress=_progress,
    )
    _finish(result, json_out)


@app.command()
def absence(
    annotations: Annotations,
    images: Images,
    model: Model = "nano",
    classes: Classes = None,
    recall: Annotated[float, typer.Option(help="Share that must be found where false positives are counted.")] = 0.5,
    by: By = Route.TEXT,
    exemplars: Exemplars = None,
    exemplar_images: ExemplarImages = None,
    nms_iou: Nms = 0.5,
    image_size: ImageSize = None,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """Are scores low where a class is absent? AUROC, false alarms, false positives a picture.

    Example: owl-swin eval absence --annotations test.json --images pictures --recall 0.5
    """
    from owl_swin.evaluation.absence import evaluate_absence

    detector = _detector(model, device, image_size, json_out)
    result = evaluate_absence(
        detector,
        annotations,
        images,
        classes=_names(classes),
        recall=recall,
        route=by,
        exemplars=exemplars,
        exemplar_images=exemplar_images,
        nms_iou=_nms(nms_iou),
        progress=_progress,
    )
    _finish(result, json_out)


@app.command()
def calibrate(
    annotations: Annotations,
    images: Images,
    model: Model = "nano",
    classes: Classes = None,
    by: By = Route.TEXT,
    fit: Annotated[list[Path] | None, typer.Option(help="COCO JSON to fit on, not what is judged; or several.")] = None,
    fit_images: Annotated[
        list[Path] | None, typer.Option(help="Folder of its pictures, if another; or one each.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Write the model with calibrated scores, .safetensors.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the reliability diagram, .png.")] = None,
    nms_iou: Nms = 0.5,
    image_size: ImageSize = None,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """Do scores mean what they say? With --fit, make them so; --to keeps the cure in a model file.

    Example: owl-swin eval calibrate --annotations test.json --images pictures --fit val.json --to new.safetensors
    """
    from owl_swin.evaluation.calibration import calibrated, draw_reliability, evaluate_calibration
    from owl_swin.families.owl_swin import save_checkpoint
    from owl_swin.models.owl_swin import OwlSwin

    if to is not None and not fit:
        raise DataError("--to writes a model that was fitted; name a set to fit on with --fit")
    if to is not None and to.suffix != ".safetensors":
        raise OwlSwinError(f"{to}: the file to write must end in .safetensors")
    for path in (to, plot):
        if path is not None:
            make_folder_of(path)
    detector = _detector(model, device, image_size, json_out)
    network = detector.model
    if to is not None and not isinstance(network, OwlSwin):
        raise OwlSwinError(f"{model}: --to writes models of owl_swin's own kind, this is of another")
    result, cure = evaluate_calibration(
        detector,
        annotations,
        images,
        classes=_names(classes),
        fit=fit or (),
        fit_images=fit_images or (),
        route=by,
        nms_iou=_nms(nms_iou),
        progress=_progress,
    )
    _finish(result, json_out)  # what is fitted on a part of the pictures is not written
    if plot is not None:
        before, after = result.details.get("reliability_before"), result.details["reliability"]
        panels = {"before": before, "after": after} if before else {"as it is": after}
        content = io.BytesIO()
        draw_reliability(panels).save(content, "PNG")
        write_bytes(plot, content.getvalue(), what="the plot")
    if to is not None and isinstance(network, OwlSwin):
        network.config = replace(network.config, calibration=calibrated(network.config.calibration, cure, by))
        save_checkpoint(to, network, detector.card)


@app.command()
def classify(
    annotations: Annotated[Path, typer.Option(help="Manifest of tile sheets, or JSON with a label a picture.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures.")] = None,
    model: Model = "nano",
    classes: Classes = None,
    split: Annotated[str, typer.Option(help="Split of a manifest.")] = "val",
    pictures: Annotated[str, typer.Option(help="all, trained or heldout classes of a manifest.")] = "all",
    among: Annotated[str, typer.Option(help="Names to choose from: all, trained or heldout.")] = "all",
    examples: Annotated[Path | None, typer.Option(help="JSON of labelled pictures that show the classes.")] = None,
    example_images: Annotated[Path | None, typer.Option(help="Folder of these; else that of --images.")] = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """Zero-shot classification: each picture gets the name, or with --examples the shown class, that fits best.

    Example: owl-swin eval classify --annotations labelled.json --images pictures
    """
    from owl_swin.evaluation.classification import evaluate_classification

    detector = _detector(model, device, image_size, json_out)
    settings: dict[str, Any] = {"split": split, "classes": _names(classes), "pictures": pictures, "among": among}
    settings |= {"examples": examples, "example_images": example_images}
    _finish(evaluate_classification(detector, annotations, images, progress=_progress, **settings), json_out)


@app.command()
def retrieve(
    annotations: Annotated[Path, typer.Option(help="Folder of webdataset tars, or COCO captions JSON.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures of a captions file.")] = None,
    model: Model = "nano",
    split: Annotated[str, typer.Option(help="What the names of the tars begin with.")] = "test",
    image_size: ImageSize = None,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """Pictures find their captions and captions their pictures: recall at 1, 5 and 10.

    Example: owl-swin eval retrieve --annotations captions --split test
    """
    from owl_swin.evaluation.retrieval import evaluate_retrieval

    detector = _detector(model, device, image_size, json_out)
    _finish(evaluate_retrieval(detector, annotations, images, split=split, progress=_progress), json_out)


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


def _detector(model: str, device: str, image_size: int | None, json_out: Path | None) -> "Detector":
    from owl_swin.detector import Detector

    if json_out is not None:  # a place that cannot be written is said before the long part, not after it
        make_folder_of(json_out)
    return Detector.from_pretrained(model, device=device, image_size=image_size)


def _finish(report: "Report", json_out: Path | None) -> None:
    """Writes and prints the report; with pictures that could not be read it ends in a sentence and exit code 2."""
    result = report.to_json()
    if json_out is not None:
        write_json(json_out, result, what="the result")
    for line in figures_table(report):
        print(line, file=sys.stderr)
    for sentence in report.notes:
        print(f"owl-swin: note: {sentence}", file=sys.stderr)
    print(json.dumps(result, indent=2))
    if report.broken:
        more = f', and {len(report.broken) - 1} more, listed under "broken"' if len(report.broken) > 1 else ""
        raise DataError(f"these figures are not of the whole set: {report.broken[0]}{more}")


def _names(value: str | None) -> list[str] | None:
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


def _nms(value: float) -> float | None:
    return None if value == 1 else value


def _progress(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        end = "\n" if done == total or not sys.stderr.isatty() else "\r"
        print(f"{done}/{total} pictures", end=end, file=sys.stderr, flush=True)
