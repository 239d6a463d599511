"""What is looked for in a picture to be labelled: names of a list, and of its own captions."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from owl_swin.data.naming import spoken_names
from owl_swin.errors import QueryError
from owl_swin.files import read_text


@dataclass(frozen=True, slots=True)
class LabelName:
    """A class of the set to be made: what it is called, and the texts by which a teacher is asked for it."""

    name: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a teacher is asked in one picture: each text once, and for each the place of its name in ``names``."""

    names: tuple[str, ...]
    texts: tuple[str, ...]
    owners: tuple[int, ...]

    @classmethod
    def of(cls, names: Iterable[LabelName]) -> "Asked":
        """The texts of the names; one that two names share is the first one's."""
        called: list[str] = []
        owners: dict[str, int] = {}
        for name in names:
            texts = [text for text in name.texts if text not in owners]
            if texts and name.name not in called:
                owners.update(dict.fromkeys(texts, len(called)))
                called.append(name.name)
        return cls(tuple(called), tuple(owners), tuple(owners.values()))


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """The names to look for: ``listed`` in every picture, and beside them those of its captions in a picture.

    ``own`` has these by the picture's path, as the run that labels it has it.
    """

    listed: tuple[LabelName, ...] = ()
    own: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """A name of what is asked in every picture."""
        listed = repr([(one.name, one.texts) for one in self.listed])
        return hashlib.sha256(listed.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def own_names(self, picture: str) -> tuple[str, ...]:
        """The names that are asked in this picture only."""
        return tuple(self.own.get(picture, ()))

    def asked(self, picture: str) -> Asked:
        """What a teacher is asked in the picture."""
        return Asked.of([*self.listed, *(LabelName(name, (name,)) for name in self.own_names(picture))])


def label_names(lines: Iterable[str]) -> tuple[LabelName, ...]:
    """Names as a list has them, each once: "sofa, couch" is one class with two texts, as in a data set's categories."""
    found: dict[str, LabelName] = {}
    for line in lines:
        texts = spoken_names(line)
        if texts:
            name = ", ".join(texts)
            found.setdefault(name, LabelName(name, tuple(texts)))
    return tuple(found.values())


def read_label_names(path: str | Path) -> tuple[LabelName, ...]:
    """The names of a text file, as ``read_name_lines`` takes them."""
    return label_names(read_name_lines(path))


def read_name_lines(path: str | Path) -> list[str]:
    """The lines of a text file that hold names, without those that begin with #; a file that cannot be read or has none
    raises QueryError."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise QueryError(f"expected a file with a name on each line ({reason})", of=path) from None
    found = [line.strip() for line in lines if not line.lstrip().startswith("#") and spoken_names(line)]
    if not found:
        raise QueryError("holds no name; write one on each line", of=path)
    return found
