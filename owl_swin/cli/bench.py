"""`owl-swin bench`: speed, measured on this machine."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from owl_swin.cli.output import make_folder, write_whole


class Benchmark(StrEnum):
    """What is timed."""

    TRAIN = "train"


def bench(
    what: Annotated[Benchmark, typer.Argument(help="What to time.")],
    model: Annotated[Path, typer.Option(help="TOML file of the model's sizes.")] = Path("configs/model/nano.toml"),
    image_size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Pictures in a step.")] = 128,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    rounds: Annotated[int, typer.Option(help="Measured steps of each; the median counts.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Time a training step beside the same Swin of timm and beside the machine's matrix products.

    Example: owl-swin bench train --image-size 64 --batch-size 128
    """
    from owl_swin.config import ModelConfig, read_toml
    from owl_swin.evaluation.benchmark import benchmark_training
    from owl_swin.runtime import pick_device

    if json_out is not None:
        make_folder(json_out.parent)
    result = benchmark_training(
        read_toml(model, ModelConfig),
        image_size=image_size,
        batch_size=batch_size,
        precision=precision,
        rounds=rounds,
        device=str(pick_device(device)),
    )
    text = json.dumps(result, indent=2)
    if json_out is not None:
        write_whole(json_out, (text + "\n").encode())
    print(text)
