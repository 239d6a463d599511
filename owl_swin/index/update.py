"""One run of indexing: compares files with the archive and writes what is new or has changed, a part at a time."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from owl_swin.errors import ArchiveError
from owl_swin.index.folder import checked_folder, stamp_of
from owl_swin.index.match import IndexProgress, IndexReport
from owl_swin.index.paths import from_text, is_below, key_of, to_text
from owl_swin.index.regions import EncodedFile, PictureRegions
from owl_swin.index.store import Picture, Regions, Store
from owl_swin.picture_files import walk
from owl_swin.tiling import Tiles

# A part is written when it has so many pictures, or when the last one was written so long ago: what a kill costs.
PART = 256
PART_S = 10.0
# A part of uploads is also written when it has so many bytes: they are copied on their way to the archive.
PART_BYTES = 64_000_000
# The rate is that of the last so many seconds.
RATE_S = 20.0

Progress = Callable[[IndexProgress], None]
# Paths, and whether a content is known → what was read, in any order.
Encode = Callable[[Iterable[str], Callable[[str], bool]], Iterator[EncodedFile]]
# The same, of pictures that are shown in the tiles of the archive, or whole.
Engine = Callable[[Iterable[str], Callable[[str], bool], Tiles | None], Iterator[EncodedFile]]


class Update:
    """Brings an archive up to date with a folder, or adds uploads. One use each; the caller holds the lock."""

    def __init__(self, store: Store, progress: Progress | None):
        self._store, self._progress = store, progress
        self._report = IndexReport()
        self._skipped: list[tuple[str, str]] = []
        self._part: list[tuple[Picture, Regions | None]] = []
        self._uploads: dict[str, bytes] = {}  # of the part
        self._written = time.monotonic()
        self._done = self._total = 0
        self._ticks: deque[tuple[float, int]] = deque()
        self._places: dict[str, tuple[str, str, float]] = {}  # key of each known place → stamp, content, time
        self._contents: set[str] = set()  # all that are in the archive, or were when this began
        self._lost: list[str] = []  # files of a content that was in the archive, but is no more

    def folder(self, folder: str, encode: Encode) -> IndexReport:
        """New, changed and removed pictures of a folder. One without pictures raises ArchiveError and changes nothing.

        A file that cannot be read, or lies in a folder that cannot, is skipped; what was known of it stays.
        """
        for picture in self._store.pictures():
            self._contents.add(picture.image_id)
            if not picture.uploaded and is_below(from_text(picture.path), folder):
                self._places[picture.key] = (picture.stamp, picture.image_id, picture.modified)
        self._total = sum(1 for _ in walk(folder, lambda *_: None))
        if not self._total:
            self._refuse_empty(folder, len(self._places))
        closed: list[str] = []  # folders that cannot be read: their pictures are not gone for that

        def failed(path: str, reason: str) -> None:
            closed.append(path)
            self._skipped.append((path, reason))

        unmet = set(self._places)
        for file in encode(self._in_doubt(walk(folder, failed), unmet), lambda image_id: image_id in self._contents):
            self._take(file)
        self._write()
        if self._lost:
            for file in encode(self._lost, lambda _: False):
                self._take(file)
            self._write()
        checked_folder(folder)  # were it gone by now, nothing in it would have been met
        gone = self._really_gone(unmet, closed) if closed else sorted(unmet)
        if gone:
            self._store.remove(gone)
        return replace(self._report, removed=len(gone), skipped=tuple(self._skipped))

    def uploads(self, encoded: Iterable[tuple[EncodedFile, bytes]], total: int) -> IndexReport:
        """``total`` pictures that lie in no folder, with their bytes; ``path`` is the name they came with."""
        self._total = total
        for one, content in encoded:
            if one.problem:
                self._done += 1
                self._skipped.append((one.path, one.problem))
            else:
                self._take_upload(one, content)
            self._report_progress(one.path)
        self._write()
        return replace(self._report, skipped=tuple(self._skipped))

    def _in_doubt(self, paths: Iterable[str], unmet: set[str]) -> Iterator[str]:
        """The files that may be new or changed; ``unmet`` loses those that are there."""
        for path in paths:
            key = key_of(path)
            unmet.discard(key)
            stamp, *_ = self._places.get(key, ("",))
            if stamp and stamp == stamp_of(path):
                self._count("unchanged")
                self._report_progress(path)
            else:
                yield path

    def _take(self, file: EncodedFile) -> None:
        if file.problem:
            self._done += 1
            self._skipped.append((file.path, file.problem))
            self._report_progress(file.path)
            return
        key = key_of(file.path)
        before = self._places.get(key)
        picture = _picture(file, key)
        if before != (picture.stamp, picture.image_id, picture.modified):
            rows = self._copied(picture) if file.regions is None else (picture, _rows(picture, file.regions))
            if rows is None:  # where files were renumbered, another may have been written over its last place
                self._lost.append(file.path)
                return
            self._part.append(rows)
        self._count("added" if before is None else "unchanged" if before[1] == file.image_id else "changed")
        self._write_if_due()
        self._report_progress(file.path)

    def _take_upload(self, file: EncodedFile, content: bytes) -> None:
        key = key_of(file.image_id, uploaded=True)
        known = (picture.key == key for picture in self._store.pictures_of(file.image_id))
        if file.image_id in self._uploads or any(known):
            self._count("unchanged")
            return
        self._count("added")
        picture = _picture(file, key, uploaded=True)
        self._part.append((picture, _rows(picture, file.regions) if file.regions is not None else None))
        self._uploads[file.image_id] = content
        self._write_if_due()

    def _copied(self, picture: Picture) -> tuple[Picture, Regions] | None:
        """A picture whose content is known, with the regions that it has elsewhere; None if it is nowhere any more."""
        places = self._store.pictures_of(picture.image_id)
        if not places:
            return None
        copies = self._store.regions_of(picture.image_id)
        one = copies[copies.picture == copies.picture[0]] if len(copies) else copies
        picture = replace(picture, width=places[0].width, height=places[0].height, n_regions=len(one))
        return picture, one.of(picture)

    def _write_if_due(self) -> None:
        large = sum(map(len, self._uploads.values())) > PART_BYTES
        if large or len(self._part) >= PART or time.monotonic() - self._written > PART_S:
            self._write()

    def _write(self) -> None:
        if self._part:
            regions = [rows for _, rows in self._part if rows is not None and len(rows)]
            pictures = [picture for picture, _ in self._part]
            self._store.write(pictures, Regions.join(regions) if regions else None, self._uploads)
            self._report = replace(self._report, regions=self._report.regions + sum(map(len, regions)))
            self._contents |= {picture.image_id for picture, _ in self._part}
        self._part, self._uploads = [], {}
        self._written = time.monotonic()

    def _count(self, what: str) -> None:
        self._done += 1
        self._report = replace(self._report, **{what: getattr(self._report, what) + 1})

    def _really_gone(self, unmet: set[str], closed: list[str]) -> list[str]:
        """Of the pictures that were not met, those that do not lie in a folder that cannot be read."""
        paths = ((picture.key, from_text(picture.path)) for picture in self._store.pictures() if picture.key in unmet)
        return [key for key, path in paths if not any(is_below(path, folder) for folder in closed)]

    def _refuse_empty(self, folder: str, n_known: int) -> None:
        if n_known:
            raise ArchiveError(
                f"{folder}: holds no pictures, but the archive knows {n_known} of it; if they are gone for good, "
                "forget them with --forget"
            )
        raise ArchiveError(f"{folder}: holds no pictures (JPEG, PNG, WebP, TIFF, …) in it or in its folders")

    def _report_progress(self, path: str) -> None:
        if self._progress is None:
            return
        now = time.monotonic()
        self._ticks.append((now, self._done))
        while now - self._ticks[0][0] > RATE_S:
            self._ticks.popleft()
        (start, first) = self._ticks[0]
        rate = (self._done - first) / (now - start) if now > start else 0.0
        seconds_left = (self._total - self._done) / rate if rate > 0 else None
        stored = self._report.regions + sum(picture.n_regions for picture, _ in self._part)
        try:
            self._progress(IndexProgress(self._done, self._total, stored, rate, seconds_left, path))
        except BaseException:  # whoever stops the run here keeps what was done
            self._write()
            raise


def _picture(file: EncodedFile, key: str, *, uploaded: bool = False) -> Picture:
    n = len(file.regions.objectness) if file.regions is not None else 0
    path = to_text(file.path)
    return Picture(key, path, file.image_id, file.stamp, file.modified, file.width, file.height, n, uploaded)


def _rows(picture: Picture, regions: PictureRegions) -> Regions:
    """The regions of one picture as rows of the archive."""
    n = len(regions.objectness)
    same = {name: np.full(n, getattr(picture, name), object) for name in ("image_id", "path")}
    return Regions(
        picture=np.full(n, picture.key, object),
        number=np.arange(n, dtype=np.int32),
        image_id=same["image_id"],
        path=same["path"],
        modified=np.full(n, picture.modified),
        width=np.full(n, picture.width, np.int32),
        height=np.full(n, picture.height, np.int32),
        boxes=regions.boxes,
        objectness=regions.objectness,
        shift=regions.shift,
        scale=regions.scale,
        embeds=regions.embeds,
    )
