"""One writer an archive: a lock that the kernel takes back when its process ends, however it ends."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep

from owl_swin.errors import ArchiveBusyError, ArchiveError

# Seconds between two tries for a lock that another process holds.
RETRY_S = 0.2


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
    try:
        import fcntl
    except ImportError:  # no such lock on this system
        yield
        return
    path = lock_file(uri)
    try:
        path.parent.mkdir(mode=0o700 if "://" in uri else 0o777, parents=True, exist_ok=True)
        handle = open(path, "a+")  # noqa: SIM115
    except OSError as error:
        raise ArchiveError(f"{uri}: the archive cannot be written ({error.strerror})") from None
    with handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = _holder(path)
                if not wait:
                    raise ArchiveBusyError(
                        f"{uri}: {holder} is writing to this archive; wait for it with --wait, or try again later"
                    ) from None
                if waiting is not None:
                    waiting(holder)
                    waiting = None
                sleep(RETRY_S)
            except OSError as error:
                raise ArchiveError(f"{uri}: the archive cannot be locked ({error.strerror})") from None
        with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk has no room for it
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {os.uname().nodename}")
            handle.flush()
        yield


def _holder(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip() or "another process"
    except OSError:
        return "another process"
