"""What commands print: results on stdout, sentences on stderr, one line each whatever a name holds."""

import errno
import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from owl_swin.errors import OwlSwinError
from owl_swin.signals import STOPPED

# Seconds between two lines of progress where stderr is no terminal.
LINE_S = 10.0


class Closed(io.TextIOBase):
    """A stdout that was closed before the program began, as by `>&-`: what is written to it is not lost in silence."""

    def write(self, text: str) -> int:
        """Refuses."""
        raise OSError(errno.EBADF, "stdout is closed")


def open_streams() -> None:
    """Puts something in the place of streams that were closed: Python has None there, to which no module can write."""
    if sys.stdout is None:
        sys.stdout = Closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def printable(text: str) -> str:
    """The text on one line: line breaks and control characters as escapes, so that no name can forge a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """One line on stderr."""
    with suppress(OSError):  # a full disk below stderr leaves nowhere to say it
        print(printable(text), file=sys.stderr, flush=True)


def say(sentence: str) -> None:
    """One line on stderr, after the program's name: what went wrong, or what to know."""
    note(f"owl-swin: {sentence}")


@contextmanager
def said_when_stopped(sentence: str) -> Iterator[None]:
    """Says what is left when Ctrl-C or SIGTERM ends the work within; of the processes of `torchrun` the first does."""
    try:
        yield
    except STOPPED:
        if os.environ.get("RANK", "0") == "0":
            say(sentence)
        raise


def emit(text: str) -> None:
    """Results on stdout, at once. Where they cannot be written, raises OwlSwinError."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # the reader has gone, as with `| head`
        drop_stdout()
        raise SystemExit(0) from None
    except OSError as error:
        drop_stdout()
        raise OwlSwinError(f"the output cannot be written ({error.strerror})") from None


def emit_line(text: str) -> None:
    """One line on stdout, whatever a name in it holds."""
    emit(printable(text) + "\n")


def drop_stdout() -> None:
    """Lets what is left in the buffer of stdout go nowhere, since Python writes it once more when it ends."""
    with suppress(OSError, ValueError):  # a stdout that is no file has no buffer to be written at the end
        stdout = sys.stdout.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)


class OneLine(logging.Formatter):
    """Log messages as `say` prints sentences."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message without line breaks."""
        return printable(super().formatMessage(record))


class Progress:
    """How far a command has come with its pictures: a bar on a terminal, else a line now and then, all on stderr."""

    def __init__(self, total: int, *, with_bar: bool = True):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._total, self._tty = total, sys.stderr.isatty()
        columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(
            *columns,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # it would send results to stderr
            disable=not (self._tty and with_bar),
        )
        self._task = self._bar.add_task("pictures", total=total)
        self._line = time.monotonic()

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int) -> None:
        """Shows that so many are done."""
        self._bar.update(self._task, completed=done)
        if not self._tty and time.monotonic() - self._line > LINE_S:
            self._line = time.monotonic()
            say(f"{done} of {self._total} pictures")
