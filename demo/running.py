"""Long works of visitors, each of which its "Stop" ends, and the files that they make."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from owl_swin.demo.refusals import Refused

# Long works of all visitors that run at once, of each kind: else each would wait for all before it.
AT_ONCE: dict[str, Any] = {"concurrency_limit": 4}


class Stopped(Exception):
    """Somebody pressed "Stop"."""


class Run(threading.Event):
    """One work, which is to stop when it is set; of one that is ``let_go`` nothing is to be shown any more."""

    let_go = False


class Runs:
    """One kind of work, which each visitor has at most once at a time."""

    def __init__(self, what: str):
        self._what = what
        self._running: dict[str, Run] = {}
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def begun(self, request: gr.Request, *, wait: bool = False) -> Iterator[Run]:
        """Within it the work runs; the event says that it is to stop. While the last one still runs it is refused, or
        waits for it."""
        visitor = str(request.session_hash)
        with self._changed:
            while visitor in self._running:
                if not wait:
                    raise Refused(self._what, "Wait until this is done, or stop it first.")
                self._changed.wait()
            stop = self._running[visitor] = Run()
        try:
            yield stop
        finally:
            with self._changed:
                if self._running.get(visitor) is stop:
                    del self._running[visitor]
                self._changed.notify_all()

    def stop(self, request: gr.Request) -> None:
        """The end of a visitor's work, if there is one."""
        if (stop := self._running.get(str(request.session_hash))) is not None:
            stop.set()

    def let_go(self, request: gr.Request) -> None:
        """The end of a visitor's work, if there is one, of which nobody waits for anything: another may begin."""
        with self._changed:
            stop = self._running.pop(str(request.session_hash), None)
            self._changed.notify_all()
        if stop is not None:
            stop.let_go = True
            stop.set()


def made_folder() -> tempfile.TemporaryDirectory:
    """A folder for files that a visitor fetches, among Gradio's own, which lives as long as somebody holds it."""
    return tempfile.TemporaryDirectory(
        prefix="made-", dir=os.environ.get("GRADIO_TEMP_DIR"), ignore_cleanup_errors=True
    )


def as_file(path: str | Path, name: str = "") -> dict[str, Any]:
    """A file within the value of a piece, to which Gradio adds the address under which it serves it."""
    return {"path": str(path), "orig_name": name or Path(path).name, "meta": {"_type": "gradio.FileData"}}
