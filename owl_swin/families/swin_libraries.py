"""Published Swin classifiers as timm and torchvision download them, with what the library knows of their classes."""

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from owl_swin.errors import CheckpointError, first_line
from owl_swin.families.picture_settings import PictureSettings, of_timm, of_torchvision

# What the endings of the authors' file names say, and what timm calls the same weights.
RELEASED = {"22kto1k": "ms_in22k_ft_in1k", "22k": "ms_in22k", None: "ms_in1k"}


@dataclass(frozen=True, slots=True)
class FromLibrary:
    """Tensors, the names of the classes where the library knows them, and how pictures are shown."""

    tensors: dict[str, Tensor]
    names: tuple[str, ...]
    settings: PictureSettings


def library_of(name: str) -> str:
    """The library whose name of a model this is, by what stands before the slash."""
    owner = name.split("/")[0]
    return owner if owner in ("torchvision", "timm") else "transformers"


def timm_name(name: str) -> str:
    """timm's name of weights that are called as the authors' files are, "swin_large_patch4_window7_224_22kto1k"; any
    other name as it is."""
    found = re.fullmatch(r"(swin_[a-z]+_patch4_window\d+_\d+)(?:_(22kto1k|22k))?(?:\.pth)?", name)
    return f"timm/{found[1]}.{RELEASED[found[2]]}" if found else name


def fetch_from_library(name: str) -> FromLibrary:
    """The model "timm/…" or "torchvision/…"; one that its library does not have, or cannot fetch, raises
    CheckpointError."""
    library, model = library_of(name), name.split("/")[1]
    if not model.startswith("swin_"):
        raise CheckpointError(f"{name}: is no Swin Transformer; {library}'s have names that start with swin_")
    try:
        return {"torchvision": _from_torchvision, "timm": _from_timm}[library](model)
    except Exception as error:  # each library fails with errors of its own and of its HTTP client
        reason = first_line(error)
        raise CheckpointError(f"{name}: {library} cannot provide these weights ({reason})") from None


def _from_torchvision(name: str) -> FromLibrary:
    from torchvision.models import get_model, get_model_weights

    tensors = get_model(name, weights="DEFAULT").state_dict()
    weights: Any = get_model_weights(name)
    return FromLibrary(tensors, tuple(weights.DEFAULT.meta["categories"]), of_torchvision(weights.DEFAULT.transforms()))


def _from_timm(name: str) -> FromLibrary:
    import timm

    model = timm.create_model(name, pretrained=True)
    settings = of_timm(timm.get_pretrained_cfg(name).to_dict())
    return FromLibrary(model.state_dict(), _timm_names(model.num_classes), settings)


def _timm_names(classes: int) -> tuple[str, ...]:
    """Names of ImageNet's classes, of which timm has the lists but says not which a model has: their number tells."""
    from timm.data import ImageNetInfo

    known = {1000: "imagenet-1k", 21841: "imagenet-22k", 11821: "imagenet-12k"}
    if classes not in known:
        return ()
    info = ImageNetInfo(known[classes])
    return tuple(info.index_to_description(i) for i in range(classes))
