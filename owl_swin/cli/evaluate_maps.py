"""`owl-swin eval segment`: maps of what each pixel shows, against label maps."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from owl_swin.cli import options
from owl_swin.cli.evaluation_options import (
    Classes,
    Device,
    Ignore,
    Images,
    ImageSize,
    JsonOut,
    Model,
    Nothing,
    ValueNames,
    chosen_names,
    evaluated_detector,
    finish,
    label_values,
    show_progress,
)
from owl_swin.files import make_folder_of

if TYPE_CHECKING:
    from owl_swin.closed_set import ImageSegmenter
    from owl_swin.detector import Detector

LabelMaps = Annotated[
    Path,
    typer.Option(
        help="Folder of PNG label maps called as their pictures; COCO panoptic JSON; or COCO JSON with masks."
    ),
]


def segment(
    annotations: LabelMaps,
    images: Images,
    names: ValueNames = None,
    ignore: Ignore = None,
    nothing: Nothing = None,
    model: Model = "nano",
    classes: Classes = None,
    novel: Annotated[
        str | None, typer.Option(help="Held-out classes, for figures of their own: names, or a file with one a line.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="With --novel: classes trained on, and no others are asked; else all others.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="A pixel whose best score is lower shows nothing. By default 0 where each pixel has a name, else 0.2.",
            min=0,
            max=1,
        ),
    ] = None,
    image_size: ImageSize = None,
    tile: options.Tile = None,
    overlap: options.Overlap = None,
    device: Device = "auto",
    runtime: options.Runtime = "auto",
    json_out: JsonOut = None,
) -> None:
    """Semantic mIoU by ADE20K's protocol, of models that are asked by name and of those with fixed classes.

    Example: owl-swin eval segment --annotations ade/annotations/validation --images ade/images/validation --names
    ade/objectInfo150.txt --ignore 0 --model openmmlab/upernet-swin-tiny

    With classes that training did not see: owl-swin eval segment --annotations voc/SegmentationClass --images
    voc/JPEGImages --names classes.txt --nothing 0 --novel "sheep, sofa, tv monitor"
    """
    from owl_swin.evaluation.semantic import evaluate_segmentation

    settings: dict[str, Any] = {
        **label_values(names, ignore, nothing),
        "classes": chosen_names(classes),
        "base": chosen_names(base) or (),
        "novel": chosen_names(novel) or (),
        "threshold": threshold,
        "image_size": image_size,
        "tiles": options.make_tiles(tile, overlap),
        "progress": show_progress,
    }
    finish(
        evaluate_segmentation(_model(model, device, json_out, runtime, annotations), annotations, images, **settings),
        json_out,
    )


def _model(model: str, device: str, json_out: Path | None, runtime: str, read: Path) -> "Detector | ImageSegmenter":
    from owl_swin.families.closed_set import is_segmenter, load_segmenter

    if not is_segmenter(model):
        return evaluated_detector(model, device, None, json_out, runtime, read=read)
    if json_out is not None:
        make_folder_of(json_out, apart_from=[read])
    return load_segmenter(model, device=device)
