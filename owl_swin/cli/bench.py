"""`owl-swin bench`: speed, measured on this machine."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from owl_swin.cli.printing import emit, emit_line, note
from owl_swin.errors import ConfigError
from owl_swin.files import make_folder_of, write_json

app = typer.Typer(help="Speed, measured on this machine.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def train(
    model: Annotated[Path, typer.Option(help="TOML file of the sizes of a model without a stem.")] = Path(
        "configs/model/nano_patch.toml"
    ),
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
    from owl_swin.bench.training import benchmark_training
    from owl_swin.config import ModelConfig, read_toml
    from owl_swin.devices import pick_device

    _prepare(json_out)
    result = benchmark_training(
        read_toml(model, ModelConfig),
        image_size=image_size,
        batch_size=batch_size,
        precision=precision,
        rounds=rounds,
        device=str(pick_device(device)),
    )
    _print_result(result, json_out)


@app.command()
def detect(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes, peers and rounds: two minutes.")] = False,
    sizes: Annotated[str | None, typer.Option(help="Sizes of the table, as 480x640,960x960 (height first).")] = None,
    systems: Annotated[str | None, typer.Option(help="Only these systems, by name, with commas.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Alternating rounds; 3, or 1 with --quick.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Small networks, to try the benchmark itself.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    plot: Annotated[Path | None, typer.Option(help="Draw plots into this folder.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Time detection beside OWL-ViT, OWLv2, GroundingDINO and OmDet-Turbo, and our Swin beside those of timm,
    torchvision and transformers.

    Example: owl-swin bench detect --quick
    """
    from owl_swin.bench.detection import benchmark_detection
    from owl_swin.bench.plots import save_plots
    from owl_swin.cli.benchmark_tables import print_detection
    from owl_swin.devices import pick_device

    _prepare(json_out)
    result = benchmark_detection(
        quick=quick,
        sizes=None if sizes is None else _sizes(sizes),
        systems=None if systems is None else [name.strip() for name in systems.split(",")],
        rounds=rounds,
        device=str(pick_device(device)),
        tiny=tiny,
        progress=note,
        keep=lambda found: None if json_out is None else write_json(json_out, found),
    )
    if json_out is not None:
        write_json(json_out, result)
    print_detection(result)
    if plot is not None:
        for path in save_plots(result, plot):
            emit_line(str(path))


def _sizes(text: str) -> list[tuple[int, int]]:
    """ "480x640,960x960" → heights and widths."""
    try:
        sizes = [tuple(int(side) for side in part.split("x")) for part in text.split(",")]
    except ValueError:
        sizes = [()]
    if any(len(size) != 2 or min(size) < 32 or max(size) > 4096 for size in sizes):
        raise ConfigError(f"--sizes takes heights and widths from 32 to 4096, as 480x640,960x960; got {text!r}")
    return sizes  # type: ignore[return-value]


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="A name that ships, a .safetensors file, or a folder.")] = "nano",
    clients: Annotated[int, typer.Option(help="Clients that ask at once.")] = 64,
    seconds: Annotated[float, typer.Option(help="How long they ask.")] = 60.0,
    pictures: Annotated[int, typer.Option(help="Different pictures; more than the cache holds.")] = 512,
    max_batch: Annotated[
        int, typer.Option(help="Most pictures in one pass, of the server and of the bare model.")
    ] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Load a server on this machine, check every answer, and compare it with the bare model.

    Ends with code 1 if an answer was wrong or lost.

    Example: owl-swin bench serve --clients 64 --seconds 60
    """
    from owl_swin.bench.serving import benchmark_serving

    _prepare(json_out)
    result = benchmark_serving(
        model,
        clients=clients,
        seconds=seconds,
        pictures=pictures,
        max_batch=max_batch,
        device=device,
        progress=note,
    )
    _print_result(result, json_out)
    parts = [result[name] for name in ("served", "beside_hostile", "overload", "recovered", "sigterm")]
    if any(part["wrong"] or part["lost"] or part["failed"] for part in parts):
        raise typer.Exit(1)


@app.command()
def search(
    sizes: Annotated[str, typer.Option(help="Numbers of regions, separated by commas.")] = "10000,100000,1000000",
    queries: Annotated[int, typer.Option(help="Queries of each size.")] = 200,
    probes: Annotated[str, typer.Option(help="Partitions of the index that a search reads.")] = "80,160,240",
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Time archives of synthetic regions: to build them, to search them, and what the index forgets.

    Example: owl-swin bench search --json search.json
    """
    from owl_swin.bench.search import benchmark_search
    from owl_swin.detector import Detector
    from owl_swin.errors import QueryError

    _prepare(json_out)
    try:
        counts, partitions = ([int(part) for part in text.split(",")] for text in (sizes, probes))
    except ValueError:
        raise QueryError(f"--sizes and --probes are whole numbers between commas, got {sizes!r}, {probes!r}") from None
    if min(counts) < 1000 or min(partitions) < 1 or queries < 2:
        raise QueryError("an archive to time has at least 1000 regions, 1 probe and 2 queries")
    result = benchmark_search(
        Detector.from_pretrained(device="cpu").spec,
        counts,
        queries=queries,
        probes=partitions,
        progress=note,
    )
    _print_result(result, json_out)


@app.command()
def labels(
    model: Annotated[
        str | None, typer.Option(help="An OWL-ViT or OWLv2 checkpoint; by default random weights of --shape.")
    ] = None,
    shape: Annotated[
        str, typer.Option(help="tiny, or the name of a published checkpoint as owlv2-base-patch16.")
    ] = "tiny",
    counts: Annotated[str, typer.Option("--labels", help="Numbers of labels, separated by commas.")] = "1,10,80",
    rounds: Annotated[int, typer.Option(help="Measured rounds of each; the median counts.")] = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Time one picture with several labels beside transformers' pipeline, which encodes it once a label.

    Example: owl-swin bench labels --shape owlvit-base-patch32
    """
    from owl_swin.bench.labels import benchmark_labels
    from owl_swin.devices import pick_device
    from owl_swin.errors import QueryError

    _prepare(json_out)
    try:
        numbers = [int(part) for part in counts.split(",")]
    except ValueError:
        raise QueryError(f"--labels are whole numbers between commas, got {counts!r}") from None
    result = benchmark_labels(
        model,
        shape=shape,
        labels=numbers,
        rounds=rounds,
        device=str(pick_device(device)),
        progress=note,
    )
    _print_result(result, json_out)


def _prepare(json_out: Path | None) -> None:
    """Finds out before the work whether its result can be kept."""
    if json_out is not None:
        make_folder_of(json_out)


def _print_result(result: dict[str, Any], json_out: Path | None) -> None:
    if json_out is not None:
        write_json(json_out, result, what="the result")
    emit(json.dumps(result, indent=2) + "\n")
