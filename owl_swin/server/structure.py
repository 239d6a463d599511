"""How many values a JSON body holds, counted before any of it is read: a megabyte may hold half a million."""

from owl_swin.server.problems import Problem

WINDOW = 64 * 1024


def check_n_values(content: bytes, most: int) -> None:
    """Refuses JSON that opens, separates or names more than ``most`` values outside of its strings.

    Only that is looked at, and no further than it takes; what is no JSON passes here. Other threads get their turn
    after every window.
    """
    found, in_string, start = 0, False, 0
    while start < len(content):
        window = content[start : start + WINDOW]
        if (len(window) - len(window.rstrip(b"\\"))) % 2:  # the letter that the last backslash escapes belongs to it
            window = content[start : start + WINDOW + 1]
        start += len(window)
        pieces = window.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(pieces[in_string::2])
        in_string ^= len(pieces) % 2 == 0
        found += sum(outside.count(mark) for mark in (b",", b":", b"[", b"{"))
        if found > most:
            raise Problem(
                "body_too_complex", f"a JSON body has at most {most} values, keys and brackets here; send fewer at once"
            )
