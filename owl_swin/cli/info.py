"""`owl-swin info`: what a model is and can do, or what a data set holds."""

import json
import platform
from collections.abc import Mapping
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from owl_swin.cli.data_info import data_json, data_lines, describe_data
from owl_swin.cli.printing import emit, printable
from owl_swin.errors import DataError

PARTS = ("image encoder", "text encoder", "whole model")
PACKAGES = (
    "owl_swin",
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "pillow",
    "safetensors",
    "numpy",
    "onnxruntime",
    "openvino",
)


class Format(StrEnum):
    """How the answer is written."""

    TABLE = "table"
    JSON = "json"


def info(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|DATA",
            help="A name that ships or is on the hub, a .safetensors file, a folder; or a data set.",
        ),
    ] = "nano",
    kind: Annotated[
        str | None,
        typer.Option(help="Form of the data set (coco, lvis, voc, yolo, captions, …); guessed if not given."),
    ] = None,
    images: Annotated[str, typer.Option(help="Folder of the data set's pictures.")] = "",
    split: Annotated[str, typer.Option(help="Part of a data set that has parts.")] = "train",
    names: Annotated[
        str, typer.Option(help="File of what the numbers of label maps mean, or of other names for sheets.")
    ] = "",
    ignore: Annotated[
        list[int] | None, typer.Option(min=0, help="Number of label maps that means nothing; may be repeated.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Decode every picture of the data set.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write sample pictures with boxes and names here (.jpg, .png).")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=200, help="Pictures on that sheet.")] = 12,
    form: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.TABLE,
) -> None:
    """Print a model's card, measured table and versions; or what a data set holds and what is wrong with it.

    Example: owl-swin info nano

    Example: owl-swin info annotations.json --images photos --save sheet.jpg
    """
    chosen = _kind_of_data(what, kind, asked=bool(images or names or save or check))
    if chosen is None:
        about = _about_model(what)
        text = (
            json.dumps(about, indent=2, ensure_ascii=False) if form == Format.JSON else "\n".join(_model_lines(about))
        )
        emit(text + "\n")
        return
    maps = {"names": names, **({"ignore_values": tuple(ignore)} if ignore is not None else {})}
    found = describe_data(what, chosen, images, split, maps=maps, check=check, save=save, samples=samples)
    emit((data_json(found) if form == Format.JSON else "\n".join(map(printable, data_lines(found)))) + "\n")


def _kind_of_data(what: str, kind: str | None, *, asked: bool) -> str | None:
    """The kind of the data set at ``what``, or None when it is a model."""
    from owl_swin.data.guess import guess_kind
    from owl_swin.families.hub import is_hub_name
    from owl_swin.families.owl_swin import SHIPPED
    from owl_swin.runtimes import is_exported

    path = Path(what)
    if kind is None and (
        what in SHIPPED
        or (is_hub_name(what) and not asked)
        or path.suffix == ".safetensors"
        or is_exported(path)
        or any(_files(path, "*.safetensors"))
    ):
        return None
    chosen = kind or guess_kind(what)
    if chosen is None and (asked or path.suffix == ".json" or any(_files(path, "*"))):
        unclear = "neither a model nor a data set of a form that can be told; say which with --kind"
        raise DataError(f"{what}: {unclear if path.exists() else 'no such file or folder'}")
    return chosen


def _files(path: Path, pattern: str) -> list[Path]:
    try:
        return list(path.glob(pattern)) if path.is_dir() else []
    except (OSError, ValueError):
        return []


def _about_model(model: str) -> dict[str, Any]:
    """Everything that is printed of a model, ready for JSON."""
    from owl_swin.config import to_mapping
    from owl_swin.families import load
    from owl_swin.families.hub import local_place
    from owl_swin.families.owl_swin import checkpoint_path
    from owl_swin.models.owl_swin import OwlSwin
    from owl_swin.runtimes import is_exported

    if is_exported(model):
        return _about_export(Path(model))
    loaded = load(model)
    network: Any = loaded.network
    own = isinstance(network, OwlSwin)
    path = checkpoint_path(model) if own else Path(local_place(model))
    files = [path] if path.is_file() else _files(path, "*.safetensors")
    towers = (network.image_encoder, network.text_encoder) if own else (network.vision_model, network.text_model)
    branches = {"mask branch": network.masks} if own and network.masks is not None else {}
    parts = dict(zip(PARTS[:2], towers, strict=True)) | branches | {PARTS[2]: network}
    return {
        "name": loaded.card.get("name", network.config.name),
        "path": str(path),
        "bytes": sum(file.stat().st_size for file in files),
        "parameters": {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()},
        "config": to_mapping(network.config),
        "card": dict(loaded.card),
        "versions": _versions(),
    }


def _about_export(folder: Path) -> dict[str, Any]:
    from owl_swin.runtimes.spec import read_spec

    said = read_spec(folder).to_json()
    card = said.pop("card")
    return {
        "name": card.get("name", said["network"]["name"]),
        "path": str(folder),
        "bytes": sum(file.stat().st_size for file in _files(folder, "*")),
        "export": said,
        "card": card,
        "versions": _versions(),
    }


def _model_lines(about: dict[str, Any]) -> list[str]:
    lines = [f"{about['name']}  ({about['path']}, {about['bytes'] / 1e6:.1f} MB)"]
    lines += _export_lines(about["export"]) if "export" in about else _network_lines(about)
    return [
        *lines,
        *map(printable, card_lines(about["card"])),
        "\nversions",
        *(f"  {name} {number or 'not installed as a package'}" for name, number in about["versions"].items()),
    ]


def _export_lines(said: dict[str, Any]) -> list[str]:
    network, sizes = said["network"], ", ".join(f"{height}x{width}" for height, width in said["sizes"])
    return [
        f"  exported for {said['runtime']} in {said['precision']}; frames (height x width): "
        f"{sizes or 'all whose sides are multiples of 32'}",
        f"  pictures: longer side {network['image_size']} px; a patch is {network['stride']} px; "
        f"embeddings of {network['embed_dim']}; {'boxes and masks' if network['has_masks'] else 'boxes, no masks'}",
    ]


def _network_lines(about: dict[str, Any]) -> list[str]:
    config, image = about["config"], about["config"]["image"]
    lines = [f"  {part:<14} {count / 1e6:6.2f} M parameters" for part, count in about["parameters"].items()]
    if "depths" in image:
        stride, depths = config["heads"]["stride"], tuple(image["depths"])
        lines.append(f"  Swin {image['embed_dim']} channels, depths {depths}, windows of {image['window_size']}")
    else:
        stride = config["patch_size"]
        lines.append(f"  {config['family']}: ViT {image['width']} channels, {image['layers']} layers")
    if masks := config.get("masks"):
        from owl_swin.models.masks import MASK_STRIDE

        lines.append(f"  masks: each patch asks of pixels of {MASK_STRIDE} px in {masks['dim']} dimensions")
    return [
        *lines,
        f"  pictures: longer side {config['image_size']} px; a patch is {stride} px; "
        f"embeddings of {config['embed_dim']}",
    ]


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def card_lines(card: dict[str, Any]) -> list[str]:
    """The card as text: sections of sentences, and the table of results with the command that made each."""
    lines = []
    for section in ("description", "data", "recipe", "limits", "licence"):
        value = card.get(section)
        if value:
            lines += ["", section, *(f"  {sentence}" for sentence in ([value] if isinstance(value, str) else value))]
    results = card.get("results")
    results = [row for row in results if isinstance(row, Mapping)] if isinstance(results, (list, tuple)) else []
    if results:
        lines += ["", "results"]
        rows = [[str(row.get(key, "")) for key in ("what", "value", "command")] for row in results]
        wide, of_value = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines += [f"  {what:<{wide}}  {value:<{of_value}}  {command}".rstrip() for what, value, command in rows]
    return lines
