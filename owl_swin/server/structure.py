"""How many values JSON holds, counted before any of it is read: a megabyte may hold half a million."""

import contextlib
import json

from owl_swin.errors import QueryError
from owl_swin.server.problems import Problem
from owl_swin.server.settings import ServerSettings

WINDOW = 64 * 1024
# Most values, keys and brackets in the head of a file of saved queries, which names four tensors at most. All names of
# the queries are one value of it, JSON in a text.
HEAD_VALUES = 200
# Most bytes of a character in that text, which is escaped twice.
ESCAPED_BYTES = 14


class ValueCounter:
    """Counts what opens, separates or names values outside of strings while a JSON body passes by.

    Only that is looked at; what is no JSON passes.
    """

    def __init__(self, most: int):
        self._most, self._found = most, 0
        self._in_string = False
        self._rest = b""  # a backslash whose letter has not come yet

    def write(self, data: bytes) -> None:
        """The next bytes; more values than the bound raise Problem."""
        data = self._rest + data
        ends_in_escape = (len(data) - len(data.rstrip(b"\\"))) % 2
        data, self._rest = (data[:-1], b"\\") if ends_in_escape else (data, b"")
        pieces = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(pieces[self._in_string :: 2])
        self._in_string ^= len(pieces) % 2 == 0
        self._found += sum(outside.count(mark) for mark in (b",", b":", b"[", b"{"))
        if self._found > self._most:
            detail = f"a JSON body has at most {self._most} values, keys and brackets here; send fewer at once"
            raise Problem("body_too_complex", detail)


def check_n_values(content: bytes, most: int) -> None:
    """Refuses JSON of more values than that, and looks no further than it takes.

    Other threads get their turn after every window.
    """
    counter = ValueCounter(most)
    for start in range(0, len(content), WINDOW):
        counter.write(content[start : start + WINDOW])


def check_saved(content: bytes, settings: ServerSettings) -> None:
    """Refuses saved queries whose head is not as small as that of any file within the limits, with a QueryError.

    What is no such file passes.
    """
    n_bytes = int.from_bytes(content[:8], "little")
    if n_bytes > len(content):
        return
    most = 2**20 + ESCAPED_BYTES * settings.max_queries * settings.max_query_chars
    if n_bytes > most:
        raise QueryError(f"the head of saved queries has {n_bytes} bytes, at most {most} are read")
    head = content[8 : 8 + n_bytes]
    try:
        check_n_values(head, HEAD_VALUES)
        metadata: dict[str, str] = {}
        with contextlib.suppress(ValueError, AttributeError):
            metadata = json.loads(head).get("__metadata__") or {}
        for value in metadata.values() if isinstance(metadata, dict) else ():
            check_n_values(str(value).encode("utf-8", "replace"), settings.max_json_values)
    except Problem:
        raise QueryError("saved queries hold fewer values than this file; save fewer at once") from None
