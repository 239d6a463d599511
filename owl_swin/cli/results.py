"""Where the detections of a call go: to stdout or a file as they come, or at the end, or one file a picture."""

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from owl_swin.addresses import is_url
from owl_swin.cli.printing import emit, note, printable, say
from owl_swin.cli.table import table_lines
from owl_swin.errors import OwlSwinError
from owl_swin.files import append_line, make_folder, make_folder_of, read_text, write_bytes, write_image, write_text
from owl_swin.formats import CocoSet, to_csv, to_record, to_voc, to_yolo, yolo_data
from owl_swin.label_studio import to_label_studio
from owl_swin.made_here import MADE_HERE, may_be_written

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from owl_swin.detections import Detections


class Format(StrEnum):
    """Form of the output."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"
    COCO = "coco"
    LABEL_STUDIO = "label-studio"
    YOLO = "yolo"
    VOC = "voc"


# These have a place for masks, or a form of their own for them.
WITH_MASKS = (Format.JSONL, Format.COCO, Format.LABEL_STUDIO, Format.YOLO)
# These are a file a picture, in a folder that --to names.
PER_PICTURE = (Format.YOLO, Format.VOC)
# Of the 255 bytes that a file's name may have, what leaves room for a number and an ending; in drawings for more.
LONGEST_STEM, LONGEST_OF_DRAWING = 240, 220


class Results(Protocol):
    """Takes what was found picture by picture; what it holds back comes out with close(), also after Ctrl-C."""

    def add(self, name: str, found: "Detections", grid_hw: tuple[int, int] | None) -> None: ...
    def close(self) -> None: ...


class Streamed:
    """A text a picture, at once on stdout; in a file all of it at the end."""

    def __init__(
        self, form: Callable[[str, "Detections", tuple[int, int] | None], str], to: Path | None, head: str = ""
    ):
        self._form, self._to, self._head = form, to, head
        self._parts: list[str] = []

    def add(self, name: str, found: "Detections", grid_hw: tuple[int, int] | None) -> None:
        """Writes one picture's detections."""
        text, self._head = self._head + self._form(name, found, grid_hw), ""
        if self._to is None:
            emit(text)
        else:
            self._parts.append(text)

    def close(self) -> None:
        """Writes the file, or the head of an output without pictures."""
        if self._to is not None:
            _write(self._to, "".join([self._head, *self._parts]))
        elif self._head:
            emit(self._head)


class Collected:
    """One text about all pictures, at the end. ``add`` keeps what the text needs of a picture."""

    def __init__(self, add: Callable[[str, "Detections"], object], text: Callable[[], str], to: Path | None):
        self._add, self._text, self._to = add, text, to

    def add(self, name: str, found: "Detections", grid_hw: tuple[int, int] | None) -> None:
        """Keeps one picture's detections."""
        self._add(name, found)

    def close(self) -> None:
        """Writes the text."""
        if self._to is None:
            emit(self._text())
        else:
            _write(self._to, self._text())


class PerPicture:
    """A file a picture in a folder, at once. Where such files are that another hand made or corrected, which may be all
    that somebody drew, it raises OwlSwinError: they would be written over."""

    def __init__(self, form: Callable[[str, "Detections"], str], folder: Path, suffix: str):
        make_folder(folder)
        self._mark = folder.parent / f".{folder.name}-by-owl-swin"
        there = [path for path in folder.iterdir() if path.suffix == suffix and path.is_file()]
        if there and not self._mark.exists():
            raise OwlSwinError(
                f"{folder}: the {suffix} files there are not of this command and could be written over; name another "
                "folder for --to"
            )
        if not self._mark.exists():
            made = f"owl-swin detect may write over the {suffix} files of {folder.name}/ with these contents"
            write_text(self._mark, f"{made} (SHA-256):")
        self._ours = set(read_text(self._mark).split("\n")[1:]) - {""}
        if there and not self._ours:
            raise OwlSwinError(
                f"{folder}: was written by an earlier version, which kept no record of what it wrote, so that "
                "corrections could be written over; name another folder for --to"
            )
        changed = sorted(path.name for path in there if _line_of(path.name, path.read_bytes()) not in self._ours)
        if changed:
            raise OwlSwinError(
                f"{folder / changed[0]}: was changed since it was written and could be written over; name "
                "another folder for --to"
            )
        self._form, self._folder, self._suffix = form, folder, suffix
        self._names = FreeNames()

    def add(self, name: str, found: "Detections", grid_hw: tuple[int, int] | None) -> None:
        """Writes one picture's file."""
        stem = stem_of(name)
        free = self._names.take(stem)
        if free != stem:
            say(f"{name}: goes to {free}{self._suffix}, since another picture is called {stem} too")
        path, text = self._folder / f"{free}{self._suffix}", self._form(name, found)
        line = _line_of(path.name, text.encode())
        if line not in self._ours:  # said before it is done: what is written is never taken for another's
            self._ours.add(line)
            append_line(self._mark, line, what="the record of labels")
        write_text(path, text)

    def close(self) -> None:
        """Everything is written."""


def _line_of(name: str, content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {json.dumps(name)}"  # a name need not be text


def make_results(
    form: Format,
    to: Path | None,
    names: Sequence[str],
    *,
    explain: bool,
    nothing: Callable[["Detections"], str],
    model_version: str,
    label_studio_root: Path | None,
) -> Results:
    """Where detections of queries with these names go, in this form.

    ``nothing`` is what the table says of a picture without detections.
    """
    if to is not None and form not in PER_PICTURE:
        make_folder_of(to)
    match form:
        case Format.JSONL:
            return Streamed(lambda name, found, grid: json.dumps(to_record(name, found, grid_hw=grid)) + "\n", to)
        case Format.CSV:
            head = to_csv([], [])
            return Streamed(lambda name, found, _: to_csv([name], [found], header=False), to, head)
        case Format.COCO:
            data_set = CocoSet()
            return Collected(data_set.add, lambda: json.dumps(data_set.content()) + "\n", to)
        case Format.LABEL_STUDIO:
            tasks: list[dict[str, Any]] = []
            tasks_of = partial(to_label_studio, model_version=model_version, root=label_studio_root)
            return Collected(
                lambda name, found: tasks.extend(tasks_of([name], [found])), lambda: json.dumps(tasks) + "\n", to
            )
        case Format.TABLE:
            kept: list[tuple[str, Detections]] = []
            return Collected(
                lambda name, found: kept.append((name, replace(found, masks=None))),
                lambda: _table(kept, explain, nothing),
                to,
            )
    assert to is not None, "a file a picture needs a folder"
    if form is Format.VOC:
        return PerPicture(to_voc, to / "Annotations", ".xml")
    data, labels = to / "data.yaml", yolo_data(names)
    if data.is_file() and data.read_bytes() != labels.encode():
        raise OwlSwinError(
            f"{data}: numbers other names, or in another order, for the labels beside it; name another folder for --to"
        )
    per_picture = PerPicture(lambda _, found: to_yolo(found), to / "labels", ".txt")
    write_text(data, labels)
    return per_picture


def _write(path: Path, text: str) -> None:
    write_bytes(path, text.encode(errors="backslashreplace"), what="the output")  # a file's name need not be text


def _table(results: Sequence[tuple[str, "Detections"]], explain: bool, nothing: Callable[["Detections"], str]) -> str:
    rows = [
        (
            *(name, one.name, f"{one.score:.3f}"),
            *(f"{value:.0f}" for value in one.box_xyxy),
            *(str(one.query), *([str(patch)] * explain)),
        )
        for name, found in results
        for one, patch in zip(found, found.patches.tolist(), strict=True)
    ]
    head = ("picture", "label", "score", "xmin", "ymin", "xmax", "ymax", "query", *(["patch"] * explain))
    lines = [] if not rows else list(table_lines(head, rows, left=(0, 1)))
    lines += [printable(f"{name}: {nothing(found)}") for name, found in results if not len(found)]
    return "".join(f"{line}\n" for line in lines)


class Drawings:
    """Pictures with their boxes drawn in, as JPEG in a folder, named after the pictures. A drawing of before is written
    over; another picture of that name, which may be all there is of it, is not."""

    def __init__(self, folder: Path):
        make_folder(folder)
        self._folder = folder
        self._names = FreeNames()

    def save(self, source: str, image: "Image.Image", found: "Detections", maps: "Tensor | None") -> None:
        """The boxes of one picture and, beside them, a heat map for each query, of the scores [Q, h, w]."""
        from owl_swin.render import draw_detections, draw_heat_map

        stem = self._save(_cut(stem_of(source), LONGEST_OF_DRAWING), draw_detections(image, found))
        for number, scores in enumerate([] if maps is None else maps):
            self._save(f"{stem}-heat-{number + 1}", draw_heat_map(image, scores, title=found.names[number]))

    def _save(self, stem: str, drawing: "Image.Image") -> str:
        name = self._names.take(stem, lambda name: may_be_written(self._folder / f"{name}.jpg"))
        path = self._folder / f"{name}.jpg"
        write_image(path, drawing, what="the drawing", quality=92, comment=MADE_HERE)
        note(f"wrote {path}")
        return name


class FreeNames:
    """Names of files in one folder; a name that is taken gets a number.

    Names that differ in capitals or in how their letters are encoded are one, as they are on macOS and Windows.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, stem: str, is_free: Callable[[str], bool] = lambda name: True) -> str:
        """The stem, or the stem and a number; ``is_free`` says whether a name may be taken at all."""
        name, number = stem, 1
        while (key := unicodedata.normalize("NFC", name).casefold()) in self._taken or not is_free(name):
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(key)
        return name


def stem_of(source: str) -> str:
    """What a file about a picture is called."""
    if source == "-":
        return "stdin"
    # Of an address, its path: what follows may be a key that is nobody's business, and longer than a name may be.
    stem = Path(unquote(urlsplit(source).path) if is_url(source) else source).stem.replace("\0", "")
    return _cut(stem, LONGEST_STEM) or "picture"


def _cut(stem: str, n_bytes: int) -> str:
    while len(os.fsencode(stem)) > n_bytes:
        stem = stem[:-1]
    return stem
