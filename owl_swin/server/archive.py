"""The archive behind the routes: searches in threads of their own, one writer, and thumbnails."""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from owl_swin.errors import ArchiveBusyError, ImageError, QueryError
from owl_swin.server.cache import ByteCache
from owl_swin.server.problems import Problem
from owl_swin.server.reading import Blob
from owl_swin.tiling import Tiles
from owl_swin.types import QueryEmbeddings

Result = TypeVar("Result")

# When to try again to write to an archive that another process writes to.
RETRY_S = 30


class Archive:
    """An open RegionIndex, or None, for many requests at once."""

    def __init__(self, index: Any, thumbnail_bytes: int, root_path: str = ""):
        self._index, self._root_path = index, root_path
        self._thumbnails: ByteCache[bytes] = ByteCache(thumbnail_bytes, len)
        self._threads = ThreadPoolExecutor(4, "archive")
        self._writer = ThreadPoolExecutor(1, "writer")

    def attached(self) -> "Archive":
        """Itself; without an index, raises Problem."""
        if self._index is None:
            raise Problem("no_archive", "this server has no archive; start it with --index archive.lance")
        return self

    @property
    def tiles(self) -> Tiles | None:
        """Those in which the archive shows its pictures to the model."""
        return None if self._index is None else self._index.tiles

    def size(self) -> dict[str, int] | None:
        """Pictures and regions, or None without an index."""
        if self._index is None:
            return None
        stats = self._index.stats()
        return {"images": stats.n_images, "regions": stats.n_regions}

    async def search(
        self, query: QueryEmbeddings | None, like_region: str | None, **options: Any
    ) -> list[dict[str, Any]]:
        """Matches of one query, or of a region that an earlier search found, best first."""

        stop = threading.Event()

        def find() -> list[dict[str, Any]]:
            wanted = query if query is not None else self._index.more_like(like_region)
            return [_match(one, self._root_path) for one in self._index.search(wanted, stop=stop, **options)]

        try:
            return await self._in(self._threads, find)
        finally:
            stop.set()  # of a search that nobody waits for any more

    async def add(self, blobs: Sequence[Blob]) -> dict[str, Any]:
        """Stores pictures."""
        named = [(blob.name, blob.content) for blob in blobs]
        try:
            # Without waiting: another process may index for hours, and who waits here keeps a place in the queue.
            report = await self._in(self._writer, partial(self._index.add_images, named, wait=False))
        except ArchiveBusyError:
            raise Problem(
                "archive_busy",
                "another process is writing to the archive; ask again later",
                headers={"Retry-After": str(RETRY_S)},
            ) from None
        counts = {name: getattr(report, name) for name in ("added", "changed", "unchanged", "regions")}
        return {**counts, "skipped": [{"path": str(path), "reason": reason} for path, reason in report.skipped]}

    async def kept_thumbnail(self, image_id: str, size_px: int) -> bytes | None:
        """The thumbnail, if it was made before and the picture was not forgotten since."""
        known = self.attached()._thumbnails.get(_key(image_id, size_px))
        there = known is not None and await self._in(self._threads, partial(self._index.holds, image_id))
        return known if there else None

    def keep_thumbnail(self, image_id: str, size_px: int, content: bytes) -> None:
        """Keeps a thumbnail for those who ask again."""
        self._thumbnails.put(_key(image_id, size_px), content)

    async def picture(self, image_id: str) -> bytes | str:
        """The bytes of a picture of the archive, or where its file lies."""
        try:
            return await self._in(self._threads, partial(self.attached()._index.picture_file, image_id))
        except (ImageError, QueryError):
            raise Problem("no_such_image", "the archive has no such picture, or its file is gone") from None

    def close(self) -> None:
        """Ends the threads after what they do, and closes the index."""
        for pool in (self._threads, self._writer):
            pool.shutdown()
        if self._index is not None:
            self._index.close()

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, function)


def _key(image_id: str, size_px: int) -> bytes:
    return f"{size_px} {image_id}".encode()


def _match(match: Any, root_path: str) -> dict[str, Any]:
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), (round(float(v), 2) for v in match.box_xyxy), strict=True))
    thumbnail = f"{root_path}/v1/images/{match.image_id}"
    names = ("image_id", "path", "score", "objectness", "width", "height", "modified", "region")
    values = {name: getattr(match, name) for name in names}
    values["path"] = os.fsencode(match.path).decode("utf-8", "replace")  # JSON has no place for bytes that are no text
    return {**values, "box": box, "thumbnail": thumbnail}
