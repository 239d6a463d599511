"""The pictures that a command line names: files, folders, patterns, stdin, and addresses where they are allowed."""

import glob
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from owl_swin.addresses import is_url
from owl_swin.cli.printing import say
from owl_swin.errors import ImageError, OwlSwinError
from owl_swin.fetching import fetch
from owl_swin.files import image_comment, is_special, near_name
from owl_swin.image import MAX_PIXELS, file_content, is_picture_name, open_image
from owl_swin.made_here import MADE_HERE
from owl_swin.picture_files import walk
from owl_swin.video_source import is_video, shown_source

if TYPE_CHECKING:
    from owl_swin.detections import Detections

STDIN = "-"
# Longest side of the drawing of a picture that is too large to be decoded whole.
DRAWN = 4096
# Of a picture on the internet.
MOST_BYTES, FETCH_TIMEOUT_S, REDIRECTS = 100 * 2**20, 30.0, 5


def find_pictures(arguments: Sequence[str], *, allow_url: bool = False) -> list[str]:
    """The pictures that the arguments name, in their order.

    A folder stands for the picture files in it, by name, then those of the folders in it; names that begin with a dot
    are passed over. A pattern such as "2024/**/*.jpg", where the shell has left one, stands for the picture files that
    fit, by name. An argument that stands for no picture raises ImageError.
    """
    found: list[str] = []
    for argument in arguments:
        if is_url(argument) or ("://" in argument and is_video(argument)):
            _check_allowed(shown_source(argument), allow_url)
            found.append(argument)
        else:
            found += _pictures_of(argument)
    check_stdin_once(found)
    return found


def find_picture_files(arguments: Sequence[str]) -> list[str]:
    """As find_pictures, for what names its pictures by their files: neither stdin nor an address is one, and where no
    file is there, that is said before a model is loaded."""
    for argument in arguments:
        if argument == STDIN or is_url(argument):
            raise ImageError(f"{argument}: expected pictures that are files; give folders, patterns or files")
    found = find_pictures(arguments)
    if not any(os.path.lexists(source) for source in found):
        raise named(ImageError("no such file or folder", of=found[0]), found[0])
    return found


def open_picture(source: str, *, allow_url: bool = False) -> Image.Image:
    """The picture of a path, of stdin for "-", or of an http(s) address where ``allow_url`` permits that."""
    try:
        return open_image(picture_file(source, allow_url=allow_url))
    except ImageError as error:
        raise named(error, source) from None


def without_drawings(sources: Sequence[str], arguments: Sequence[str], folder: Path | None) -> list[str]:
    """The pictures without those that an earlier call drew into ``folder``, the one for drawings, where that lies in a
    folder or fits a pattern among the arguments; a drawing that is itself an argument stays."""
    if folder is None or not folder.is_dir():
        return list(sources)
    own = folder.resolve()

    def is_drawing(source: str) -> bool:
        path = Path(source)
        return source not in arguments and path.parent.resolve() == own and image_comment(path) == MADE_HERE.encode()

    kept = [source for source in sources if not is_drawing(source)]
    if not kept:
        raise ImageError(f"{folder}: holds nothing but what an earlier call drew; name other pictures")
    if left := len(sources) - len(kept):
        say(f"{left} of {len(sources)} pictures left out: an earlier call drew them into {folder}")
    return kept


def check_stdin_once(sources: Sequence[str]) -> None:
    """Refuses more than one picture that is to come on stdin."""
    if sources.count(STDIN) > 1:
        raise ImageError("- stands for the picture on stdin, which can be read once")


def picture_file(source: str, *, allow_url: bool = False) -> str | bytes:
    """The path of a file, or the bytes of stdin or of an http(s) address."""
    if source == STDIN:
        content = file_content(sys.stdin.buffer) if sys.stdin is not None else b""
        if not content:
            raise ImageError("nothing came in on stdin; send a picture there, as in `owl-swin detect - < photo.jpg`")
        return content
    if not is_url(source):
        return file_content(source) if is_special(Path(source)) else source  # a pipe can be read once
    _check_allowed(source, allow_url)
    return fetch(source, None, max_bytes=MOST_BYTES, timeout_s=FETCH_TIMEOUT_S, redirects=REDIRECTS)


def named(error: ImageError, source: str) -> ImageError:
    """The error about what stands on the command line, and the file that is probably meant."""
    if source == STDIN or error.of == "picture":  # which bytes are called that have no name of their own
        return ImageError(error.reason, of=source)
    if is_url(source):
        return error if str(error).startswith(source) else ImageError(f"{source}: {error}")
    near = near_name(source)
    return ImageError(f"{error}; did you mean {near}?") if near else error


def reduced(source: str | bytes, found: "Detections") -> "tuple[Image.Image, Detections]":
    """A picture of any size for a drawing, and what was found in its own pixels: a huge one has DRAWN pixels a side."""
    from owl_swin.huge import open_parts

    with open_parts(source) as parts:
        small = parts.reduced(max(parts.image_hw) if math.prod(parts.image_hw) <= MAX_PIXELS else DRAWN)
    return small, found.scaled_to((small.height, small.width))


def check_apart(sources: Sequence[str], folder: Path) -> None:
    """A drawing has the name of its picture, so in the same folder it would take the picture's place."""
    if not folder.is_dir():
        return
    of_folder = {Path(source).parent: source for source in sources if source != STDIN and not is_url(source)}
    for beside, source in of_folder.items():
        if beside.is_dir() and beside.samefile(folder):
            raise OwlSwinError(f"{source}: lies in the folder of --save and could be overwritten; name another folder")


def _check_allowed(address: str, allow_url: bool) -> None:
    if not allow_url:
        raise ImageError(f"{address}: pictures and videos are fetched from other machines with --allow-url only")


def _pictures_of(argument: str) -> list[str]:
    if argument == STDIN:
        return [argument]
    if not argument:
        raise ImageError("expected a picture, a folder or a pattern, got an empty name")
    if os.path.isdir(argument):
        pictures = _without_special(walk(argument, lambda path, reason: say(f"{path}: {reason}")))
        if not pictures:
            raise ImageError(f"{argument}: there is no picture in this folder")
        return pictures
    if glob.has_magic(argument) and not os.path.lexists(argument):
        names = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207
        fits = is_video if is_video(argument) else is_picture_name
        pictures = _once(name for name in names if fits(name) and Path(name).is_file())
        if not pictures:
            raise ImageError(f"{argument}: no {'video' if is_video(argument) else 'picture'} fits this pattern")
        return pictures
    return [argument]


def _without_special(paths: Iterable[str]) -> list[str]:
    """The paths of a folder without pipes and devices, which only somebody who names one means: they may never end."""
    files: list[str] = []
    for path in paths:
        if is_special(Path(path)):
            say(f"{path}: is no file")
        else:
            files.append(path)
    return files


def _once(names: Iterable[str]) -> list[str]:
    """The files without those that a link to a folder, which may be a circle, leads to again; the shortest name of
    each stays."""
    shortest: dict[str, str] = {}
    for name in names:
        folder, file = os.path.split(name)
        place = os.path.join(os.path.realpath(folder), file)
        if place not in shortest or name.count(os.sep) < shortest[place].count(os.sep):
            shortest[place] = name
    return sorted(shortest.values())
