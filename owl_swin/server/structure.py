"""How many values a JSON body holds, counted before any of it is read: a megabyte may hold half a million."""

from owl_swin.server.problems import Problem

WINDOW = 64 * 1024


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
