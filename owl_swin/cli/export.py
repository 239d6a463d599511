"""`owl-swin export`: a model as one small file, or as a folder of graphs for another runtime."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from owl_swin.cli.printing import emit_line
from owl_swin.errors import ConfigError, OwlSwinError
from owl_swin.files import make_folder_of

if TYPE_CHECKING:
    from owl_swin.frame import HW


def export(
    model: Annotated[str, typer.Argument(help="A training run's folder, or any model.")],
    to: Annotated[Path, typer.Option(help="File to write, .safetensors; with --runtime, the folder.")],
    runtime: Annotated[
        str | None,
        typer.Option(help="onnx or openvino: write a folder of graphs that need neither PyTorch nor this package."),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH,...",
            help="With --runtime: frames in multiples of 32, as 640x640,480x640, each with a graph of its own. None: "
            "one graph for all.",
        ),
    ] = None,
    card: Annotated[Path | None, typer.Option(help="TOML file with the sentences of the model card.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Longer side in pixels of pictures.")] = None,
    figures: Annotated[Path, typer.Option(help="Folder of the JSON results that the card names.")] = Path(
        "runs/figures"
    ),
) -> None:
    """Write a model as one small file with its card. --image-size sets the longer side that it reads by default.

    Example: owl-swin export runs/detect --to my_model.safetensors --card configs/model/nano_card.toml

    For another runtime: owl-swin export nano --to nano_onnx --runtime onnx
    """
    if runtime is not None:
        _export_graphs(model, to, runtime, parse_sizes(sizes), card, figures, image_size)
        return
    if sizes is not None:
        raise ConfigError("--sizes is for --runtime onnx or openvino; give it too, or leave it out")
    from owl_swin.evaluation.card import build_card
    from owl_swin.families.owl_swin import load_checkpoint, save_checkpoint
    from owl_swin.frame import check_image_size

    network, old_card = load_checkpoint(model)
    if card is not None:
        old_card = build_card(card, figures)
    if image_size is not None:
        network.config = replace(network.config, image_size=check_image_size(image_size))
    if to.suffix != ".safetensors":
        raise OwlSwinError(f"{to}: the file to write must end in .safetensors")
    make_folder_of(to)
    save_checkpoint(to, network, old_card)
    print(f"{to}  {to.stat().st_size / 1e6:.1f} MB")


def parse_sizes(text: str | None) -> "list[HW]":
    """Frames (height, width) of "640x640,480x640"; what is none raises ConfigError."""
    sizes = []
    for part in (text or "").split(",") if text is not None else ():
        height, _, width = part.strip().lower().partition("x")
        if not (height.isascii() and height.isdigit() and width.isascii() and width.isdigit()):
            raise ConfigError(f"--sizes are heights and widths in pixels, as in 640x640,480x640, got {part!r}")
        sizes.append((int(height), int(width)))
    return sizes


def _export_graphs(
    model: str,
    to: Path,
    runtime: str,
    sizes: "list[HW]",
    card: Path | None,
    figures: Path,
    image_size: int | None,
) -> None:
    from owl_swin.families import load
    from owl_swin.frame import check_image_size
    from owl_swin.models.owl_swin import OwlSwin
    from owl_swin.runtimes.export import export as write

    pretrained = load(model)
    if card is not None:
        from owl_swin.evaluation.card import build_card

        pretrained = replace(pretrained, card=build_card(card, figures))
    if image_size is not None:
        network = pretrained.network
        if not isinstance(network, OwlSwin):
            raise ConfigError("--image-size is for models of ours; others are exported for the size they were made for")
        network.config = replace(network.config, image_size=check_image_size(image_size))
    write(pretrained, to, runtime, sizes=sizes)
    emit_line(f"{to}  {sum(file.stat().st_size for file in to.iterdir()) / 1e6:.1f} MB")
