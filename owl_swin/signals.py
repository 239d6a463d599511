"""Signals that ask a process to end: Ctrl-C, `kill`, a container or a cluster that stops, a terminal that closes."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

# By default these end a process with nothing said or written. Windows has no SIGHUP.
TERMINATING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(SystemExit):
    """Raised where SIGTERM or SIGHUP came, so that what is at work can close; its code is the shell's, 128 + signal."""


# What is raised when somebody asks a command to end.
STOPPED = (KeyboardInterrupt, Terminated)


@contextmanager
def raised_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise Terminated as Ctrl-C raises KeyboardInterrupt, unless they are ignored, as
    SIGHUP by `nohup`, or somebody handles them already. Only the main thread hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [sig for sig in TERMINATING if signal.getsignal(sig) is signal.SIG_DFL]
    for sig in taken:
        signal.signal(sig, _raise_once)
    try:
        yield
    finally:
        for sig in taken:
            signal.signal(sig, signal.SIG_DFL)


def _raise_once(sig: int, frame: FrameType | None) -> None:
    # `timeout` and some clusters send it twice: the second is not to disturb what closes because of the first.
    for one in TERMINATING:
        if signal.getsignal(one) is _raise_once:
            signal.signal(one, signal.SIG_IGN)
    raise Terminated(128 + sig)


@dataclass(slots=True)
class HeldSignal:
    """``number`` of the signal that came, 0 while none did; ``sentence`` is said on stderr when it comes."""

    number: int = 0
    sentence: str = ""

    def take(self, sig: int, frame: FrameType | None) -> None:
        """Notes the first signal. A second Ctrl-C does not wait; a second SIGTERM has nothing new to say, nor has
        `torchrun`, which passes on the Ctrl-C that its processes had from the terminal already."""
        if not self.number:
            self.number = sig
            if self.sentence:
                with suppress(OSError):  # printing is not safe here: the signal may have come in the middle of a print
                    os.write(2, f"{self.sentence}\n".encode())
        elif sig == self.number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt


@contextmanager
def held_signals(sentence: str = "") -> Iterator[HeldSignal]:
    """Within, a signal that asks to end is only noted; whoever works looks at ``number`` where it can stop. At the end
    the signal takes the course that it would have taken before: Ctrl-C raises KeyboardInterrupt.

    What is ignored stays so: shells start jobs in the background with Ctrl-C ignored, `nohup` ignores SIGHUP. Only the
    main thread hears signals.
    """
    held = HeldSignal(sentence=sentence)
    before = {}
    if threading.current_thread() is threading.main_thread():
        for sig in (signal.SIGINT, *TERMINATING):
            # None: a handler that is not Python's, which could not be put back
            if signal.getsignal(sig) not in (signal.SIG_IGN, None):
                before[sig] = signal.signal(sig, held.take)
    try:
        yield held
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
    if held.number:
        signal.raise_signal(held.number)


@contextmanager
def kept_signals() -> Iterator[None]:
    """Within, a library may take the signals for itself, as Ray does with SIGTERM when it starts; afterwards they are
    handled as before."""
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, *TERMINATING)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for sig, handler in before.items():
                if handler is not None:  # one that is not Python's cannot be put back
                    signal.signal(sig, handler)
