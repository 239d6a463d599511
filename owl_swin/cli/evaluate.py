"""`owl-swin eval PROTOCOL`: measuring a model under a stated protocol. JSON on stdout, a table on stderr."""

from pathlib import Path
from typing import Annotated, Any

import typer

from owl_swin.cli import options
from owl_swin.cli.evaluate_calibration import calibrate
from owl_swin.cli.evaluate_maps import segment
from owl_swin.cli.evaluation_options import (
    Annotations,
    By,
    Classes,
    Device,
    ExemplarImages,
    Exemplars,
    IgnoreBelow,
    Images,
    ImageSize,
    JsonOut,
    Masks,
    Model,
    Nms,
    Route,
    checked_nms,
    chosen_names,
    evaluated_detector,
    finish,
    show_progress,
)

app = typer.Typer(
    help="Measure a model under a stated protocol; figures in percent, with 95 % intervals over pictures.",
    epilog="Example: owl-swin eval detect --annotations test.json --images pictures --json result.json",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def detect(
    annotations: Annotations,
    images: Images,
    model: Model = "nano",
    classes: Classes = None,
    nms_iou: Nms = None,
    ignore_below: IgnoreBelow = 0.5,
    image_size: ImageSize = None,
    tile: options.Tile = None,
    overlap: options.Overlap = None,
    masks: Masks = False,
    device: Device = "auto",
    runtime: options.Runtime = "auto",
    json_out: JsonOut = None,
) -> None:
    """COCO average precision of boxes, or of masks, asked by class name.

    Example: owl-swin eval detect --annotations test.json --images pictures

    Masks: owl-swin eval detect --annotations instances.json --images pictures --masks
    """
    from owl_swin.evaluation.detection import evaluate_detection

    tiles = options.make_tiles(tile, overlap)
    detector = evaluated_detector(model, device, image_size, json_out, runtime, read=annotations)
    settings: dict[str, Any] = {
        "classes": chosen_names(classes),
        "nms_iou": checked_nms(nms_iou),
        "ignore_below": ignore_below,
        "tiles": tiles,
        "masks": masks,
        "progress": show_progress,
    }
    finish(evaluate_detection(detector, annotations, images, **settings), json_out)


@app.command()
def diagnose(
    annotations: Annotations,
    images: Images,
    model: Model = "nano",
    classes: Classes = None,
    threshold: Annotated[float | None, typer.Option(help="Score to show; by default that of detection.")] = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    runtime: options.Runtime = "auto",
    json_out: JsonOut = None,
) -> None:
    """Where a detector fails: boxes that are reached, that are named right, that pass the threshold.

    Example: owl-swin eval diagnose --annotations test.json --images pictures
    """
    from owl_swin.evaluation.diagnosis import evaluate_diagnosis

    detector = evaluated_detector(model, device, image_size, json_out, runtime, read=annotations)
    settings: dict[str, Any] = {"classes": chosen_names(classes), "threshold": threshold, "progress": show_progress}
    finish(evaluate_diagnosis(detector, annotations, images, **settings), json_out)


@app.command()
def lvis(
    annotations: Annotations,
    images: Images,
    model: Model = "nano",
    classes: Classes = None,
    fixed: Annotated[bool, typer.Option(help="Fixed AP too: the best 10,000 a class, no limit a picture.")] = True,
    masks: Masks = False,
    nms_iou: Nms = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    runtime: options.Runtime = "auto",
    json_out: JsonOut = None,
) -> None:
    """LVIS average precision, standard and fixed, by frequency, with its rules for what was annotated.

    Example: owl-swin eval lvis --annotations lvis_v1_minival.json --images coco
    """
    from owl_swin.evaluation.lvis import evaluate_lvis

    detector = evaluated_detector(model, device, image_size, json_out, runtime, read=annotations)
    settings: dict[str, Any] = {
        "classes": chosen_names(classes),
        "fixed": fixed,
        "masks": masks,
        "nms_iou": checked_nms(nms_iou),
        "progress": show_progress,
    }
    finish(evaluate_lvis(detector, annotations, images, **settings), json_out)


@app.command()
def odinw(
    annotations: Annotated[Path, typer.Option(help="Folder with a COCO set in each of its folders.")],
    model: Model = "nano",
    split: Annotated[str, typer.Option(help="The part of each set, as its folder or file is called.")] = "test",
    masks: Masks = False,
    nms_iou: Nms = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    runtime: options.Runtime = "auto",
    json_out: JsonOut = None,
) -> None:
    """Many small sets: a row each and their mean.

    Example: owl-swin eval odinw --annotations odinw
    """
    from owl_swin.evaluation.odinw import evaluate_odinw

    detector = evaluated_detector(model, device, image_size, json_out, runtime, read=annotations)
    finish(
        evaluate_odinw(
            detector,
            annotations,
            split=split,
            masks=masks,
            nms_iou=checked_nms(nms_iou),
            progress=show_progress,
        ),
        json_out,
    )


@app.command()
def split(
    annotations: Annotations,
    images: Images,
    base: Annotated[str, typer.Option(help="Classes trained on: names with commas, or a file with one a line.")],
    novel: Annotated[str, typer.Option(help="Classes never trained on, likewise.")],
    model: Model = "nano",
    masks: Masks = False,
    nms_iou: Nms = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    runtime: options.Runtime = "auto",
    json_out: JsonOut = None,
) -> None:
    """Base against novel classes, asked together, and the harmonic mean.

    Example: owl-swin eval split --annotations test.json --images pictures --base car,dog --novel cat
    """
    from owl_swin.evaluation.open_vocabulary import evaluate_split

    detector = evaluated_detector(model, device, image_size, json_out, runtime, read=annotations)
    lists: dict[str, Any] = {"base": chosen_names(base) or [], "novel": chosen_names(novel) or []}
    finish(
        evaluate_split(
            detector,
            annotations,
            images,
            **lists,
            masks=masks,
            nms_iou=checked_nms(nms_iou),
            progress=show_progress,
        ),
        json_out,
    )


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
    masks: Masks = False,
    nms_iou: Nms = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    runtime: options.Runtime = "auto",
    json_out: JsonOut = None,
) -> None:
    """Average precision when each class is shown by a box of another picture.

    Example: owl-swin eval oneshot --annotations test.json --images pictures --shots 3
    """
    from owl_swin.evaluation.oneshot import evaluate_oneshot

    detector = evaluated_detector(model, device, image_size, json_out, runtime, read=annotations)
    result = evaluate_oneshot(
        detector,
        annotations,
        images,
        classes=chosen_names(classes),
        exemplars=exemplars,
        exemplar_images=exemplar_images,
        shots=shots,
        draws=draws,
        seen=chosen_names(seen) or (),
        unseen=chosen_names(unseen) or (),
        absent=absent,
        with_text=with_text,
        weight=weight,
        negatives=negatives,
        masks=masks,
        nms_iou=checked_nms(nms_iou),
        progress=show_progress,
    )
    finish(result, json_out)


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
    nms_iou: Nms = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    runtime: options.Runtime = "auto",
    json_out: JsonOut = None,
) -> None:
    """Are scores low where a class is absent? AUROC, false alarms, false positives a picture.

    Example: owl-swin eval absence --annotations test.json --images pictures --recall 0.5
    """
    from owl_swin.evaluation.absence import evaluate_absence

    detector = evaluated_detector(model, device, image_size, json_out, runtime, read=annotations)
    result = evaluate_absence(
        detector,
        annotations,
        images,
        classes=chosen_names(classes),
        recall=recall,
        route=by,
        exemplars=exemplars,
        exemplar_images=exemplar_images,
        nms_iou=checked_nms(nms_iou),
        progress=show_progress,
    )
    finish(result, json_out)


app.command()(calibrate)
app.command()(segment)


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
    runtime: options.Runtime = "auto",
    json_out: JsonOut = None,
) -> None:
    """Zero-shot classification: each picture gets the name, or with --examples the shown class, that fits best.

    Example: owl-swin eval classify --annotations labelled.json --images pictures
    """
    from owl_swin.evaluation.classification import evaluate_classification

    detector = evaluated_detector(model, device, image_size, json_out, runtime, read=annotations)
    settings: dict[str, Any] = {"split": split, "classes": chosen_names(classes), "pictures": pictures, "among": among}
    settings |= {"examples": examples, "example_images": example_images}
    finish(evaluate_classification(detector, annotations, images, progress=show_progress, **settings), json_out)


@app.command()
def retrieve(
    annotations: Annotated[Path, typer.Option(help="Folder of webdataset tars, or COCO captions JSON.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures of a captions file.")] = None,
    model: Model = "nano",
    split: Annotated[str, typer.Option(help="What the names of the tars begin with.")] = "test",
    image_size: ImageSize = None,
    device: Device = "auto",
    runtime: options.Runtime = "auto",
    json_out: JsonOut = None,
) -> None:
    """Pictures find their captions and captions their pictures: recall at 1, 5 and 10.

    Example: owl-swin eval retrieve --annotations captions --split test
    """
    from owl_swin.evaluation.retrieval import evaluate_retrieval

    detector = evaluated_detector(model, device, image_size, json_out, runtime, read=annotations)
    finish(evaluate_retrieval(detector, annotations, images, split=split, progress=show_progress), json_out)
