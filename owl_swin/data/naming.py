"""Names and places as data sets write them, made ready for a text encoder and a file system."""

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from owl_swin.errors import DataError
from owl_swin.files import read_text
from owl_swin.image import is_picture_name
from owl_swin.picture_files import walk

logger = logging.getLogger("owl_swin")


def spoken(name: str) -> str:
    """A name as one would say it: spaces for underscores."""
    return " ".join(name.replace("_", " ").split())


def spoken_names(text: str) -> list[str]:
    """The names in "sofa, couch", each once."""
    return list(dict.fromkeys(filter(None, (spoken(name) for name in text.split(",")))))


def read_class_names(path: str | Path, count: int, whose: str) -> list[list[str]]:
    """The names of ``count`` classes in a file, a line each: "sofa, couch"; none where the line is empty. A file that
    cannot be read or has more or fewer lines raises DataError, which says ``whose`` classes they are."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read these names ({error})") from None
    if len(lines) != count:
        raise DataError(
            f"{path}: {len(lines)} lines for {whose} of {count} classes; give each a line, if need be an empty one"
        )
    return [spoken_names(line) for line in lines]


def find_classes(wanted: Sequence[str], classes: Sequence[str], where: str | Path) -> list[int]:
    """Rows of ``classes``, each once, that the wanted names mean: the class as it is written ("sofa, couch"), else one
    of its names ("sofa"). A name of no class, or of several, raises DataError."""
    rows: list[int] = []
    for name in wanted:
        found = [row for row, own in enumerate(classes) if own == name]
        found = found or [row for row, own in enumerate(classes) if spoken(name) in spoken_names(own)]
        if not found:
            raise DataError(f"{where}: has no class {name!r}; its classes are {', '.join(classes)}")
        if len({classes[row] for row in found}) > 1:
            several = " and ".join(repr(classes[row]) for row in found)
            raise DataError(f"{where}: {name!r} is a name of {several}; give the whole name, a line each, in a file")
        rows += found
    return list(dict.fromkeys(rows))


def texts_of(value: Any) -> tuple[str, ...]:
    """The non-empty texts in a text or a list of texts; anything else has none."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def images_folder(path: Path, images: str) -> Path:
    """The folder of a set's pictures: the one given, else "images" beside the file, else the file's own."""
    if images:
        return Path(images)
    return path.parent / "images" if (path.parent / "images").is_dir() else path.parent


def place_pictures(folder: Path, names: Sequence[str]) -> list[Path]:
    """Where pictures lie in ``folder``.

    Many annotation files name them with folders that a copy of the pictures has not ("images/v1/patch8/a.jpg" in
    patch8/a.jpg), and some were written under Windows. The form under which most of some twenty are found is taken for
    all: the whole names, these without the first folders of all, the last two parts, or the last. Names that it would
    make one keep theirs whole.
    """
    some = range(0, len(names), max(1, len(names) // 20))
    best, most = list(names), sum((folder / names[i]).is_file() for i in some)
    for windows in (False, True) if most < len(some) else ():
        parts = [_parts(name, windows) for name in names]
        levels = zip(*(own[:-1] for own in parts), strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, levels))
        for form in (slice(None), *(slice(n, None) for n in range(1, shared + 1)), slice(-2, None), slice(-1, None)):
            owners = Counter(own[form] for own in set(parts))
            kept = [own if owners[own[form]] > 1 else own[form] for own in parts]
            found = sum(folder.joinpath(*kept[i]).is_file() for i in some)
            if found > most:
                best, most = ["/".join(own) for own in kept], found
    return [folder / name for name in best]


def pictures_in(folder: Path, *, deep: bool = True) -> list[Path]:
    """The picture files of a folder, in order; ``deep``: and of the folders in it, linked ones too. What a name with a
    dot in front hides is left out."""
    if deep:
        return sorted(Path(path) for path in walk(str(folder), lambda path, why: logger.warning("%s: %s", path, why)))
    return sorted(path for path in folder.iterdir() if is_picture_name(path) and not path.name.startswith("."))


def _parts(name: str, windows: bool) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/") if windows else name).parts
