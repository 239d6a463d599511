"""The journal of a labelling run: a line a picture, so that whatever ends the run, no answer has to be given twice."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from owl_swin.errors import DataError
from owl_swin.files import write_bytes

VERSION = 1


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """What was found in one picture: for each box its name, score, and xyxy in pixels of the upright picture.

    ``image`` is the picture's path, ``stamp`` changes when its file does, and ``asked`` are the names that were looked
    for beside those of the run's list.
    """

    image: str
    stamp: str
    width: int
    height: int
    names: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    asked: tuple[str, ...] = ()

    @classmethod
    def of_json(cls, value: Any) -> "LabelledPicture":
        """What a line holds; ValueError, TypeError or KeyError where it is none."""
        boxes = tuple(tuple(float(side) for side in box) for box in value["boxes"])
        names, scores = tuple(map(str, value["names"])), tuple(map(float, value["scores"]))
        if not len(boxes) == len(names) == len(scores) or any(len(box) != 4 for box in boxes):
            raise ValueError("not a name, a score and four sides for each box")
        size = int(value["width"]), int(value["height"])
        return cls(str(value["image"]), str(value["stamp"]), *size, names, scores, boxes, tuple(value["asked"]))


class Journal:
    """The journal beside an output file, open for more; one use, by who holds the run's lock."""

    def __init__(self, path: Path, output: Path, settings: Mapping[str, Any]):
        """Goes on with the journal at ``path``, or begins it.

        A journal of other ``settings`` is begun anew if its run has come to its end, or has found nothing; else
        DataError says what differs.
        So does an output that was not written by a run of this journal: nobody's work is overwritten.
        """
        self.path = path
        self.pictures: dict[str, LabelledPicture] = {}
        self._replaced = ""  # digest of the output that was there when the journal was begun
        self._written: list[str] = []  # digests of its own outputs, the last one last
        head, end = self._read()
        there = _digest(output) if output.exists() else None
        own = [digest for digest in (self._replaced, *self._written) if digest]
        if there is not None and there not in own:
            why = "was changed since it was written" if own else "is there already, and not from a run to go on with"
            raise DataError(f"{output}: {why}; name another file, or take it away")
        worth = any(picture.scores for picture in self.pictures.values()) and there not in self._written[-1:]
        if head is not None and head != dict(settings) and worth:
            raise DataError(
                f"{path}: holds {len(self.pictures)} pictures of a run with other settings "
                f"({_difference(head, settings)}); finish that run, take the journal away, or name another file"
            )
        if head != dict(settings):
            self.pictures = {}
            begin = _line({"journal": VERSION, "settings": dict(settings)})
            begin += b"" if there is None else _line({"replaces": there})
            write_bytes(path, begin, what="the journal", error=DataError)
            end = len(begin)
        with self._sentence():
            self._file: IO[bytes] = open(path, "r+b")  # noqa: SIM115
            self._file.truncate(end)  # a line that a kill has cut off
            self._file.seek(end)

    def add(self, picture: LabelledPicture) -> None:
        """Keeps one picture's labels."""
        self.pictures[picture.image] = picture
        self._write(asdict(picture))

    def to_disk(self) -> None:
        """What was added so far outlives a power cut too."""
        with self._sentence():
            os.fsync(self._file.fileno())

    def will_write(self, digest: str) -> None:
        """Notes that the output is about to be one of this digest."""
        self._write({"writes": digest})

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _read(self) -> tuple[dict[str, Any] | None, int]:
        """Settings of the journal that is there, and where its last whole line ends."""
        if not self.path.exists():
            return None, 0
        with self._sentence():
            content = self.path.read_bytes()
        head, end = None, 0
        try:
            for line in content.split(b"\n")[:-1]:  # what stands behind the last line break was cut off
                value = json.loads(line)
                if head is None:
                    if value["journal"] != VERSION:
                        raise ValueError(f"version {value['journal']}")
                    head = dict(value["settings"])
                elif "replaces" in value:
                    self._replaced = value["replaces"]
                elif "writes" in value:
                    self._written.append(value["writes"])
                else:
                    picture = LabelledPicture.of_json(value)
                    self.pictures[picture.image] = picture
                end += len(line) + 1
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.path}: not a journal of this command (problem with {error}); take it away, or name "
                "another file for the labels"
            ) from None
        return head, end

    def _write(self, value: Mapping[str, Any]) -> None:
        with self._sentence():
            self._file.write(_line(value))
            self._file.flush()

    @contextlib.contextmanager
    def _sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self.path}: the journal cannot be written ({error.strerror})") from None


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first setting that differs."""
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"{key}: {_short(old.get(key))} there, {_short(new.get(key))} here"
    return "none"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "…"


def digest_of(content: bytes) -> str:
    """A name of an output's content."""
    return hashlib.sha256(content).hexdigest()[:32]


def _digest(path: Path) -> str:
    try:
        if not path.is_file():
            raise DataError(f"{path}: the labels need a file of their own, and this is none")
        return digest_of(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
