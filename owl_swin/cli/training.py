"""`owl-swin train | distil | eval | export`: making models and judging them."""

import json
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from owl_swin.cli.output import make_folder, write_whole
from owl_swin.errors import OwlSwinError


class Protocol(StrEnum):
    """What is measured."""

    DETECT = "detect"
    CLASSIFY = "classify"


def train(
    config: Annotated[Path, typer.Argument(help="A TOML file, as in configs/train.")],
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after so many steps more; the next call goes on.")
    ] = None,
    blend: Annotated[
        float | None,
        typer.Option(help="Share of the weights that the run started from in the result, 0 to 1: less forgetting."),
    ] = None,
) -> None:
    """Train or go on training; the run's folder then holds model.safetensors. Under torchrun, processes share the work.

    Example: owl-swin train configs/train/finetune.toml --blend 0.5
    """
    from owl_swin.config import read_toml
    from owl_swin.training.config import TrainConfig
    from owl_swin.training.loop import train as run

    settings = read_toml(config, TrainConfig)
    if blend is not None:
        settings = replace(settings, blend=blend)
    print(run(settings, stop_after=stop_after))


def distil(config: Annotated[Path, typer.Argument(help="A TOML file, as configs/train/distil_text.toml.")]) -> None:
    """Distil a sentence encoder into the small text tower.

    Example: owl-swin distil configs/train/distil_text.toml
    """
    from owl_swin.config import read_toml
    from owl_swin.training.distil_text import DistilConfig
    from owl_swin.training.distil_text import distil as run

    print(run(read_toml(config, DistilConfig)))


def evaluate(
    protocol: Annotated[Protocol, typer.Argument(help="What to measure.")],
    annotations: Annotated[Path, typer.Option(help="COCO JSON, or the manifest of tile sheets for classify.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures.")] = None,
    model: Annotated[str, typer.Option(help="A name that ships, a .safetensors file, or a folder.")] = "nano",
    classes: Annotated[str | None, typer.Option(help="Only these classes, separated by commas.")] = None,
    split: Annotated[str, typer.Option(help="Split of a manifest.")] = "val",
    pictures: Annotated[str, typer.Option(help="classify: all, trained or heldout classes of a manifest.")] = "all",
    among: Annotated[str, typer.Option(help="classify: names to choose from: all, trained or heldout.")] = "all",
    image_size: Annotated[int | None, typer.Option(help="Longer side in pixels; by default the model's own.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Measure a model under a stated protocol.

    Example: owl-swin eval detect --annotations test.json --images pictures --json result.json
    """
    from owl_swin.detector import Detector

    if json_out is not None:
        make_folder(json_out.parent)
    detector = Detector.from_pretrained(model, image_size=image_size)
    chosen = [name.strip() for name in classes.split(",") if name.strip()] if classes else None
    if protocol is Protocol.DETECT:
        from owl_swin.evaluation.coco import evaluate_detection

        if images is None:
            raise OwlSwinError("eval detect needs --images, the folder of the pictures")
        result = evaluate_detection(detector, annotations, images, classes=chosen, progress=_progress)
    else:
        from owl_swin.evaluation.alignment import evaluate_classification

        settings: dict[str, Any] = {"split": split, "classes": chosen, "pictures": pictures, "among": among}
        result = evaluate_classification(detector, annotations, images, progress=_progress, **settings)
    text = json.dumps(result, indent=2)
    if json_out is not None:
        write_whole(json_out, (text + "\n").encode())
    print(text)


def export(
    model: Annotated[str, typer.Argument(help="A training run's folder, or any model.")],
    to: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    card: Annotated[Path | None, typer.Option(help="TOML file with the sentences of the model card.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Longer side in pixels of pictures.")] = None,
    figures: Annotated[Path, typer.Option(help="Folder of the JSON results that the card names.")] = Path(
        "runs/figures"
    ),
) -> None:
    """Write a model as one small file with its card. --image-size sets the longer side that it reads by default.

    Example: owl-swin export runs/detect --to my_model.safetensors --card configs/model/nano_card.toml
    """
    from owl_swin.checkpoint import load_checkpoint, save_checkpoint
    from owl_swin.evaluation.card import build_card
    from owl_swin.image import check_image_size

    network, old_card = load_checkpoint(model)
    if card is not None:
        old_card = build_card(card, figures)
    if image_size is not None:
        network.config = replace(network.config, image_size=check_image_size(image_size))
    if to.suffix != ".safetensors":
        raise OwlSwinError(f"{to}: the file to write must end in .safetensors")
    make_folder(to.parent)
    save_checkpoint(to, network, old_card)
    print(f"{to}  {to.stat().st_size / 1e6:.1f} MB")


def _progress(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        end = "\n" if done == total or not sys.stderr.isatty() else "\r"
        print(f"{done}/{total} pictures", end=end, file=sys.stderr, flush=True)
