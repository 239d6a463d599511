"""What stands behind the routes: one detector for all clients, its queue and caches, and the archive."""

import asyncio
import base64
import math
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial, reduce
from importlib import metadata
from operator import add
from typing import Any, TypeVar

import torch
from PIL import Image

from owl_swin.classification import check_classes, class_means
from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage
from owl_swin.errors import QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.fetching import fetch
from owl_swin.queries import Query
from owl_swin.server.archive import Archive
from owl_swin.server.batching import Batcher, QueueFull
from owl_swin.server.cache import ByteCache
from owl_swin.server.metrics import Metrics
from owl_swin.server.pictures import (
    Cost,
    Picture,
    check_archived,
    check_picture,
    content_key,
    read_exemplar,
    read_picture,
    read_thumbnail,
)
from owl_swin.server.problems import Problem, busy
from owl_swin.server.readers import Readers
from owl_swin.server.reading import Blob, ExemplarFile, QueryParts, QuerySource, all_of
from owl_swin.server.settings import ServerSettings
from owl_swin.server.structure import check_saved
from owl_swin.server.turns import Lane, PixelRoom
from owl_swin.tiling import Tiles
from owl_swin.types import QueryEmbeddings

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a picture before it is decoded: the hash of its file, its cost, or its encoding from before."""

    key: bytes
    cost: Cost
    known: EncodedImage | None = None


# Downloads at the same time: hosts that are slow must not keep others from what they wait for.
FETCH_THREADS = 8


class Serving:
    """Everything that one process holds while it serves. ``index`` is an open RegionIndex, or None."""

    def __init__(self, detector: Detector, settings: ServerSettings, index: Any = None):
        self.detector, self.settings = detector, settings
        self.images: ByteCache[EncodedImage] = ByteCache(settings.cache_bytes * 3 // 4, _bytes_of_image)
        self.queries: ByteCache[QueryEmbeddings] = ByteCache(settings.cache_bytes // 8, _bytes_of_queries)
        self.archive = Archive(index, settings.cache_bytes // 8, settings.root_path)
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
        self.readers = Readers(settings.n_decode_threads, settings.max_pixels)
        self.tiled = PixelRoom(settings.max_pixels)
        self._parsers = ThreadPoolExecutor(2, "parser")
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
        self.readers.close()
        for pool in (self._parsers, self._fetchers):
            pool.shutdown()
        self.archive.close()

    # --- Room -----------------------------------------------------------------------------------------------------

    def check_room(self, n_works: int = 1) -> None:
        """Refuses at once what would wait beyond the bound, and everything new while the server stops."""
        if self.draining or not self.batcher.alive:
            headers = {"Retry-After": "5", "Connection": "close"}
            raise Problem("shutting_down", "this server is stopping; ask again", headers=headers)
        if self.waiting + n_works > self.settings.queue_size:
            raise self.busy(f"{self.waiting} works wait, the queue holds {self.settings.queue_size}; come again later")

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
            raise self.busy("requests hold too many bytes together; come again later")
        self.held_bytes += n_bytes

    def busy(self, detail: str) -> Problem:
        """Refuses work, and says when the queue will have room."""
        return busy(detail, min(60, max(1, math.ceil(self.batcher.seconds_left))))

    async def fetch(self, url: str) -> bytes:
        """The bytes at a URL that the settings allow."""
        limits = self.settings
        get = partial(fetch, allowed=limits.url_hosts, max_bytes=limits.max_body_bytes)
        return await asyncio.get_running_loop().run_in_executor(self._fetchers, get, url)

    # --- Pictures -------------------------------------------------------------------------------------------------

    def head(self, blob: Blob, *, in_tiles: bool = False, masks: bool = False) -> Head:
        """What is known of a picture before it is decoded; one that is not read here raises Problem."""
        key = content_key(blob.content) + (b" masks" if masks else b"")
        if not in_tiles and (known := self.images.get(key)) is not None:
            return Head(key, Cost(0, 0), known)
        return Head(key, check_picture(blob.content, blob.where, max_pixels=self.settings.max_pixels))

    def picture(self, blob: Blob, head: Head, *, masks: bool = False) -> Picture:
        """A picture, decoded, as it waits for the model."""
        most = self.settings.max_pixels
        return read_picture(self.detector, blob.content, blob.where, max_pixels=most, key=head.key, masks=masks)

    def _encode(self, pictures: Sequence[Picture]) -> list[EncodedImage]:
        """Encodings of pictures of one shape; the same picture of several clients is encoded once."""
        unique = {picture.key: picture for picture in pictures}
        prepared, masks = [picture.prepared for picture in unique.values()], pictures[0].masks
        encoded = self.detector.encode_images(prepared, batch_size=len(unique), masks=masks)
        made = dict(zip(unique, encoded, strict=True))
        self.metrics.batch_size.observe(len(unique))
        for key, one in made.items():
            if self.settings.cache_bytes and unique[key].keep:
                self.images.put(key, one)
        return [made[picture.key] for picture in pictures]

    # --- Queries --------------------------------------------------------------------------------------------------

    async def encode(self, sources: Sequence[QuerySource], work: "Work | None" = None) -> QueryEmbeddings:
        """The queries, in order: neighbours that are fresh are encoded together, saved ones are read."""
        work = work or self.work()
        runs: list[list[QueryParts] | Blob] = []
        for one in sources:
            if isinstance(one, Blob):
                runs.append(one)
            elif runs and isinstance(runs[-1], list):
                runs[-1].append(one)
            else:
                runs.append([one])
        made: list[QueryEmbeddings] = []
        total = 0
        for run in runs:
            is_saved = isinstance(run, Blob)
            made.append(
                await (work.read(partial(self._load, run)) if isinstance(run, Blob) else self._fresh(run, work))
            )
            total += _n_queries(made[-1], saved=is_saved)
            # After each, not at the end: a small file may hold many.
            if total > self.settings.max_queries:
                raise Problem(
                    "too_many_queries",
                    f"got {total} queries and exemplars of saved ones, at most {self.settings.max_queries} a request",
                )
        return reduce(add, made)

    async def _fresh(self, run: list[QueryParts], work: "Work") -> QueryEmbeddings:
        files = [one for query in run for one in query.all_exemplars()]
        key = await work.read(partial(_key_of_run, run)) if files else _key_of_run(run)
        if (known := self.queries.get(key)) is not None:
            return known
        queries = await self._with_files(run, work)
        made = await work.ask_model(None, lambda _: self.detector.encode_queries(queries))
        self.queries.put(key, made)
        return made

    async def _with_files(self, run: Sequence[QueryParts], work: "Work") -> list[Query]:
        files = [one for query in run for one in query.all_exemplars()]
        most = self.settings.max_pixels
        costs = await all_of(
            [work.read(partial(check_picture, one.blob.content, one.blob.where, max_pixels=most)) for one in files]
        )
        work.count_pixels([Head(b"", cost) for cost in costs])
        pairs = zip(files, costs, strict=True)
        cut = await all_of([work.read(partial(self._cut, one), _decoded(one, cost)) for one, cost in pairs])
        exemplars = dict(zip(map(id, files), cut, strict=True))
        return [_as_query(query, exemplars) for query in run]

    async def classes(
        self, sources: Sequence[QuerySource], templates: Sequence[str], work: "Work"
    ) -> tuple[torch.Tensor, list[str]]:
        """Embeddings [N, E] of classes of whole pictures, and their names; what makes no classes raises QueryError."""
        detector = self.detector
        run = [one for one in sources if isinstance(one, QueryParts)]
        n_texts = sum(len(one.texts) for one in run) * len(templates)
        if n_texts > self.settings.max_queries:
            most = f"at most {self.settings.max_queries} are read"
            raise Problem("too_many_queries", f"texts in {len(templates)} templates are {n_texts} texts, {most}")
        queries = check_classes(await self._with_files(run, work), templates)

        def encode() -> torch.Tensor:
            with torch.no_grad():
                return class_means(queries, templates, detector.encode_images, detector.encode_queries)

        return await work.ask_model(None, lambda _: encode()), [one.name for one in queries]

    def _cut(self, exemplar: ExemplarFile) -> Exemplar:
        """What the model needs of an exemplar, decoded and cut here, since the threads of the model are few."""
        blob, size, most = exemplar.blob, self.detector.image_size, self.settings.max_pixels
        picture, box = read_exemplar(blob.content, blob.where, exemplar.box_xyxy, image_size=size, max_pixels=most)
        return Exemplar(picture, box, blob.name)

    def _load(self, blob: Blob) -> QueryEmbeddings:
        try:
            check_saved(blob.content, self.settings)
            return self.detector.load_queries(blob.content)
        except QueryError as error:
            raise QueryError(error.reason, of=blob.where) from None

    async def save(self, queries: QueryEmbeddings) -> bytes:
        """The file that ``QueryEmbeddings.save`` writes."""
        return await self.work().read(queries.to_bytes)

    # --- Archive --------------------------------------------------------------------------------------------------

    async def search(self, query: QuerySource | None, like_region: str | None, **options: Any) -> list[dict[str, Any]]:
        """Matches of the archive, best first."""
        archive = self.archive.attached()
        embeddings = await self.encode([query]) if query is not None else None
        if embeddings is not None and len(embeddings) != 1:
            raise Problem("invalid_query", f"a search is for one query, the saved file holds {len(embeddings)}")
        return await archive.search(embeddings, like_region, **options)

    async def add_images(self, blobs: Sequence[Blob]) -> dict[str, Any]:
        """Stores pictures in the archive."""
        archive = self.archive.attached()
        work, most = self.work(archive.tiles), self.settings.max_pixels
        heads = [work.read(partial(check_picture, blob.content, blob.where, max_pixels=most)) for blob in blobs]
        work.count_pixels([Head(b"", cost) for cost in await all_of(heads)])
        return await archive.add(blobs)

    async def thumbnail(self, image_id: str, size_px: int) -> bytes:
        """A picture of the archive as a small JPEG, decoded where uploads are and bounded as they are."""
        if (known := await self.archive.kept_thumbnail(image_id, size_px)) is not None:
            return known
        content, work = await self.archive.picture(image_id), self.work()
        cost = await work.read(partial(check_archived, content, image_id))
        made = await work.read(partial(read_thumbnail, content, image_id, size_px, cost), cost.decoded)
        self.archive.keep_thumbnail(image_id, size_px, made)
        return made

    # --- The model ------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What /v1/model tells."""
        limits = {f.name: getattr(self.settings, f.name) for f in fields(self.settings) if f.name.startswith("max_")}
        return {
            "name": self.detector.name,
            "version": str(self.detector.card.get("version") or metadata.version("owl_swin")),
            "fingerprint": self.detector.fingerprint,
            "image_size": self.detector.image_size,
            "dimensions": self.detector.spec.embed_dim,
            "masks": self.detector.spec.has_masks,
            "limits": {name: value for name, value in limits.items() if isinstance(value, int)},
            "archive": self.archive.size(),
        }

    def work(self, tiles: Tiles | None = None, *, masks: bool = False) -> "Work":
        """The works of a new request, whose pictures are shown in ``tiles`` too, and encoded with ``masks``."""
        return Work(self, tiles, masks)

    async def in_parser(self, function: Callable[[], Result]) -> Result:
        """What is done to a body before its pictures are read."""
        return await asyncio.get_running_loop().run_in_executor(self._parsers, function)


class Work:
    """One request's way through the readers and the model, in which it takes turns with the others."""

    def __init__(self, serving: Serving, tiles: Tiles | None = None, masks: bool = False):
        self._serving, self.tiles, self.masks, self.one_in_tiles = serving, tiles, masks, asyncio.Lock()
        self._reading, self._modelling = Lane(), Lane()
        self._pixels = self._tiles = 0

    def count_pixels(self, heads: Sequence[Head]) -> None:
        """Pictures that are to be decoded; too many pixels or tiles together raise Problem."""
        pixels = self._pixels + sum(head.cost.pixels for head in heads)
        most = self._serving.settings.max_request_pixels
        if pixels > most:
            raise Problem(
                "too_many_pixels",
                f"the pictures and exemplars have {pixels} pixels together, at most {most} a request",
            )
        tiles = self._tiles + sum(self.tiles.count(head.cost.sides) for head in heads) if self.tiles is not None else 0
        if tiles > (most := self._serving.settings.max_request_tiles):
            raise Problem(
                "too_many_tiles",
                f"the pictures have {tiles} tiles together, at most {most} a request; give larger tiles, with less "
                "overlap, or smaller pictures",
            )
        self._pixels, self._tiles = pixels, tiles

    async def read(self, function: Callable[[], Result], pixels: int = 0) -> Result:
        """In a thread that opens pictures; ``pixels`` is what is decoded."""
        return await self._serving.readers.run(self._reading, pixels, function)

    async def ask_model(self, picture: Picture | None, then: Callable[[Any], Result]) -> Result:
        """What becomes of the encoding of a picture, or of None, in a thread of the model."""
        try:
            return await self._serving.batcher.submit(picture, then, self._modelling)
        except QueueFull:
            raise self._serving.busy("the queue is full; come again later") from None


def embedded(queries: QueryEmbeddings, saved: bytes) -> dict[str, Any]:
    """Queries to keep, as JSON."""
    return {
        "queries": base64.b64encode(saved).decode(),
        "names": list(queries.names),
        "dimensions": queries.query_embeds.shape[1],
        "fingerprint": queries.fingerprint,
    }


def _n_queries(queries: QueryEmbeddings, *, saved: bool) -> int:
    """Queries, and what saved ones have beside their first embedding; of fresh ones that was counted by its files."""
    extras = queries.extras if saved else None
    return len(queries) + (len(extras.embeds) if extras is not None else 0)


def _decoded(exemplar: ExemplarFile, cost: Cost) -> int:
    """Pixels that an exemplar takes: of one with a box all are decoded, also where whole pictures come smaller."""
    return cost.decoded if exemplar.box_xyxy is None else max(cost.pixels, cost.decoded)


def _key_of_run(run: list[QueryParts]) -> bytes:
    return content_key(b"".join(query.key() for query in run))


def _as_query(parts: QueryParts, cut: dict[int, Exemplar]) -> Query:
    """The query of exemplars that were cut; ``cut`` finds them by the identity of their files."""
    negatives = [part if isinstance(part, str) else cut[id(part)] for part in parts.negatives]
    return Query(parts.name, parts.texts, [cut[id(one)] for one in parts.exemplars], negatives, parts.weight)


def _bytes_of_image(encoded: EncodedImage) -> int:
    return encoded.nbytes


def _bytes_of_queries(queries: QueryEmbeddings) -> int:
    extras = queries.extras.embeds.nbytes if queries.extras is not None else 0
    return queries.query_embeds.nbytes + extras + sum(len(name) for name in queries.names)
