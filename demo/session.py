"""What one visitor has in a tab, which several handlers may change at the same time."""

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

S = TypeVar("S")


class Session(Generic[S]):
    """Holds a value that is never changed itself, only replaced: each handler starts from what the last one left.

    Gradio would hand every handler the value as it was when the handler began, and whoever ends last would win.
    """

    def __init__(self, value: S):
        self.value = value
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session[S]":
        """What Gradio makes of the first for each visitor."""
        return Session(self.value)

    def change(self, step: Callable[[S], S]) -> S:
        """Puts what a step makes of the value in its place. The step may take long, and is done again from the newer
        value where another handler came first; one that raises changes nothing."""
        while True:
            before = self.value
            after = step(before)
            with self._lock:
                if self.value is before:
                    self.value = after
                    return after
