"""Names of files as text that every store can hold, and globs over them.

A file's name is bytes. Python shows bytes that are no UTF-8 as lone surrogates, which neither Arrow nor a database
takes. In the archive such a byte is written ``\\xe9`` and a backslash is doubled, so that every name comes back whole.
"""

import fnmatch
import hashlib
import os
import re

_ESCAPE = re.compile(r"\\x([0-9a-f]{2})|\\\\")
# Surrogates that Python makes of no byte.
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def to_text(path: str) -> str:
    """A path as valid UTF-8; what stands for no byte in it, which no file's name holds, becomes a question mark."""
    text = _NO_BYTE.sub("?", path).replace("\\", "\\\\")
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def from_text(text: str) -> str:
    """The path of which ``to_text`` made the text."""
    return _ESCAPE.sub(lambda found: chr(0xDC00 + int(found[1], 16)) if found[1] else "\\", text)


def key_of(path: str, *, uploaded: bool = False) -> str:
    """The name under which the picture of a path, or an upload of that content, is known."""
    start = b"upload\0" if uploaded else b"path\0"
    return hashlib.sha256(start + os.fsencode(_NO_BYTE.sub("?", path))).hexdigest()[:32]


def is_below(path: str, folder: str) -> bool:
    """Whether a path lies in a folder or in one of its folders."""
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def glob_pattern(glob: str) -> re.Pattern[str]:
    """What a path must match in full. ``*`` crosses folders; a glob that does not begin at the root may begin at any
    folder's name, as in ``2024/*.jpg``."""
    pattern = fnmatch.translate(glob)
    return re.compile(pattern if glob.startswith(("/", "*")) else f"(?:.*/)?{pattern}", re.DOTALL)


def like_pattern(glob: str) -> str:
    """A pattern of SQL's LIKE that all texts of matching paths satisfy, and perhaps others."""
    start = "" if glob.startswith(("/", "*")) else "%"
    loose = re.sub(r"\[.*\]|[*?\\%_\[]|[^\x20-\x7e]", "%", glob)
    return re.sub("%+", "%", start + loose.replace("'", "%").replace('"', "%"))
