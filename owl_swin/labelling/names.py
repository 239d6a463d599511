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
    """The names to look for: ``listed`` in every picture, and beside them those of ``captions`` in their own picture.

    ``captions`` go by the picture's name, as the run that labels it has it.
    """

    listed: tuple[LabelName, ...]
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """A name of all that is asked."""
        digest = hashlib.sha256(repr([(one.name, one.texts) for one in self.listed]).encode("utf-8", "surrogatepass"))
        for key in sorted(self.captions):
            digest.update(repr((key, list(self.captions[key]))).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:32]


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
    """The names of a text file, one a line; one that cannot be read or has none raises QueryError."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise QueryError(f"expected a file with a name on each line ({reason})", of=path) from None
    names = label_names(lines)
    if not names:
        raise QueryError("holds no name; write one on each line", of=path)
    return names
