"""Every error that a user can cause. The command line turns each into one sentence and exit code 2.

OwlSwinError (a ValueError)
├── ConfigError       a setting that does not exist, or a value of the wrong kind
├── ImageError        a picture that cannot be read, or is too large
│   ├── AddressRefusedError   a picture at an address from which none is fetched
│   └── NotFetchedError       a picture that its host does not give
├── QueryError        a query, exemplar or threshold that means nothing
├── CheckpointError   weights that are missing, damaged, or of another model
├── DataError         a data set that cannot be read
├── ArchiveError      an archive of regions that cannot be opened, or is another model's
│   └── ArchiveBusyError  another process writes to it
└── MissingExtraError a part of the program whose optional dependency is not installed
"""

import reprlib
from itertools import islice


class OwlSwinError(ValueError):
    """Root of the errors above; its text is one sentence for a person.

    ``of`` is what it is about, a path or a place in a request, and ``reason`` the sentence without that, for who knows
    a better name for it.
    """

    def __init__(self, reason: str, *, of: object = ""):
        super().__init__(f"{of}: {reason}" if of else reason)
        self.reason, self.of = reason, of


class ConfigError(OwlSwinError):
    """A setting that does not exist, or a value of the wrong kind."""


class ImageError(OwlSwinError):
    """A picture that cannot be read, or is too large."""


class AddressRefusedError(ImageError):
    """A picture at an address from which none is fetched."""


class NotFetchedError(ImageError):
    """A picture that its host does not give."""


class QueryError(OwlSwinError):
    """A query, exemplar or threshold that means nothing."""


class CheckpointError(OwlSwinError):
    """Weights that are missing, damaged, or of another model."""


class DataError(OwlSwinError):
    """A data set that cannot be read."""


class ArchiveError(OwlSwinError):
    """An archive of regions that cannot be opened, or is another model's."""


class ArchiveBusyError(ArchiveError):
    """An archive that another process writes to."""


class MissingExtraError(OwlSwinError):
    """A part of the program whose optional dependency is not installed."""

    def __init__(self, what: str, extra: str):
        super().__init__(f"{what} needs packages that are not installed: pip install 'owl_swin[{extra}]'")
        self._made_of = what, extra

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str]]:
        """How it comes back out of another process."""
        return type(self), self._made_of


class _Short(reprlib.Repr):
    """Writes no more of lists within lists than a sentence holds: a kilobyte of YAML can stand for a billion of them,
    and a number can have more digits than Python writes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 70
        self.maxstring = self.maxlong = self.maxother = 10**9

    def repr_dict(self, x: dict, level: int) -> str:
        """A dict in its own order."""
        if level <= 0:
            return "{...}"
        pairs = (f"{self.repr1(key, level - 1)}: {self.repr1(x[key], level - 1)}" for key in islice(x, self.maxdict))
        return "{" + ", ".join([*pairs, *["..."] * (len(x) > self.maxdict)]) + "}"


def first_line(error: object) -> str:
    """The beginning of what an error says, which may be pages; one that says nothing is called by its kind."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return brief(text)[1:-1] if len(text) > 200 else text


def brief(value: object, limit: int = 200) -> str:
    """How a wrong value stands in a sentence: as Python writes it, but not the megabytes of a picture."""
    if isinstance(value, (bytes, bytearray, memoryview)) and len(value) > limit:
        return f"{len(value)} bytes"
    try:
        text = _Short().repr(value)
    except ValueError:
        text = f"{type(value).__name__} of thousands of digits"
    return text if len(text) <= limit else text[:limit] + "…"
