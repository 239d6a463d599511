"""What a person did wrong is told to them as a sentence, and the page stays as it was."""

import contextlib
import functools
import html
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from owl_swin import ArchiveError, CheckpointError, ImageError, OwlSwinError, QueryError

# What did not work, by the kind of the error.
TITLES = {
    ImageError: "This photo cannot be used",
    QueryError: "This cannot be looked for",
    ArchiveError: "The archive cannot do this",
    CheckpointError: "This model cannot be used",
}
FAILED = ("Something failed", "This is a fault of the program, which its log describes; please try again.")

P = ParamSpec("P")
R = TypeVar("R")


class Refused(OwlSwinError):
    """Something that cannot be done yet; ``title`` says what is missing."""

    def __init__(self, title: str, sentence: str):
        super().__init__(sentence)
        self.title = title


def refuse(title: str, sentence: str) -> None:
    """Raises Refused."""
    raise Refused(title, sentence)


def pick(items: Sequence[R], index: int) -> R:
    """The item that was clicked. A page that outlives its session may show items that are forgotten."""
    if 0 <= index < len(items):
        return items[index]
    raise Refused("Forgotten", "This page was left for too long; please start again.")


def explain(error: OwlSwinError) -> tuple[str, str]:
    """Title and sentence for a visitor, who sees the name of a file and never where it lies on the server."""
    title = getattr(error, "title", None) or next(
        (title for kind, title in TITLES.items() if isinstance(error, kind)), "That did not work"
    )
    of = str(error.of)
    name = Path(of).name if os.path.isabs(of) else of  # noqa: PTH117
    return title, f"{name}: {error.reason}" if name else error.reason


def errors_shown(function: Callable[P, R]) -> Callable[P, R]:
    """A handler whose errors appear as a notice, after which nothing on the page changes: an error that Gradio handles
    would leave its mark on photos that are quite all right."""

    @contextlib.contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except OwlSwinError as error:
            title, text = explain(error)
            gr.Warning(f"<strong>{html.escape(title)}</strong><br>{html.escape(text)}", title=title)
        except Exception:  # whatever it is, the page must say so
            logging.getLogger(__name__).exception("a handler of the demo failed")
            gr.Warning(f"<strong>{FAILED[0]}</strong><br>{FAILED[1]}", title=FAILED[0])

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
        with told():
            return function(*args, **kwargs)
        return gr.skip()

    @functools.wraps(function)
    def wrapped_steps(*args: P.args, **kwargs: P.kwargs) -> Any:
        with told():
            yield from function(*args, **kwargs)  # type: ignore[misc]

    return wrapped_steps if inspect.isgeneratorfunction(function) else wrapped
