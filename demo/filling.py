"""An archive of a visitor's own, and how photos come into it."""

import html
import importlib.util
import os
import queue
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from owl_swin import ArchiveError, Detector, ImageError, IndexProgress, RegionIndex
from owl_swin.demo.pieces import Upload
from owl_swin.demo.running import Stopped

# What the archives of all visitors have on disk together; beyond it nothing is added.
MOST_BYTES = 8 * 2**30
# Uploads are handed to the archive so many at a time, so that the bar moves.
BATCH = 8
PICTURES = [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"]


@dataclass(frozen=True, slots=True)
class Archive:
    """An open archive; ``folder`` is the temporary one that a visitor's own archive lives in and dies with."""

    index: RegionIndex
    folder: tempfile.TemporaryDirectory | None = None

    @classmethod
    def own(cls, detector: Detector) -> "Archive":
        """An empty archive of one visitor."""
        folder = tempfile.TemporaryDirectory(prefix="owl_swin-", ignore_cleanup_errors=True)
        FOLDERS.add(folder)
        return cls(RegionIndex.open(Path(folder.name, "archive.lance"), detector, create=True), folder)

    def shown_path(self, path: str) -> str:
        """The path of a photo as visitors see it: from the folder on that all photos of the archive lie in."""
        n_images = self.index.stats().n_images
        known = ROOTS.get(self.index)
        if known is None or known[0] != n_images:
            known = ROOTS[self.index] = (n_images, self.index.common_folder())
        return path.removeprefix(known[1]).lstrip(os.sep) if known[1] else path


# The folders of all archives that visitors have now.
FOLDERS: weakref.WeakSet[tempfile.TemporaryDirectory] = weakref.WeakSet()
# Of each archive, how many photos it had when the folder that all of them lie in was looked up, and that folder.
ROOTS: weakref.WeakKeyDictionary[RegionIndex, tuple[int, str]] = weakref.WeakKeyDictionary()


def check_room(n_bytes: int) -> None:
    """ImageError where the archives of all visitors have no room for so many bytes more."""
    files = [path for folder in list(FOLDERS) for path in Path(folder.name).rglob("*")]
    if sum(path.stat().st_size for path in files if path.is_file()) + n_bytes > MOST_BYTES:
        raise ImageError("the archives of all visitors are full; search in what is there, or come again later")


def installed() -> bool:
    """Whether the packages of the extra are there."""
    return all(importlib.util.find_spec(name) for name in ("lancedb", "pyarrow"))


def bar(done: int, total: int, text: str) -> str:
    """A progress bar and a text below it, as HTML."""
    share = round(100 * done / total) if total else 0
    return (
        '<div class="owl-progress" role="progressbar" aria-label="Photos added" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share}">'
        f'<i style="width:{share}%"></i></div><p class="owl-hint">{html.escape(text)}</p>'
    )


def progress_text(progress: IndexProgress) -> str:
    """Rate and time left in words, under a bar."""
    left = "" if progress.seconds_left is None else f", about {progress.seconds_left:.0f} s left"
    return bar(
        progress.done,
        progress.total,
        f"{progress.done} of {progress.total} photos, {progress.regions} regions, {progress.rate:.1f} a second{left}",
    )


def named_folder(text: str) -> Path:
    """The folder that a field names; an empty one raises ArchiveError: it would be the one this started in."""
    if not text.strip():
        raise ArchiveError("write the path of a folder of this machine into the field first")
    return Path(text.strip()).expanduser()


def index_folder(archive: Archive, folder: Path, stop: threading.Event) -> Iterator[str]:
    """Indexes a folder of this machine, telling how far it is; what was done when it is stopped is kept."""
    news: queue.Queue[IndexProgress | Exception | None] = queue.Queue()

    def tell(progress: IndexProgress) -> None:
        if stop.is_set():
            raise Stopped
        news.put(progress)

    def work() -> None:
        try:
            archive.index.add_folder(folder, progress=tell)
            news.put(None)
        except Exception as error:  # whatever it is, the page must say so
            news.put(error)

    threading.Thread(target=work, daemon=True).start()
    last: IndexProgress | None = None
    try:
        while (item := news.get()) is not None:
            if isinstance(item, Stopped):
                yield stopped_text(last.done if last else 0, last.total if last else 0)
                return
            if isinstance(item, Exception):
                raise item
            last = item
            yield progress_text(item)
    finally:
        stop.set()  # also where nobody waits any more


def stopped_text(done: int, total: int) -> str:
    """What a stopped run says."""
    return bar(done, total, f"Stopped after {done} of {total} photos; these are kept.")


def pictures_of(uploads: Sequence[Upload]) -> list[Upload]:
    """The pictures by name among uploaded files; ImageError if there is none."""
    pictures = [one for one in uploads if Path(one.name).suffix.lower() in PICTURES]
    if not pictures:
        raise ImageError("there is no picture among these files (JPEG, PNG, WebP, GIF, BMP or TIFF)")
    return pictures


def index_files(archive: Archive, pictures: Sequence[Upload], stop: threading.Event) -> Iterator[str]:
    """Indexes uploaded photos, which the archive keeps, telling how far it is; broken ones are left out and counted."""
    regions, skipped = 0, []
    for start in range(0, len(pictures), BATCH):
        if stop.is_set():
            yield stopped_text(start, len(pictures))
            return
        batch = pictures[start : start + BATCH]
        if archive.folder is not None:
            check_room(sum(Path(one.path).stat().st_size for one in batch))
        report = archive.index.add_images([(one.name, Path(one.path).read_bytes()) for one in batch])
        regions += report.regions
        skipped += [name for name, _ in report.skipped]
        done = start + len(batch)
        yield bar(done, len(pictures), f"{done} of {len(pictures)} photos, {regions} regions{_broken(skipped)}")


def _broken(names: Sequence[str]) -> str:
    """Which files could not be read."""
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return f", {len(names)} could not be read: {shown}"


def stats_text(archive: Archive | None) -> str:
    """What is in the archive, in a sentence."""
    if archive is None:
        return "No photos yet."
    stats = archive.index.stats()
    return f"**{stats.n_images} photos** and {stats.n_regions} regions are ready to be searched."
