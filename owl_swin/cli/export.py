"""`owl-swin export`: a model as one small file, or as a folder of graphs for another runtime."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from owl_swin.cli.pictures import find_pictures
from owl_swin.cli.printing import emit_line
from owl_swin.errors import ConfigError, OwlSwinError
from owl_swin.files import make_folder_of

if TYPE_CHECKING:
    from owl_swin.frame import HW
    from owl_swin.models.network import Pretrained


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A training run's folder, or any model.")],
    to: Annotated[Path, typer.Option(help="File to write, .safetensors; with --runtime, the folder.")],
    runtime: Annotated[
        str | None,
        typer.Option(help="onnx or openvino: write a folder of graphs that need neither PyTorch nor this package."),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH,...",
            help="With --runtime: frames in multiples of 32, as 640x640,480x640, a graph for each; by default one "
            "graph for all.",
        ),
    ] = None,
    int8: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHOTOS",
            help="With --runtime: quantise to int8, calibrated on these photographs or folders of them; repeat it.",
        ),
    ] = None,
    masks: Annotated[
        bool,
        typer.Option(
            "--masks/--no-masks",
            help="With --runtime: graphs for masks too, if the model makes some; they take the room of the others.",
        ),
    ] = True,
    annotations: Annotated[
        Path | None,
        typer.Option(help="With --runtime: a set to measure AP50 on, before and after; as in `owl-swin eval detect`."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the set's pictures.")] = None,
    card: Annotated[Path | None, typer.Option(help="TOML file with the sentences of the model card.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Longer side in pixels of pictures.")] = None,
    nms_iou: Annotated[
        float | None, typer.Option(help="Of two boxes of one query that overlap by more, detection keeps the better.")
    ] = None,
    box_voting: Annotated[
        bool | None, typer.Option(help="Whether boxes that detection suppresses have a say in where its sides are.")
    ] = None,
    rivals: Annotated[
        float | None,
        typer.Option(help="0 to 1: the power by which a text loses to another that scores higher."),
    ] = None,
    figures: Annotated[Path, typer.Option(help="Folder of the JSON results that the card names.")] = Path(
        "runs/figures"
    ),
) -> None:
    """Write a model as one small file with its card. --image-size, --nms-iou, --box-voting and --rivals say how it is
    used where nothing else is asked for.

    Example: owl-swin export runs/detect --to my_model.safetensors --card configs/model/nano_card.toml

    For another runtime: owl-swin export nano --to nano_onnx --runtime onnx
    """
    from owl_swin.frame import check_image_size

    given_by = {"image_size": image_size, "nms_iou": nms_iou, "box_voting": box_voting, "rivals": rivals}
    changes = {name: value for name, value in given_by.items() if value is not None}
    if image_size is not None:
        check_image_size(image_size)
    if runtime is None:
        given = {"--sizes": sizes, "--int8": int8, "--annotations": annotations, "--images": images}
        said = [name for name, value in given.items() if value is not None] + ["--no-masks"] * (not masks)
        if alone := next(iter(said), None):
            raise ConfigError(f"{alone} is for --runtime onnx or openvino; give it too, or leave it out")
        _export_file(model, to, card, figures, changes)
        return
    if (annotations is None) != (images is None):
        raise ConfigError("a set to measure is --annotations and --images, both")
    if annotations is not None:
        from owl_swin.evaluation.precision import check_can_measure

        check_can_measure()
    photographs = find_pictures(int8) if int8 else []

    from owl_swin.detector import Detector
    from owl_swin.families import load
    from owl_swin.runtimes.export import export as write

    pretrained = _prepared(load(model), card, figures, changes)
    frames = parse_sizes(sizes)
    if image_size is not None and frames and image_size not in map(max, frames):
        raise ConfigError(f"none of --sizes has the longer side of --image-size, {image_size}")
    write(pretrained, to, runtime, sizes=frames, photographs=photographs, masks=masks)
    emit_line(f"{to}  {sum(file.stat().st_size for file in to.iterdir()) / 1e6:.1f} MB")
    if annotations is not None and images is not None:
        from owl_swin.evaluation.detection import evaluate_detection

        both = (Detector(pretrained, device="cpu"), Detector.from_pretrained(to, runtime=runtime))
        before, after = (evaluate_detection(one, annotations, images).figures["AP50"] for one in both)
        if before is not None and after is not None:
            emit_line(f"AP50 {after:.2f}, of the model {before:.2f}: {after - before:+.2f} points")


def _export_file(model: str, to: Path, card: Path | None, figures: Path, changes: dict[str, Any]) -> None:
    from owl_swin.evaluation.card import build_card
    from owl_swin.families.owl_swin import checkpoint_path, load_checkpoint, save_checkpoint

    network, old_card = load_checkpoint(model)
    if card is not None:
        old_card = build_card(card, figures)
    network.config = replace(network.config, **changes)
    if to.suffix != ".safetensors":
        raise OwlSwinError(f"{to}: the file to write must end in .safetensors")
    make_folder_of(to, apart_from=[checkpoint_path(model)])
    save_checkpoint(to, network, old_card)
    emit_line(f"{to}  {to.stat().st_size / 1e6:.1f} MB")


def parse_sizes(text: str | None) -> "list[HW]":
    """Frames (height, width) of "640x640,480x640"; what is none raises ConfigError."""
    sizes = []
    for part in (text or "").split(",") if text is not None else ():
        height, _, width = part.strip().lower().partition("x")
        if not (height.isascii() and height.isdigit() and width.isascii() and width.isdigit()):
            raise ConfigError(f"--sizes are heights and widths in pixels, as in 640x640,480x640, got {part!r}")
        sizes.append((int(height), int(width)))
    return sizes


def _prepared(pretrained: "Pretrained", card: Path | None, figures: Path, changes: dict[str, Any]) -> "Pretrained":
    """The model with another card, or with ``changes`` to its configuration."""
    from owl_swin.models.owl_swin import OwlSwin

    if card is not None:
        from owl_swin.evaluation.card import build_card

        pretrained = replace(pretrained, card=build_card(card, figures))
    if changes:
        network = pretrained.network
        if not isinstance(network, OwlSwin):
            option = next(iter(changes)).replace("_", "-")
            raise ConfigError(f"--{option} is for models of ours; others are exported as they were made")
        network.config = replace(network.config, **changes)
    return pretrained
