"""Tensors that take long to make, kept in a file for the next start."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from owl_swin.errors import CheckpointError
from owl_swin.files import make_folder, read_safetensors, write_safetensors

logger = logging.getLogger("owl_swin")


def digests_of_files(place: str) -> list[str]:
    """Names and digests of a file, or of those in a folder, which change where others are put in their place and stay
    where a copy is; nothing for what is neither, as a name on the hub."""
    path = Path(place)
    if not place or not path.exists():
        return []
    files = [file for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
    return [f"{file.name} {_digest(file)}" for file in files]


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def kept_tensors(path: Path, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What an earlier start made from the same ``key``, or what ``make`` makes now and leaves in ``path``."""
    if path.exists():
        try:
            tensors, metadata = read_safetensors(path, error=CheckpointError)
            if metadata.get("key") == key:
                return tensors
        except CheckpointError as error:
            logger.warning("%s; it is made again", error)
    tensors = {name: tensor.contiguous() for name, tensor in make().items()}
    make_folder(path.parent)
    write_safetensors(path, tensors, {"key": key}, what="what is kept for the next start", error=CheckpointError)
    return tensors
