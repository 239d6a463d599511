"""What stands behind the routes: one detector for all clients, its queue and caches, and the archive."""

import asyncio
import base64
import io
import math
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from owl_swin.detector import Detector, EncodedImage
from owl_swin.errors import ArchiveError, ImageError, QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.fetching import fetch
from owl_swin.formats import to_record
from owl_swin.postprocess import check_threshold
from owl_swin.queries import Query
from owl_swin.server.batching import Batcher, QueueFull
from owl_swin.server.cache import ByteCache
from owl_swin.server.metrics import Metrics
from owl_swin.server.pictures import Picture, check_picture, content_key, read_picture
from owl_swin.server.problems import Problem, busy
from owl_swin.server.reading import Asked, AskedQuery, Blob, Shown, all_of
from owl_swin.server.settings import ServerSettings
from owl_swin.types import Detections, QueryEmbeddings

Result = TypeVar("Result")

# Downloads at the same time: hosts that are slow must not keep others from what they wait for.
FETCH_THREADS = 8
# When to try again to write to an archive that another process writes to.
ARCHIVE_RETRY_S = 30
# How the archive's error says so.
WRITTEN_BY_ANOTHER = "is writing to this archive"


class Serving:
    """Everything that one process holds while it serves. ``index`` is an open RegionIndex, or None."""

    def __init__(self, detector: Detector, settings: ServerSettings, index: Any = None):
        self.detector, self.settings, self.index = detector, settings, index
        self.images: ByteCache[EncodedImage] = ByteCache(settings.cache_bytes * 3 // 4, _bytes_of_image)
        self.queries: ByteCache[QueryEmbeddings] = ByteCache(settings.cache_bytes // 8, _bytes_of_queries)
        self.thumbnails: ByteCache[bytes] = ByteCache(settings.cache_bytes // 8, len)
        self.metrics = Metrics(self)
        self._cores = torch.get_num_threads()
        self.batcher = Batcher(
            self._encode,
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_s,
            queue_size=settings.queue_size,
            workers=self._n_workers(),
            on_start=self._share_cores,
            on_batch=self.metrics.on_batch,
            on_drop=self.metrics.on_drop,
        )
        self.readers = ThreadPoolExecutor(settings.n_decode_threads, "reader")
        self._archive = ThreadPoolExecutor(4, "archive")
        self._writer = ThreadPoolExecutor(1, "writer")
        self._fetchers = ThreadPoolExecutor(FETCH_THREADS, "fetcher")
        self.waiting = 0  # works of admitted requests that have not ended
        self.held_bytes = 0  # of bodies that are being received or answered
        self.draining = False

    def _n_workers(self) -> int:
        if self.settings.model_threads:
            return self.settings.model_threads
        return 1 if self.detector.device.type != "cpu" else min(4, self._cores)

    def _share_cores(self, n_busy: int) -> None:
        """Passes that run at the same time share the cores; one that is alone has them all."""
        threads = max(1, self._cores // n_busy)
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)

    def warm_up(self) -> None:
        """One detection, so that the first client does not pay for what is made once."""
        self.detector.detect(Image.new("RGB", (64, 64), "grey"), ["warm-up"])

    def close(self) -> None:
        """Ends the threads after what they do, and closes the archive."""
        self.batcher.close()
        for pool in (self.readers, self._archive, self._writer, self._fetchers):
            pool.shutdown()
        if self.index is not None:
            self.index.close()

    # --- Room -----------------------------------------------------------------------------------------------------

    def check_room(self, n_works: int = 1) -> None:
        """Refuses at once what would wait beyond the bound, and everything new while the server stops."""
        if self.draining or not self.batcher.alive:
            headers = {"Retry-After": "5", "Connection": "close"}
            raise Problem("shutting_down", "this server is stopping; ask again", headers=headers)
        if self.waiting + n_works > self.settings.queue_size:
            raise self._busy(f"{self.waiting} works wait, the queue holds {self.settings.queue_size}; come again later")

    @asynccontextmanager
    async def room(self, n_works: int) -> AsyncIterator[None]:
        """Holds places in the queue for as long as a request is worked on."""
        self.check_room(n_works)
        self.waiting += n_works
        try:
            yield
        finally:
            self.waiting -= n_works

    def hold(self, n_bytes: int) -> None:
        """Counts bytes of bodies; beyond the bound of all requests together the one that asks is refused."""
        if n_bytes > 0 and self.held_bytes + n_bytes > self.settings.max_held_bytes:
            raise self._busy("requests hold too many bytes together; come again later")
        self.held_bytes += n_bytes

    def _busy(self, detail: str) -> Problem:
        return busy(detail, min(60, max(1, math.ceil(self.batcher.seconds_left))))

    async def fetch(self, url: str) -> bytes:
        """The bytes at a URL that the settings allow."""
        limits = self.settings
        get = partial(fetch, allowed=limits.url_hosts, max_bytes=limits.max_body_bytes)
        return await asyncio.get_running_loop().run_in_executor(self._fetchers, get, url)

    # --- Detection ------------------------------------------------------------------------------------------------

    async def detect(self, blobs: Sequence[Blob], asked: list[Asked] | None, **options: Any) -> list[dict[str, Any]]:
        """One record a picture, in order, as ``owl-swin detect --format jsonl`` writes them."""
        queries = await self.encode(asked) if asked is not None else None
        check_threshold(options["threshold"], 1 if queries is None else len(queries))
        pictures = await all_of([self._in_reader(self._read, blob) for blob in blobs])
        found = await all_of([self._detect_one(picture, queries, options) for picture in pictures])
        return [to_record(blob.name, one) for blob, one in zip(blobs, found, strict=True)]

    async def _detect_one(
        self, picture: Picture | EncodedImage, queries: QueryEmbeddings | None, options: dict[str, Any]
    ) -> Detections:
        def answer(encoded: EncodedImage) -> Detections:
            return self.detector.detect(encoded, queries, **options)

        if isinstance(picture, EncodedImage):
            return await self._in_model(None, lambda _: answer(picture))
        return await self._in_model(picture, answer)

    def _read(self, blob: Blob) -> Picture | EncodedImage:
        key = content_key(blob.content)
        known = self.images.get(key)
        limits = self.settings
        return known or read_picture(
            blob.content, blob.where, image_size=self.detector.image_size, max_pixels=limits.max_pixels, key=key
        )

    def _encode(self, pictures: Sequence[Picture]) -> list[EncodedImage]:
        """Encodings of pictures of one shape; the same picture of several clients is encoded once."""
        unique = {picture.key: picture for picture in pictures}
        encoded = self.detector.encode_images([p.image for p in unique.values()], batch_size=len(unique))
        made = {key: picture.own(one) for (key, picture), one in zip(unique.items(), encoded, strict=True)}
        self.metrics.batch_size.observe(len(unique))
        if self.settings.cache_bytes:
            for key, one in made.items():
                self.images.put(key, _apart(one))
        return [made[picture.key] for picture in pictures]

    # --- Queries --------------------------------------------------------------------------------------------------

    async def encode(self, asked: Sequence[Asked]) -> QueryEmbeddings:
        """The queries, in order: neighbours that are fresh are encoded together, saved ones are read."""
        runs: list[list[AskedQuery] | Blob] = []
        for one in asked:
            if isinstance(one, Blob):
                runs.append(one)
            elif runs and isinstance(runs[-1], list):
                runs[-1].append(one)
            else:
                runs.append([one])
        made: list[QueryEmbeddings] = []
        total = 0
        for run in runs:
            made.append(await (self._in_reader(self._load, run) if isinstance(run, Blob) else self._fresh(run)))
            total += _n_asked(made[-1], saved=isinstance(run, Blob))
            # After each, not at the end: a small file may hold many.
            if total > self.settings.max_queries:
                raise Problem(
                    "too_many_queries",
                    f"got {total} queries and exemplars of saved ones, at most {self.settings.max_queries} a request",
                )
        return reduce(add, made)

    async def _fresh(self, run: list[AskedQuery]) -> QueryEmbeddings:
        shows = any(query.shown() for query in run)
        key = await self._in_reader(_key_of_run, run) if shows else _key_of_run(run)
        if (known := self.queries.get(key)) is not None:
            return known
        for query in run:
            for shown in query.shown():
                await self._in_reader(self._check_exemplar, shown)
        queries = [_as_query(query) for query in run]
        made = await self._in_model(None, lambda _: self.detector.encode_queries(queries))
        self.queries.put(key, made)
        return made

    def _check_exemplar(self, shown: Shown) -> None:
        check_picture(shown.blob.content, shown.blob.where, max_pixels=self.settings.max_pixels)

    def _load(self, blob: Blob) -> QueryEmbeddings:
        with tempfile.TemporaryDirectory(prefix="owl_swin-") as folder:
            path = Path(folder) / "queries.safetensors"
            path.write_bytes(blob.content)
            try:
                return self.detector.load_queries(path)
            except QueryError as error:
                raise QueryError(f"{blob.where}: {str(error).replace(f'{path}: ', '')}") from None

    async def save(self, queries: QueryEmbeddings) -> bytes:
        """The file that ``QueryEmbeddings.save`` writes."""

        def saved() -> bytes:
            with tempfile.TemporaryDirectory(prefix="owl_swin-") as folder:
                path = Path(folder) / "queries.safetensors"
                queries.save(path)
                return path.read_bytes()

        return await self._in_reader(saved)

    # --- Archive --------------------------------------------------------------------------------------------------

    async def search(self, query: Asked | None, like_region: str | None, **options: Any) -> list[dict[str, Any]]:
        """Matches of the archive, best first."""
        index = self._attached()
        embeddings = await self.encode([query]) if query is not None else None
        if embeddings is not None and len(embeddings) != 1:
            raise Problem("invalid_query", f"a search is for one query, the saved file holds {len(embeddings)}")

        def find() -> list[Any]:
            asked = embeddings if embeddings is not None else index.more_like(like_region)
            return index.search(asked, **options)

        return [_match(one) for one in await self._in_archive(find)]

    async def add_images(self, blobs: Sequence[Blob]) -> dict[str, Any]:
        """Stores pictures in the archive."""
        index = self._attached()
        for blob in blobs:
            await self._in_reader(partial(check_picture, max_pixels=self.settings.max_pixels), blob.content, blob.where)
        named = [(blob.name, blob.content) for blob in blobs]
        # Without waiting: another process may index for hours, and who waits here keeps a place in the queue.
        write = partial(index.add_images, named, wait=False)
        try:
            report = await asyncio.get_running_loop().run_in_executor(self._writer, write)
        except ArchiveError as error:
            if WRITTEN_BY_ANOTHER not in str(error):
                raise
            raise Problem(
                "archive_busy",
                "another process is writing to the archive; ask again later",
                headers={"Retry-After": str(ARCHIVE_RETRY_S)},
            ) from None
        counts = {name: getattr(report, name) for name in ("added", "changed", "unchanged", "regions")}
        return {**counts, "skipped": [{"path": str(path), "reason": reason} for path, reason in report.skipped]}

    async def thumbnail(self, image_id: str, size_px: int) -> bytes:
        """A picture of the archive as a small JPEG."""
        index = self._attached()
        key = f"{size_px} {image_id}".encode()
        if (known := self.thumbnails.get(key)) is not None:
            return known

        def make() -> bytes:
            picture = index.open_picture(image_id).convert("RGB")
            picture.thumbnail((size_px, size_px))
            content = io.BytesIO()
            picture.save(content, "JPEG", quality=85)
            return content.getvalue()

        try:
            made = await self._in_archive(make)
        except (ImageError, ArchiveError, QueryError):
            raise Problem("no_such_image", "the archive has no such picture, or its file is gone") from None
        self.thumbnails.put(key, made)
        return made

    def _attached(self) -> Any:
        if self.index is None:
            raise Problem("no_archive", "this server has no archive; start it with --index archive.lance")
        return self.index

    # --- The model ------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What /v1/model tells."""
        limits = {f.name: getattr(self.settings, f.name) for f in fields(self.settings) if f.name.startswith("max_")}
        stats = self.index.stats() if self.index is not None else None
        return {
            "name": str(self.detector.card.get("name", self.detector.model.config.name)),
            "version": str(self.detector.card.get("version", "")),
            "fingerprint": self.detector.fingerprint,
            "image_size": self.detector.image_size,
            "dimensions": self.detector.model.config.embed_dim,
            "limits": {name: value for name, value in limits.items() if isinstance(value, int)},
            "archive": None if stats is None else {"images": stats.n_images, "regions": stats.n_regions},
        }

    async def _in_model(self, picture: Picture | None, then: Callable[[Any], Result]) -> Result:
        try:
            return await self.batcher.submit(picture, then)
        except QueueFull:
            raise self._busy("the queue is full; come again later") from None

    async def _in_reader(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *arguments)

    async def _in_archive(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._archive, function)


def embedded(queries: QueryEmbeddings, saved: bytes) -> dict[str, Any]:
    """Queries to keep, as JSON."""
    return {
        "queries": base64.b64encode(saved).decode(),
        "names": list(queries.names),
        "dimensions": queries.query_embeds.shape[1],
        "fingerprint": queries.fingerprint,
    }


def _n_asked(queries: QueryEmbeddings, *, saved: bool) -> int:
    """Queries, and what saved ones have beside their first embedding; of fresh ones that was counted by its files."""
    extras = queries.extras if saved else None
    return len(queries) + (len(extras.embeds) if extras is not None else 0)


def _key_of_run(run: list[AskedQuery]) -> bytes:
    return content_key(b"".join(query.key() for query in run))


def _as_query(asked: AskedQuery) -> Query:
    def part(one: str | Shown) -> str | Exemplar:
        return one if isinstance(one, str) else Exemplar(one.blob.content, one.box_xyxy, one.blob.name)

    exemplars = [Exemplar(one.blob.content, one.box_xyxy, one.blob.name) for one in asked.exemplars]
    return Query(asked.name, asked.texts, exemplars, [part(one) for one in asked.negatives], asked.weight)


def _match(match: Any) -> dict[str, Any]:
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), (round(float(v), 2) for v in match.box_xyxy), strict=True))
    told = {name: getattr(match, name) for name in ("image_id", "path", "score", "objectness", "width", "height")}
    told |= {"modified": match.modified, "region": match.region, "box": box}
    return {**told, "thumbnail": f"/v1/images/{match.image_id}"}


def _apart(encoded: EncodedImage) -> EncodedImage:
    """A copy that does not keep the batch alive of which it was a part."""
    kept: dict[str, Any] = {
        f.name: value.clone() if isinstance(value := getattr(encoded.embeddings, f.name), Tensor) else value
        for f in fields(encoded.embeddings)
    }
    return replace(encoded, embeddings=type(encoded.embeddings)(**kept))


def _bytes_of_image(encoded: EncodedImage) -> int:
    values = (getattr(encoded.embeddings, f.name) for f in fields(encoded.embeddings))
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def _bytes_of_queries(queries: QueryEmbeddings) -> int:
    extras = queries.extras.embeds.nbytes if queries.extras is not None else 0
    return queries.query_embeds.nbytes + extras + sum(len(name) for name in queries.names)
