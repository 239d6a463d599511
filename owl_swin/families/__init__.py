"""Families of models: where their weights come from, and how each sees pictures and reads texts."""

import os
from pathlib import Path

from torch import nn

from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.families.owl_swin import load_owl_swin, pretrained
from owl_swin.models.network import Pretrained
from owl_swin.models.owl_swin import OwlSwin


def load(source: str | Path = "nano") -> Pretrained:
    """A model that ships ("nano"), or one of a file or folder; what cannot be read raises CheckpointError."""
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(f"a model is named by a text or a path, got {type(source).__name__}")
    return load_owl_swin(source)


def of_module(module: nn.Module) -> Pretrained:
    """A network that is in memory, with what its family needs to see pictures and read texts."""
    if isinstance(module, OwlSwin):
        return pretrained(module)
    raise ConfigError(
        f"a Detector takes a network or what families.load gives, got {type(module).__name__}; "
        "Detector.from_pretrained reads names, files and folders"
    )
