"""safetensors files: written whole or not at all, and one sentence when they cannot be read or written."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from owl_swin.errors import OwlSwinError


def write_safetensors(
    path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str], *, what: str, error: type[OwlSwinError]
) -> None:
    """Writes beside ``path`` and moves it there; where that cannot be, raises ``error``, which names ``what``."""
    part = path.with_name(path.name + ".part") if path.name else path
    try:
        save_file(tensors, part, metadata=dict(metadata))
        part.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(part, path)
    except (OSError, ValueError, SafetensorError) as reason:
        try:
            if part.is_file():
                part.unlink()
        except (OSError, ValueError):
            pass  # the sentence below says what matters
        raise error(f"{path}: cannot write {what} here ({reason})") from None


def read_safetensors(path: Path, *, error: type[OwlSwinError]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file; one that is missing, damaged or cut off raises ``error``."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as reason:
        raise error(f"{path}: not a whole safetensors file ({reason})") from None
