"""Pictures with captions: webdataset tars, tables, and COCO captions."""

import csv
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from owl_swin.data.config import DataConfig
from owl_swin.data.labelled import Sample, squares
from owl_swin.data.naming import images_folder, place_pictures, texts_of
from owl_swin.errors import DataError
from owl_swin.files import read_json, read_text
from owl_swin.image import PICTURE_SUFFIXES, ImageSource

TEXT_KEYS = ("captions", "caption", "text")
SEPARATORS = (",", "\t", ";")


# Where it is, the file or its bytes, and the captions.
Captioned = tuple[str, ImageSource, tuple[str, ...]]


def read_tars(config: DataConfig, broken: list[str]) -> Iterator[Sample]:
    """The pictures of webdataset shards."""
    for shard in shards(config.path, config.split):
        yield from squares(tar_entries(shard, broken), config.size, broken)


def tar_entries(shard: Path, broken: list[str]) -> Iterator[Captioned]:
    """A shard as open_clip reads it: KEY.jpg (png, webp, …) with KEY.txt, or KEY.json with "caption" or "captions".

    The key ends at the first dot of the file's name. A shard that is cut off gives what it holds.
    """
    pictures: dict[str, bytes] = {}
    texts: dict[str, tuple[str, ...]] = {}
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                _read_member(tar, member, pictures, texts)
    except (OSError, tarfile.TarError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition(":\n")[0]
        broken.append(f"{shard}: not a whole tar file ({reason})")
    broken += [f"{shard.name} {key}: caption without a picture" for key in sorted(texts.keys() - pictures.keys())]
    for key in sorted(pictures):
        yield f"{shard.name} {key}", pictures[key], texts.get(key, ())


def tar_captions(paths: Sequence[str]) -> Iterator[str]:
    """Only the captions of webdataset shards; a shard that cannot be read to its end raises DataError."""
    for shard in (one for path in paths for one in shards(path, "train")):
        texts: dict[str, tuple[str, ...]] = {}
        try:
            with tarfile.open(shard) as tar:
                for member in tar:
                    if member.name.lower().endswith((".json", ".txt")):
                        _read_member(tar, member, {}, texts)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise DataError(f"{shard}: no shard of captions ({getattr(error, 'strerror', None) or error})") from None
        for own in texts.values():
            yield from own


def shards(path: str, split: str) -> list[Path]:
    """The tars that a folder, a tar or a pattern stands for, in order.

    Patterns know braces of numbers ("cc3m-{000..331}.tar"), * and ?, and several parts joined by "::".
    """
    if Path(path).is_dir():
        return sorted(Path(path).glob(f"{split}-*.tar")) or sorted(Path(path).glob(f"{split}*.tar"))
    found: list[Path] = []
    for part in path.split("::"):
        for one in expand_braces(part):
            found += _matching(Path(one)) if any(c in one for c in "*?[") else [Path(one)]
    return found


def _matching(pattern: Path) -> list[Path]:
    root = Path(pattern.anchor)
    return sorted(root.glob(str(pattern.relative_to(root))))


def expand_braces(pattern: str) -> list[str]:
    """ "a-{08..11}" → a-08, a-09, a-10, a-11; "{b,c}" → b, c."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = numbers.groups()
        inner = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        inner = match[1].split(",")
    start, end = pattern[: match.start()], pattern[match.end() :]
    return [start + one + rest for one in inner for rest in expand_braces(end)]


def read_csv(config: DataConfig, broken: list[str]) -> Iterator[Sample]:
    """The pictures of a table."""
    yield from squares(csv_entries(config, broken), config.size, broken)


def csv_entries(config: DataConfig, broken: list[str]) -> list[Captioned]:
    """A line a caption, with column names on top, separated by commas, tabs or semicolons; lines of one picture are
    put together."""
    path = Path(config.path)
    columns = (config.path_column, config.caption_column)
    with open(path, newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        separator = next(
            (s for s in SEPARATORS if set(columns) <= set(next(csv.reader([header], delimiter=s), []))), None
        )
        if separator is None:
            raise DataError(
                f"{path}: its first line names no columns {columns[0]!r} and {columns[1]!r}; "
                f"set data.path_column and data.caption_column (it is {header.strip()[:80]!r})"
            )
        file.seek(0)
        rows = _rows(file, separator, broken)
    return _table(rows, config, broken)


def _rows(file: TextIO, separator: str, broken: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Each row by the names of its columns, and where it stands. Of a table whose quotes do not pair, as in captions
    that no program of tables wrote, each line is a row, and a quote in it a sign like others."""
    for strict in (True, False):
        file.seek(0)
        table = csv.DictReader(file, delimiter=separator, strict=strict)
        try:
            read = [(f"line {table.line_num}", row) for row in table]
        except csv.Error:
            continue
        whole = strict or all(None not in row and None not in row.values() for _, row in read)
        if whole and not any(_holds_rows(row, separator) for _, row in read):
            return read
    file.seek(0)
    columns = _fields(file.readline(), separator)
    rows = []
    for number, line in enumerate(file, start=2):
        fields = _fields(line, separator)
        if len(fields) == len(columns):
            rows.append((f"line {number}", dict(zip(columns, fields, strict=True))))
        elif line.strip():
            broken.append(f"line {number}: has {len(fields)} columns of {len(columns)}")
    return rows


def _holds_rows(row: dict[str, Any], separator: str) -> bool:
    """Whether a field has taken in lines that are rows themselves, between two quotes of different captions. Only tabs
    tell: commas stand in captions too."""
    texts = [value for value in row.values() if isinstance(value, str)]
    return separator == "\t" and any(line.count("\t") for value in texts for line in value.split("\n")[1:])


def _fields(line: str, separator: str) -> list[str]:
    line = line.removesuffix("\n").removesuffix("\r")
    try:
        return next(csv.reader([line], delimiter=separator, strict=True), [])
    except csv.Error:
        return line.split(separator)


def read_jsonl(config: DataConfig, broken: list[str]) -> Iterator[Sample]:
    """The pictures of a file with an object on each line."""
    yield from squares(jsonl_entries(config, broken), config.size, broken)


def jsonl_entries(config: DataConfig, broken: list[str]) -> list[Captioned]:
    """A JSON object a line, with a picture's path and a caption or a list of them."""
    rows = []
    # No other break of lines than these: JSON allows the rest inside of texts.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", read_text(config.path)), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            row = None
            broken.append(f"line {number}: not a JSON object ({error})")
        if isinstance(row, dict):
            rows.append((f"line {number}", row))
        elif row is not None:
            broken.append(f"line {number}: not a JSON object ({line[:40]})")
    return _table(rows, config, broken)


def read_coco_captions(config: DataConfig, broken: list[str]) -> Iterator[Sample]:
    """The pictures of a COCO captions file."""
    path = Path(config.path)
    entries = coco_caption_entries(path, images_folder(path, config.images), broken)
    yield from squares(entries, config.size, broken)


def coco_caption_entries(path: Path, images: Path, broken: list[str]) -> list[Captioned]:
    """COCO captions: "images", and "annotations" with ``image_id`` and ``caption``. Pictures lie in ``images``."""
    data = read_json(path)
    texts: dict[Any, list[str]] = {}
    names: dict[Any, str] = {}
    for place, record in enumerate(data["images"], start=1):
        if isinstance(record, dict) and "id" in record and texts_of(record.get("file_name")):
            names[record["id"]] = record["file_name"]
        else:
            broken.append(f"image record number {place}: has no id or file_name")
    for place, annotation in enumerate(data["annotations"], start=1):
        known: dict[str, Any] = annotation if isinstance(annotation, dict) else {}
        text, image_id = texts_of(known.get("caption")), known.get("image_id")
        if not text or image_id not in names:
            broken.append(f"annotation number {place}: {'unknown picture' if text else 'has no caption'} {image_id}")
            continue
        texts.setdefault(image_id, []).append(text[0])
    sources = place_pictures(images, list(names.values()))
    return [
        (name, source, tuple(dict.fromkeys(texts.get(image_id, ()))))
        for source, (image_id, name) in zip(sources, names.items(), strict=True)
    ]


def _table(rows: list[tuple[str, dict[str, Any]]], config: DataConfig, broken: list[str]) -> list[Captioned]:
    """The rows of a table put together, one entry a picture."""
    texts: dict[str, list[str]] = {}
    for where, row in rows:
        name, text = texts_of(row.get(config.path_column)), texts_of(row.get(config.caption_column))
        if name and text and set(text) <= set(texts.get(name[0], ())):
            broken.append(f"{where}: given twice")
        elif name and text:
            texts.setdefault(name[0], []).extend(text)
        else:
            broken.append(f"{where}: has no {config.caption_column if name else config.path_column}")
    folder = Path(config.images) if config.images else Path(config.path).parent
    return [(name, folder / name, tuple(own)) for name, own in texts.items()]


def _read_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, pictures: dict[str, bytes], texts: dict[str, tuple[str, ...]]
) -> None:
    folder, _, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
    file = tar.extractfile(member) if member.isfile() and stem else None
    if file is None:
        return
    if f".{extension}" in PICTURE_SUFFIXES:
        pictures[key] = file.read()
    elif extension == "txt":
        texts[key] = texts.get(key) or texts_of(file.read().decode("utf-8-sig", "replace"))
    elif extension == "json":
        try:
            content = json.loads(file.read())
        except ValueError:
            content = None  # the picture is then one without a text, and noted so
        values = [content.get(k) for k in TEXT_KEYS] if isinstance(content, dict) else []
        texts[key] = next((texts_of(value) for value in values if texts_of(value)), texts.get(key, ()))
