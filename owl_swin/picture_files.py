"""Picture files below a folder, by one walk for sets, archives and the command line."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from owl_swin.image import is_picture_name


def walk(folder: str, failed: Callable[[str, str], None]) -> Iterator[str]:
    """Paths of the picture files below a folder, in an order that stays the same.

    Names that begin with a dot are passed over. Links to folders are followed after everything else, each folder is
    entered once: so circles of links end. ``failed(path, reason)`` is called for what cannot be read.
    """
    entered: set[tuple[int, int]] = set()
    links: list[str] = []
    folders = [folder]
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        try:
            where = Path(current).stat()
            if (where.st_dev, where.st_ino) in entered:
                continue
            entered.add((where.st_dev, where.st_ino))
            files, below, linked = _entries(current)
        except OSError as error:
            failed(current, f"cannot read this folder ({error.strerror})")
            continue
        folders += reversed(below)
        links = sorted(links + linked)
        yield from files


def _entries(folder: str) -> tuple[list[str], list[str], list[str]]:
    """Paths of picture files, folders, and links to folders right in a folder, sorted."""
    files: list[str] = []
    below: list[str] = []
    linked: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_picture_name(entry.name) and not _is_folder(entry):
                files.append(entry.path)
            elif _is_folder(entry):
                (linked if entry.is_symlink() else below).append(entry.path)
    return sorted(files), sorted(below), sorted(linked)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
