"""Families of models: where their weights come from, and how each sees pictures and reads texts."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from torch import nn

from owl_swin.errors import CheckpointError, ConfigError, brief
from owl_swin.families.hub import is_hub_name, local_place
from owl_swin.families.owl_preprocess import Owlv2Preprocess
from owl_swin.families.owl_swin import load_owl_swin, pretrained
from owl_swin.families.owl_vit import FAMILIES, load_owl_vit
from owl_swin.families.weights import INDEX, WEIGHTS
from owl_swin.files import read_json
from owl_swin.models.network import Pretrained
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.runtimes import GRAPH_RUNTIMES, check_runtime, is_exported
from owl_swin.runtimes.torch import compiled
from owl_swin.text_cache import open_text_cache

CONFIG = "config.json"
# What our own models call themselves, where they say it.
OWN = "owl_swin"


class LoadSettings(TypedDict, total=False):
    """What ``load`` may be told beside the source."""

    content_only: bool
    revision: str | None
    token: str | bool | None
    runtime: str
    text_cache: str | os.PathLike[str] | bool | None


def load(
    source: str | Path = "nano",
    *,
    content_only: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    runtime: str = "auto",
    text_cache: str | os.PathLike[str] | bool | None = None,
) -> Pretrained:
    """A model that ships ("nano"), one of a file or folder, or one of the Hugging Face hub, as
    "google/owlv2-base-patch16-ensemble"; what cannot be had or read raises CheckpointError.

    ``content_only`` leaves out what is only padding, where a family pads its pictures. ``revision`` and ``token`` are
    those of a model on the hub. ``runtime`` is one of ``runtimes.RUNTIMES``. ``text_cache`` is the folder in which
    embeddings of long lists of texts are kept, False for none; None: that of OWL_SWIN_TEXT_CACHE, or the user's own.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(f"a model is named by a text or a path, got {type(source).__name__}")
    if revision is not None and not is_hub_name(source):
        raise CheckpointError(f"a revision is one of a model on the hub, got {revision!r}", of=source)
    place = _model_folder(
        local_place(source, revision=revision, token=token, check=lambda folder: _check(folder, source))
    )
    if check_runtime(runtime) in GRAPH_RUNTIMES or is_exported(place):
        from owl_swin.runtimes.load import load_exported  # which reads the tokenizers of families

        return load_exported(Path(place), runtime)
    loaded = replace(_load_weights(source, place, content_only), text_cache=open_text_cache(text_cache))
    return compiled(loaded) if runtime == "compile" else loaded


def _load_weights(source: str | Path, place: str | Path, content_only: bool) -> Pretrained:
    """The model of a file or folder ``place``, as the caller named it."""
    settings = _check(place, source)
    if settings.get("model_type", OWN) == OWN:
        return load_owl_swin(place)
    name = str(source) if is_hub_name(source) else Path(place).resolve().name
    loaded = load_owl_vit(Path(place), settings, name)
    if content_only and isinstance(loaded.preprocess, Owlv2Preprocess):
        loaded = replace(loaded, preprocess=replace(loaded.preprocess, content_only=True))
    return loaded


def _check(place: str | Path, source: str | Path) -> dict[str, Any]:
    """What config.json says, of a kind that is read here."""
    settings = _settings(place)
    kind = settings.get("model_type", OWN)
    if kind not in (OWN, *FAMILIES):
        raise CheckpointError(
            f"holds a model of the kind {brief(kind)}; a Detector reads models of {OWN}, {' and '.join(FAMILIES)}",
            of=source,
        )
    return settings


def _model_folder(place: str | Path) -> str | Path:
    """The folder of a model of which one file was given: its config.json, or the weights of what transformers saved."""
    path = Path(place)
    if path.name not in (CONFIG, INDEX, WEIGHTS) or not path.is_file():
        return place
    theirs = path.name != WEIGHTS or _settings(path.parent).get("model_type", OWN) != OWN
    return path.parent if theirs else place


def _settings(place: str | Path) -> dict[str, Any]:
    """What config.json says, in a folder that has one."""
    path = Path(place) / CONFIG
    try:
        if not path.is_file():
            return {}
        settings = read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a JSON file ({error})") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: must be a JSON object, got {type(settings).__name__}")
    return settings


def of_module(module: nn.Module) -> Pretrained:
    """A network that is in memory, with what its family needs to see pictures and read texts."""
    if isinstance(module, OwlSwin):
        return pretrained(module)
    raise ConfigError(
        f"a Detector takes a network or what families.load gives, got {type(module).__name__}; "
        "Detector.from_pretrained reads names, files and folders"
    )
