"""`owl-swin eval calibrate`: do scores mean what they say, and their cure."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from owl_swin.cli import options
from owl_swin.cli.evaluation_options import (
    Annotations,
    By,
    Classes,
    Device,
    Ignore,
    Images,
    ImageSize,
    JsonOut,
    Model,
    Nms,
    Nothing,
    Route,
    ValueNames,
    checked_nms,
    chosen_names,
    evaluated_detector,
    finish,
    label_values,
    show_progress,
)
from owl_swin.errors import DataError, OwlSwinError
from owl_swin.files import make_folder_of, write_bytes


def calibrate(
    annotations: Annotations,
    images: Images,
    model: Model = "nano",
    classes: Classes = None,
    by: By = Route.TEXT,
    maps: Annotated[
        bool, typer.Option("--maps", help="Of the scores of semantic maps, on label maps or masks.")
    ] = False,
    names: ValueNames = None,
    ignore: Ignore = None,
    nothing: Nothing = None,
    fit: Annotated[
        list[Path] | None, typer.Option(help="Set to fit on, not what is judged; of several each counts as much.")
    ] = None,
    fit_images: Annotated[
        list[Path] | None, typer.Option(help="Folder of its pictures, if another; or one each.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Write the model with calibrated scores, .safetensors.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the reliability diagram, .png.")] = None,
    nms_iou: Nms = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    runtime: options.Runtime = "auto",
    json_out: JsonOut = None,
) -> None:
    """Do scores mean what they say? With --fit, make them so; --to keeps the cure in a model file.

    Example: owl-swin eval calibrate --annotations test.json --images pictures --fit val.json --to new.safetensors

    Scores of maps: owl-swin eval calibrate --maps --annotations maps --images pictures --names names.txt --fit val_maps
    --fit-images val_pictures --to new.safetensors; and with --with exemplar, of maps of what is shown
    """
    from owl_swin.evaluation.calibration import calibrated, draw_reliability, evaluate_calibration
    from owl_swin.evaluation.map_calibration import evaluate_map_calibration
    from owl_swin.families.owl_swin import save_checkpoint
    from owl_swin.families.weights import WEIGHTS
    from owl_swin.models.owl_swin import OwlSwin

    _check_maps(maps, names, ignore, nothing)
    if to is not None and not fit:
        raise DataError("--to writes a model that was fitted; name a set to fit on with --fit")
    if to is not None and to.suffix != ".safetensors":
        raise OwlSwinError(f"{to}: the file to write must end in .safetensors")
    for path in (to, plot):
        if path is not None:
            make_folder_of(path, apart_from=[annotations, *(fit or ()), model, Path(model) / WEIGHTS])
    detector = evaluated_detector(model, device, image_size, json_out, runtime, read=annotations)
    network = detector.model
    if to is not None and not isinstance(network, OwlSwin):
        raise OwlSwinError(f"{model}: --to writes models of owl_swin's own kind, this is of another")
    settings: dict[str, Any] = {"classes": chosen_names(classes), "fit": fit or (), "fit_images": fit_images or ()}
    settings["progress"] = show_progress
    if maps:
        values = label_values(names, ignore, nothing) | {"route": str(by)}
        result, cure = evaluate_map_calibration(detector, annotations, images, **values, **settings)
    else:
        asked: dict[str, Any] = {"route": by, "nms_iou": checked_nms(nms_iou)}
        result, cure = evaluate_calibration(detector, annotations, images, **asked, **settings)
    finish(result, json_out)  # what is fitted on a part of the pictures is not written
    if plot is not None:
        before, after = result.details.get("reliability_before"), result.details["reliability"]
        panels = {"before": before, "after": after} if before else {"as it is": after}
        content = io.BytesIO()
        draw_reliability(panels).save(content, "PNG")
        write_bytes(plot, content.getvalue(), what="the plot")
    if to is not None and isinstance(network, OwlSwin):
        route = f"map_{by}" if maps else str(by)
        network.config = replace(network.config, calibration=calibrated(network.config.calibration, cure, route))
        save_checkpoint(to, network, detector.card)


def _check_maps(maps: bool, names: Path | None, ignore: list[int] | None, nothing: int | None) -> None:
    if not maps and (names is not None or ignore or nothing is not None):
        raise DataError("--names, --ignore and --nothing are for label maps; say --maps")
