"""What visitors of the demo sent, on disk: bounded for all of them together, the oldest goes first."""

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from owl_swin.server.problems import busy

# A file that was written so lately may be part of what somebody is looking at: it is kept, and newcomers wait.
KEPT_S = 300.0
RETRY_S = 60


@dataclass(frozen=True, slots=True)
class _File:
    modified: float
    size: int
    path: Path


class Uploads:
    """The folder in which Gradio keeps uploads and the pictures that it shows, of at most ``max_bytes`` together."""

    def __init__(self, folder: Path, max_bytes: int, *, kept_s: float = KEPT_S):
        self._folder, self._max_bytes, self._kept_s = folder, max_bytes, kept_s
        self._lock = threading.Lock()
        self._on_disk = self._coming = 0

    def make_room(self, n_bytes: int) -> None:
        """Counts what is there, and deletes the oldest files until so many bytes more have room."""
        with self._lock:
            files = sorted(_files(self._folder), key=lambda file: file.modified)
            self._on_disk = sum(file.size for file in files)
            newest = time.time() - self._kept_s
            for file in files:
                if self._on_disk + self._coming + n_bytes <= self._max_bytes or file.modified > newest:
                    break
                with contextlib.suppress(OSError):
                    file.path.unlink()
                    self._on_disk -= file.size

    def hold(self, n_bytes: int) -> None:
        """Counts bytes that are coming in, or with a minus that have; beyond the bound raises Problem."""
        with self._lock:
            if n_bytes > 0 and self._on_disk + self._coming + n_bytes > self._max_bytes:
                raise busy("the uploads of all visitors fill their room; come again later", RETRY_S)
            self._coming += n_bytes
            if n_bytes < 0:  # it lies on disk now, until somebody counts anew
                self._on_disk -= n_bytes


def _files(folder: Path) -> list[_File]:
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if path.is_file() and not path.is_symlink():
                found.append(_File(status.st_mtime, status.st_size, path))
    return found
