"""`owl-swin info`: what a model is, what it was made from, and what it can do."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

PACKAGES = ("owl_swin", "torch", "torchvision", "open_clip_torch", "transformers", "pillow", "safetensors", "numpy")


def info(
    model: Annotated[str, typer.Argument(help="A name that ships, a .safetensors file, or a folder.")] = "nano",
) -> None:
    """Print the model card, the measured table and the versions in use.

    Example: owl-swin info nano
    """
    from owl_swin.checkpoint import checkpoint_path, load_checkpoint

    path = checkpoint_path(model)
    network, card = load_checkpoint(model)
    config = network.config
    print(f"{card.get('name', config.name)}  ({path}, {path.stat().st_size / 1e6:.1f} MB)")
    parts = {
        "image encoder": network.image_encoder,
        "text encoder": network.text_encoder,
        "whole model": network,
    }
    for part, module in parts.items():
        print(f"  {part:<14} {sum(p.numel() for p in module.parameters()) / 1e6:6.2f} M parameters")
    print(
        f"  Swin {config.image.embed_dim} channels, depths {config.image.depths}, windows of {config.image.window_size}"
    )
    print(
        f"  pictures: longer side {config.image_size} px; a patch is {config.heads.stride} px; "
        f"embeddings of {config.embed_dim}"
    )
    for line in card_lines(card):
        print(line)
    print("\nversions")
    print(f"  python {platform.python_version()}")
    for package in PACKAGES:
        try:
            print(f"  {package} {version(package)}")
        except PackageNotFoundError:
            print(f"  {package} not installed as a package")


def card_lines(card: dict[str, Any]) -> list[str]:
    """The card as text: sections of sentences, and the table of results with the command that made each."""
    lines = []
    for section in ("description", "data", "recipe", "limits", "licence"):
        value = card.get(section)
        if value:
            lines += ["", section, *(f"  {sentence}" for sentence in ([value] if isinstance(value, str) else value))]
    results = card.get("results") or []
    if results:
        lines += ["", "results"]
        wide = max(len(row["what"]) for row in results)
        lines += [f"  {row['what']:<{wide}}  {row['value']:>7}  {row['command']}" for row in results]
    return lines
