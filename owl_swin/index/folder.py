"""Pictures of a folder: reading a file so that content, hash and times belong together."""

import hashlib
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl_swin.errors import ArchiveError, ImageError
from owl_swin.image import MAX_FILE_BYTES

# A file written to this recently may be written to again without its times changing: clocks of file systems are coarse.
FRESH_S = 2.0


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of one picture file, as they were at one moment."""

    path: str
    content: bytes
    image_id: str
    stamp: str
    modified: float


def absolute(folder: str | os.PathLike[str]) -> str:
    """The path from the root on, without "..". Links stay what they are: a picture is known by its path."""
    return os.path.abspath(os.fspath(folder))  # noqa: PTH100


def checked_folder(folder: str | os.PathLike[str]) -> str:
    """The folder as an absolute path; what is none raises ArchiveError."""
    path = absolute(folder)
    if os.path.isfile(path):  # noqa: PTH113
        raise ArchiveError(f"{path}: expected a folder of pictures, got a file; name the folder that it lies in")
    try:
        with os.scandir(path):
            return path
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ArchiveError(f"{Path(path)}: the folder of pictures cannot be read ({reason})") from None


def stamp_of(path: str) -> str:
    """Text that changes when the file may have: size, times of content and of inode, and inode.

    The time of the inode cannot be set back by a program, as that of the content can. "" if the file changed a moment
    ago or cannot be seen.
    """
    try:
        return _stamp(Path(path).stat())
    except (OSError, ValueError):
        return ""


def read_picture(path: str, *, keep: bool = True) -> Content:
    """The content of a file with its hash and stamp, all of one moment; raises ImageError where that cannot be.

    Without ``keep`` the bytes are left out, and the file may be of any size.
    """
    try:
        for _ in range(3):
            with open(path, "rb", opener=_open_now) as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise ImageError("is no file")
                if keep and before.st_size > MAX_FILE_BYTES:
                    raise ImageError(f"has more than {MAX_FILE_BYTES} bytes, the largest picture file that is read")
                content = file.read(MAX_FILE_BYTES + 1) if keep else b""
                image_id = content_hash(content) if keep else _short(hashlib.file_digest(file, "sha256"))
                read, after = file.tell(), os.fstat(file.fileno())
            same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if same and read == after.st_size:
                return Content(path, content, image_id, _stamp(after), after.st_mtime)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"cannot read this file ({getattr(error, 'strerror', None) or error})") from None
    raise ImageError("the file changes while it is read; index again when it is complete")


def content_hash(content: bytes) -> str:
    """The name of a content: the first half of its SHA-256."""
    return _short(hashlib.sha256(content))


def _short(digest: Any) -> str:
    return digest.hexdigest()[:32]


def _open_now(path: str, flags: int) -> int:
    """Opens without waiting for the other end, which a named pipe would."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _stamp(found: os.stat_result) -> str:
    if time.time() - max(found.st_mtime, found.st_ctime) < FRESH_S:
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}"
