"""Files that commands write: whole or not at all, and one sentence when that cannot be."""

import os
from pathlib import Path

from owl_swin.errors import OwlSwinError


def make_folder(folder: Path) -> None:
    """Makes the folder that output goes to; where nothing can be written, raises OwlSwinError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("not writable")
    except (OSError, ValueError) as error:
        raise OwlSwinError(f"{folder}: cannot write in this folder ({_reason(error)})") from None


def write_whole(path: Path, content: bytes) -> None:
    """Writes ``content`` beside ``path`` and moves it there, so that nobody sees half a file."""
    part = path.parent / f".{os.getpid()}.part"
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except (OSError, ValueError) as error:
        part.unlink(missing_ok=True)
        raise OwlSwinError(f"{path}: cannot be written ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
