"""An archive of a visitor's own, and how photos come into it."""

import importlib.util
import queue
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from owl_swin import Detector, ImageError, IndexProgress, RegionIndex

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


# The folders of all archives that visitors have now.
FOLDERS: weakref.WeakSet[tempfile.TemporaryDirectory] = weakref.WeakSet()


def check_room(n_bytes: int) -> None:
    """ImageError where the archives of all visitors have no room for so many bytes more."""
    files = [path for folder in list(FOLDERS) for path in Path(folder.name).rglob("*")]
    if sum(path.stat().st_size for path in files if path.is_file()) + n_bytes > MOST_BYTES:
        raise ImageError("the archives of all visitors are full; search in what is there, or come again later")


def installed() -> bool:
    """Whether the packages of the extra are there."""
    return all(importlib.util.find_spec(name) for name in ("lancedb", "pyarrow"))


def bar(done: int, total: int, text: str) -> str:
    """A progress bar, as HTML."""
    share = round(100 * done / total) if total else 0
    return (
        f'<div class="owl-progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share}">'
        f'<i style="width:{share}%"></i></div><p class="owl-hint">{text}</p>'
    )


def progress_text(progress: IndexProgress) -> str:
    """Rate and time left in words, under a bar."""
    left = "" if progress.seconds_left is None else f", about {progress.seconds_left:.0f} s left"
    return bar(
        progress.done,
        progress.total,
        f"{progress.done} of {progress.total} photos, {progress.regions} regions, {progress.rate:.1f} a second{left}",
    )


def index_folder(archive: Archive, folder: str) -> Iterator[str]:
    """Indexes a folder of this machine, telling how far it is."""
    news: queue.Queue[IndexProgress | Exception | None] = queue.Queue()

    def work() -> None:
        try:
            archive.index.add_folder(folder, progress=news.put)
            news.put(None)
        except Exception as error:  # whatever it is, the page must say so
            news.put(error)

    threading.Thread(target=work, daemon=True).start()
    while (item := news.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield progress_text(item)


def pictures_of(paths: Sequence[str | Path]) -> list[Path]:
    """The pictures by name among uploaded files; ImageError if there is none."""
    pictures = [Path(path) for path in paths if Path(path).suffix.lower() in PICTURES]
    if not pictures:
        raise ImageError("there is no picture among these files (JPEG, PNG, WebP, GIF, BMP or TIFF)")
    return pictures


def index_files(archive: Archive, pictures: Sequence[Path]) -> Iterator[str]:
    """Indexes uploaded photos, which the archive keeps, telling how far it is; broken ones are left out and counted."""
    regions, skipped = 0, 0
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        if archive.folder is not None:
            check_room(sum(path.stat().st_size for path in batch))
        report = archive.index.add_images([(path.name, path.read_bytes()) for path in batch])
        regions += report.regions
        skipped += len(report.skipped)
        done = start + len(batch)
        broken = f", {skipped} could not be read" if skipped else ""
        yield bar(done, len(pictures), f"{done} of {len(pictures)} photos, {regions} regions{broken}")


def stats_text(archive: Archive | None) -> str:
    """What is in the archive, in a sentence."""
    if archive is None:
        return "No photos yet."
    stats = archive.index.stats()
    return f"**{stats.n_images} photos** and {stats.n_regions} regions are ready to be searched."
