"""One writer an archive: a lock that the kernel takes back when its process ends, however it ends."""

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from owl_swin.errors import ArchiveBusyError, ArchiveError
from owl_swin.locks import hold_lock


def lock_file(uri: str) -> Path:
    """Where the lock of an archive lies: in its folder; for one that is elsewhere, in this machine's own place for
    temporary files, so that it holds among the processes of one user on one machine. In object storage nothing keeps
    another machine from writing: that is left to who runs them."""
    if "://" not in uri:
        return Path(uri) / "writer.lock"
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"owl_swin-{user}" / f"{hashlib.sha256(uri.encode()).hexdigest()[:32]}.lock"


@contextlib.contextmanager
def only_writer(uri: str, *, wait: bool, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock of an archive. If another process has it, waits, or without ``wait`` raises ArchiveError.

    ``waiting`` is called once with the name of the process that holds it.
    """
    path = lock_file(uri)
    try:
        path.parent.mkdir(mode=0o700 if "://" in uri else 0o777, parents=True, exist_ok=True)
        if "://" in uri:
            _check_own(path.parent)
    except OSError as error:
        raise _unwritable(uri, error) from None
    lock = hold_lock(
        path,
        busy=lambda holder: ArchiveBusyError(
            f"{uri}: {holder} is writing to this archive; wait for it with --wait, or try again later"
        ),
        failed=lambda error: _unwritable(uri, error),
        wait=wait,
        waiting=waiting,
    )
    with lock:
        yield


def _check_own(folder: Path) -> None:
    """Refuses a folder, at a place where all users write, that is another's, or a link: what is written there would go
    where they choose."""
    found = folder.lstat()
    if hasattr(os, "getuid") and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid()):
        raise PermissionError(errno.EPERM, f"{folder} is not this user's own folder")


def _unwritable(uri: str, error: OSError) -> ArchiveError:
    return ArchiveError(f"{uri}: the archive cannot be written ({error.strerror})")
