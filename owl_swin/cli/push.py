"""`owl-swin push`: a model with its card to the Hugging Face hub, or as the folder that would be sent."""

from pathlib import Path
from typing import Annotated

import typer

from owl_swin.cli.printing import emit_line
from owl_swin.errors import ConfigError


def push(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A name that ships, a .safetensors file, or a folder, as a run's."),
    ],
    to: Annotated[str, typer.Argument(metavar="USER/NAME", help="The model on the hub; made where there is none.")],
    revision: Annotated[str | None, typer.Option(help="Branch to write to; made where there is none.")] = None,
    private: Annotated[bool, typer.Option("--private", help="A new model is seen by its owner alone.")] = False,
    message: Annotated[str, typer.Option(help="What the change is called there.")] = "Model of owl_swin",
    licence: Annotated[
        str | None, typer.Option(help='What the hub calls the licence, as "apache-2.0"; by default what the card says.')
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="A quarter of the size: matrices as int8 with a scale a row.")
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="Write the files there, for a look, and send nothing.")] = None,
) -> None:
    """Send config.json, model.safetensors and the model card README.md to the Hugging Face hub.

    The token is what `hf auth login` stored, or HF_TOKEN. A card there that you wrote yourself is kept.

    Example: owl-swin push runs/detect me/beetles --licence apache-2.0
    """
    from owl_swin.detector import Detector
    from owl_swin.families.hub import is_hub_name
    from owl_swin.families.weights import WEIGHTS
    from owl_swin.files import make_folder_of

    if not is_hub_name(to) and not Path(to).exists():
        raise ConfigError(f'{to}: no possible name of a model on the hub; give one as "user/name"')
    if folder is not None:
        make_folder_of(folder / WEIGHTS, apart_from=[model, Path(model) / WEIGHTS])
    detector = Detector.from_pretrained(model, device="cpu")
    if folder is not None:
        detector.save_pretrained(folder, int8=int8, licence=licence, name=to)
        emit_line(str(folder))
        return
    address = detector.push_to_hub(
        to, revision=revision, private=private or None, commit_message=message, int8=int8, licence=licence
    )
    emit_line(address)
