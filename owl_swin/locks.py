"""One process at a time: a lock that the kernel takes back when its process ends, however it ends."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import IO

# Seconds between two tries for a lock that another process holds.
RETRY_S = 0.2


@contextlib.contextmanager
def hold_lock(
    path: Path,
    *,
    busy: Callable[[str], Exception],
    failed: Callable[[OSError], Exception],
    wait: bool = False,
    waiting: Callable[[str], None] | None = None,
    remove: bool = False,
) -> Iterator[None]:
    """Holds the lock of a file, which is made where it is not there, and with ``remove`` is gone afterwards.

    If another process has it, waits, or without ``wait`` raises ``busy(holder)``; ``waiting`` is called once with the
    name of the process that holds it. What else goes wrong raises ``failed(error)``. A system without such locks has
    none to hold.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    while True:
        try:
            handle = open(path, "a+", opener=_open_itself)  # noqa: SIM115
        except OSError as error:
            raise failed(error) from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(path)
                if not wait:
                    raise busy(holder) from None
                if waiting is not None:
                    waiting(holder)
                    waiting = None
                sleep(RETRY_S)
                continue
            except OSError as error:
                raise failed(error) from None
            if not _is_still(path, handle):  # its last holder has removed it meanwhile
                continue
            with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk has no room for it
                handle.truncate(0)
                handle.write(f"process {os.getpid()} on {os.uname().nodename}")
                handle.flush()
            try:
                yield
            finally:
                if remove:
                    path.unlink(missing_ok=True)
            return


def _open_itself(path: str, flags: int) -> int:
    """Opens a file, and not what a link of its name leads to: what a lock says of its holder would replace that."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _holder(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip() or "another process"
    except OSError:
        return "another process"


def _is_still(path: Path, handle: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle.fileno()))
    except OSError:
        return False
