"""The one writer of files: whole or not at all, and one sentence where that cannot be.

The content goes to a new file in the folder of the old one, reaches the disk, and takes the old one's place in a single
step, so that a reader, and whoever comes after a kill or a power cut, finds the old content or the new one. A device or
a pipe, as /dev/stdout, has no place to take and is written to as it is.
"""

import difflib
import io
import itertools
import json
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from safetensors import SafetensorError, safe_open

from owl_swin.errors import OwlSwinError

if TYPE_CHECKING:
    from torch import Tensor

# A near name is looked for among so many names of a folder.
MOST_NAMES = 10_000
IMAGE_FORMS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def make_folder(folder: Path) -> None:
    """Makes a folder that output goes to; where nothing can be written, raises OwlSwinError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("not writable")
    except (OSError, ValueError) as error:
        raise OwlSwinError(f"{folder}: cannot write in this folder ({_reason(error)})") from None


def make_folder_of(path: Path, *, apart_from: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Makes the folder of a file to be written, and finds out before a long work whether it can be.

    One of the files that the work reads, ``apart_from``, would be lost: it raises OwlSwinError.
    """
    if _is_one_of(path, apart_from):
        raise OwlSwinError(f"{path}: is read here and would be written over; name another file for the output")
    with _one_sentence(path, "a file", OwlSwinError):
        if path.is_dir():
            raise IsADirectoryError("Is a directory")
        if is_special(path):
            return
    make_folder(path.parent)


def write_bytes(
    path: Path, content: bytes, *, what: str = "the file", error: type[OwlSwinError] = OwlSwinError
) -> None:
    """Writes ``content``; where that cannot be, raises ``error``, which names ``what``."""
    with _one_sentence(path, what, error):
        if is_special(path):
            path.write_bytes(content)
            return
        with _replacing(path) as part:
            part.write_bytes(content)


@contextmanager
def growing_file(path: Path, *, what: str = "the file") -> Iterator[Path]:
    """Where a file that is written bit by bit goes until it is whole, and then takes the place of ``path``.

    An error on the way leaves what was there before. What cannot be written raises OwlSwinError, which names ``what``.
    """
    if is_special(path):
        yield path
        return
    try:
        with _replacing(path) as part:
            yield part
    except OSError as error:
        raise OwlSwinError(f"{path}: cannot write {what} here ({_reason(error)})") from None


def write_text(path: Path, text: str, *, what: str = "the file", error: type[OwlSwinError] = OwlSwinError) -> None:
    """Writes ``text`` as UTF-8."""
    write_bytes(path, text.encode(), what=what, error=error)


def write_json(path: Path, value: Any, *, what: str = "the file", indent: int | None = 2) -> None:
    """Writes ``value`` as JSON that ends with a newline."""
    write_text(path, json.dumps(value, indent=indent) + "\n", what=what)


def write_image(
    path: Path, image: Image.Image, *, what: str = "the picture", quality: int = 90, comment: str = ""
) -> None:
    """Writes ``image`` in the form that the ending of ``path`` names, one of IMAGE_FORMS; JPEG and PNG can hold a
    ``comment``, which ``image_comment`` reads."""
    form = IMAGE_FORMS.get(path.suffix.lower())
    if form is None:
        raise OwlSwinError(f"{path}: the name of {what} must end in {', '.join(IMAGE_FORMS)}")
    content = io.BytesIO()
    settings: dict[str, Any] = {"quality": quality}
    if comment and form == "PNG":
        from PIL.PngImagePlugin import PngInfo

        settings["pnginfo"] = PngInfo()
        settings["pnginfo"].add_text("Comment", comment)
    elif form == "JPEG":
        settings["comment"] = comment.encode()
    with _one_sentence(path, what, OwlSwinError):  # JPEG has no sides above 65,500 pixels
        image.save(content, form, **settings)
    write_bytes(path, content.getvalue(), what=what)


def image_comment(path: Path) -> bytes:
    """The comment that ``write_image`` wrote into a JPEG or PNG; empty where there is none, or no picture."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    # Of whatever size: Image.open refuses large ones, and warns.
    with suppress(OSError, ValueError, SyntaxError, IndexError, struct.error), path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        if start.startswith(b"\xff\xd8"):
            comment = JpegImageFile(file).info.get("comment", b"")
        elif start == b"\x89PNG\r\n\x1a\n":
            comment = PngImageFile(file).info.get("Comment", b"")
        else:
            return b""
        return comment if isinstance(comment, bytes) else str(comment).encode()
    return b""


def write_safetensors(
    path: Path, tensors: "dict[str, Tensor]", metadata: Mapping[str, str], *, what: str, error: type[OwlSwinError]
) -> None:
    """Writes ``tensors``; where that cannot be, raises ``error``, which names ``what``."""
    from safetensors.torch import save, save_file  # with all of torch, which who writes no tensors does not need

    with _one_sentence(path, what, error):
        if is_special(path):
            path.write_bytes(save(tensors, dict(metadata)))
            return
        with _replacing(path) as part:
            save_file(tensors, part, metadata=dict(metadata))


def read_text(path: str | os.PathLike) -> str:
    """The text of a UTF-8 file; the byte order mark that some editors put before it is no part of it."""
    return Path(path).read_text(encoding="utf-8-sig")


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file, with or without a byte order mark; what is none raises JSONDecodeError."""
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("lists within lists, deeper than can be read", text, 0) from None


def read_safetensors(path: Path, *, error: type[OwlSwinError]) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors and metadata of a file; one that is missing, damaged or cut off raises ``error``."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    # RuntimeError is PyTorch's, which opens the file once more: it may be gone by then.
    except (OSError, ValueError, RuntimeError, SafetensorError) as reason:
        raise error(f"not a whole safetensors file ({reason})", of=path) from None


def near_name(path: str) -> str | None:
    """The file beside a path that is not there whose name is most like it."""
    folder, name = os.path.split(path)
    try:
        if not name or os.path.lexists(path):
            return None
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in itertools.islice(entries, MOST_NAMES)]
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return os.path.join(folder, near[0]) if near else None


def parse_safetensors(
    content: bytes, where: str, *, error: type[OwlSwinError]
) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors and metadata of a file's content; one that is damaged or cut off raises ``error``."""
    from safetensors.torch import load

    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, header.get("__metadata__") or {}
    except (ValueError, SafetensorError) as reason:
        raise error(f"not a whole safetensors file ({reason})", of=where) from None


def append_line(path: Path, line: str, *, what: str) -> None:
    """Adds a line to a text file; one before it that a killed process has not finished stays a line of its own."""
    with _one_sentence(path, what, OwlSwinError), path.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}")


def remove_file(path: Path, *, what: str) -> None:
    """Removes a file, which may be none; where that cannot be, raises OwlSwinError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OwlSwinError(f"{path}: cannot remove {what} of before ({_reason(error)})") from None


def remove_parts(folder: Path) -> None:
    """Removes what writers that were killed left unfinished in a folder that only this process writes to."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, what: str, own: Callable[[Path], Collection[str]], mark: str) -> Iterator[Path]:
    """A new folder that becomes ``path`` at the end; an error leaves what was there before.

    One of that name stays what it is, as where it is a mounted volume or the folder that a shell stands in, and gets
    the files. It may hold those that ``own`` names, which go, ``mark`` before all and with it what says that they
    belong together; the new one comes last. Anything else in it raises OwlSwinError, but for what a process that was
    killed has left unfinished, which goes too.
    """
    target = Path(os.path.realpath(path))
    with _one_sentence(path, what, OwlSwinError):
        if target.exists() and not target.is_dir():
            raise FileExistsError("there is a file of that name")
        there = target.is_dir()
        old = own(target) if there else ()
        held = list(target.iterdir()) if there else []
        unfinished = [entry for entry in held if entry.match(".*.part")]
        before = [entry for entry in held if entry.name in old and entry.is_file()]
        if len(unfinished) + len(before) < len(held):
            raise FileExistsError("the folder holds other files; name a new one")
        make_folder(target if there else target.parent)
        part = (target / "part" if there else target).with_name(f".{secrets.token_hex(6)}.part")
        part.mkdir()
        try:
            yield part
            for file in part.iterdir():
                _to_disk(file, os.O_RDWR)
            if there:
                _exchange(target, sorted(before, key=lambda file: file.name != mark), part, mark)
                for entry in unfinished:
                    shutil.rmtree(entry, ignore_errors=True)
            else:
                os.replace(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            _to_disk(target if there else target.parent, os.O_RDONLY)


def _exchange(target: Path, before: Sequence[Path], part: Path, mark: str) -> None:
    """Moves files ``before`` out of a folder, in order, and those of ``part`` in, ``mark`` last; back on an error."""
    aside = target / f".{secrets.token_hex(6)}.part"
    aside.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        new = sorted(part.iterdir(), key=lambda file: file.name == mark)
        for file, to in [(file, aside / file.name) for file in before] + [(file, target / file.name) for file in new]:
            os.replace(file, to)
            moved.append((file, to))
    except BaseException:
        for file, to in reversed(moved):
            with suppress(OSError):
                os.replace(to, file)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A new empty file beside ``path`` that takes its place at the end; an error leaves nothing of it."""
    target = Path(os.path.realpath(path))  # a link goes on pointing to the file
    if target.is_dir():
        raise IsADirectoryError("Is a directory")
    part = target.with_name(f".{secrets.token_hex(6)}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = (target if target.exists() else part).stat().st_mode & 0o777
        yield part
        _to_disk(part, os.O_RDWR)
        part.chmod(mode)  # safetensors makes files that only their owner can read
        os.replace(part, target)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every system lets a folder be opened
        _to_disk(target.parent, os.O_RDONLY)


def _to_disk(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _one_sentence(path: Path, what: str, error: type[OwlSwinError]) -> Iterator[None]:
    try:
        yield
    except OwlSwinError:  # which is a sentence already
        raise
    except (OSError, ValueError, SafetensorError) as reason:
        raise error(f"{path}: cannot write {what} here ({_reason(reason)})") from None


def is_special(path: Path) -> bool:
    """Whether it is a device, a pipe or a socket: what has no content of its own."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _is_one_of(path: Path, others: Iterable[str | os.PathLike[str]]) -> bool:
    """Whether a file that is there is one of the others, by whatever path."""
    if not path.is_file():
        return False
    own = path.stat()
    for other in others:
        with suppress(OSError, ValueError):
            if os.path.samestat(own, Path(other).stat()):
                return True
    return False


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
