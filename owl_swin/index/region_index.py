"""The archive of regions that users hold: pictures in, regions that answer a query out."""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from numbers import Integral, Real
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from owl_swin.detector import Detector
from owl_swin.errors import ArchiveError, ImageError, QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.image import open_image
from owl_swin.index.folder import Content, absolute, checked_folder, content_hash, read_picture
from owl_swin.index.lock import only_writer
from owl_swin.index.match import IndexReport, IndexStats, Match
from owl_swin.index.paths import from_text, glob_pattern, is_below, like_pattern, to_text
from owl_swin.index.ranking import Choice, best_of_all, best_of_nearest, to_matches
from owl_swin.index.regions import EncodedFile, encode_files, encode_in_tiles, encode_pictures, open_content
from owl_swin.index.store import Card, NoArchiveError, RegionFilter, Regions, Store
from owl_swin.index.times import seconds_of
from owl_swin.index.update import Engine, Progress, Update
from owl_swin.postprocess import check_fraction
from owl_swin.queries import Query
from owl_swin.tiling import Tiles
from owl_swin.types import QueryEmbeddings

# So many writes leave about as many files, which make a search slower.
SETTLE_AFTER = 100

TIME = float | datetime | str | None


def open_store(uri: str | os.PathLike[str], *, create: Card | None = None) -> Store:
    """What keeps the archive of a URI: "milvus://…" is Milvus, everything else LanceDB."""
    place = os.fspath(uri)
    if place.startswith("milvus://"):
        from owl_swin.index.milvus import MilvusStore

        return MilvusStore(place, create=create)
    from owl_swin.index.lance import LanceStore

    return LanceStore(place, create=create)


def read_card(uri: str | os.PathLike[str]) -> Card | None:
    """Which model the archive at ``uri`` is of, without a model; None if there is no archive."""
    try:
        store = open_store(uri)
    except NoArchiveError:
        return None
    card = store.card()
    store.close()
    return card


class RegionIndex:
    """An archive of pictures that can be asked where a thing is in it.

    >>> index = RegionIndex.open("archive.lance", detector, create=True)
    >>> index.add_folder("photos")
    >>> index.search("a red mug", limit=10)
    >>> index.search(Exemplar("mug.jpg", (40, 60, 210, 300)), path_glob="2024/*")
    """

    def __init__(self, store: Store, detector: Detector):
        self._store, self._detector, self._calibration = store, detector, detector.spec.calibration
        self._card = store.card()
        self._writing = threading.Lock()

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        detector: Detector,
        create: bool = False,
        *,
        tiles: int | Tiles | None = None,
    ) -> "RegionIndex":
        """The archive at ``uri``: a folder, an object-storage URI of LanceDB, or "milvus://host:19530/collection"
        ("milvus:///path/file.db/collection" for Milvus Lite).

        A new one shows the model all its pictures, which may then be huge, in ``tiles`` too, and remembers them. One
        that is missing (without ``create``), damaged, of another version of this package, or of another model, image
        size or other tiles than these raises ArchiveError.
        """
        spec = detector.spec
        if tiles is not None and not isinstance(tiles, Tiles):
            tiles = Tiles(tiles)
        card = Card(detector.name, spec.fingerprint, detector.image_size, spec.embed_dim, spec.search_norm, tiles)
        store = open_store(uri, create=card if create else None)
        found = store.card()
        if found.fingerprint != card.fingerprint or found.embed_dim != card.embed_dim:
            store.close()
            raise ArchiveError(
                f"{uri}: its regions are of the model {found.model!r} (weights {found.fingerprint[:12]}), not of "
                f"{card.model!r} ({card.fingerprint[:12]}); name that model with --model, or make a new archive"
            )
        if found.image_size != card.image_size:
            store.close()
            raise ArchiveError(
                f"{uri}: its pictures were encoded at {found.image_size} pixels, this model is set to "
                f"{card.image_size}; give image_size={found.image_size}, or make a new archive"
            )
        if tiles is not None and tiles != found.tiles:
            store.close()
            raise ArchiveError(
                f"{uri}: its pictures were encoded {_in_tiles(found.tiles)}, not {_in_tiles(tiles)}; leave the tiles "
                "out, or make a new archive"
            )
        return cls(store, detector)

    @property
    def tiles(self) -> Tiles | None:
        """What the model is shown of each picture beside the whole of it."""
        return self._card.tiles

    def add_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        progress: Progress | None = None,
        regions: int = 20,
        engine: Engine | None = None,
        wait: bool = False,
        waiting: Callable[[str], None] | None = None,
    ) -> IndexReport:
        """Brings the archive up to date with the pictures of a folder and all folders in it.

        Only what is new or whose content changed is encoded, at most ``regions`` boxes of a picture and of each of its
        tiles; what is gone is forgotten. It may be stopped at any moment and goes on from there. ``engine`` encodes
        elsewhere (``cluster.ray_engine``). While another process writes, ``wait`` waits, and ``waiting`` is called with
        its name; without it that raises ArchiveError.
        """
        n = _whole("regions", regions)
        path = checked_folder(folder)
        detector, tiles = self._detector, self.tiles

        def encode(paths: Iterable[str], known: Callable[[str], bool]) -> Iterator[EncodedFile]:
            if engine is not None:
                return engine(paths, known, tiles)
            return encode_files(detector, paths, n, known, tiles)

        with self._only_writer(wait, waiting):
            report = Update(self._store, progress).folder(path, encode)
            self._store.settle()  # also where nothing changed: the last run may have been killed here
            return report

    def add_images(
        self,
        images: Sequence[tuple[str, bytes]],
        *,
        progress: Progress | None = None,
        regions: int = 20,
        wait: bool = True,
    ) -> IndexReport:
        """Pictures that lie in no folder: (name, bytes of the file) each. The archive keeps the bytes.

        The name is only what matches are called, never a place on disk.
        """
        n = _whole("regions", regions)
        with self._only_writer(wait, None):
            report = Update(self._store, progress).uploads(self._encode_uploads(images, n), len(images))
            if self._store.unsettled() >= SETTLE_AFTER:
                self._store.settle()
            return report

    def forget(
        self,
        folder: str | os.PathLike[str],
        *,
        wait: bool = False,
        waiting: Callable[[str], None] | None = None,
    ) -> int:
        """Takes all pictures of a folder, which need not be there any more, out of the archive; how many these were.

        ``wait`` and ``waiting`` are those of ``add_folder``. Uploads stay: ``forget_images`` takes them.
        """
        path = absolute(folder)
        with self._only_writer(wait, waiting):
            pictures = self._store.pictures()
            keys = [p.key for p in pictures if not p.uploaded and is_below(from_text(p.path), path)]
            if keys:
                self._store.remove(keys)
            self._store.settle()
            return len(keys)

    def forget_images(self, image_ids: Iterable[str], *, wait: bool = True) -> int:
        """Takes uploads with their bytes out of the archive, by ``Match.image_id``; how many of them it had.

        Pictures of folders stay, also where they have the same content.
        """
        with self._only_writer(wait, None):
            wanted = dict.fromkeys(image_ids)
            found = [p for image_id in wanted for p in self._store.pictures_of(image_id) if p.uploaded]
            if found:
                self._store.remove([p.key for p in found], [p.image_id for p in found])
                self._store.settle()
            return len(found)

    def search(
        self,
        query: str | Exemplar | Query | QueryEmbeddings,
        *,
        limit: int = 20,
        offset: int = 0,
        threshold: float = 0.0,
        per_image: int | None = None,
        path_glob: str | None = None,
        newer_than: TIME = None,
        older_than: TIME = None,
        min_side_px: float | None = None,
        exact: bool = False,
        stop: threading.Event | None = None,
    ) -> list[Match]:
        """The ``limit`` regions that answer best, after the first ``offset``, best first.

        Scores are those of ``detect`` without rivals; below ``threshold`` nothing answers. ``per_image``: most answers
        of one picture.
        ``path_glob``: ``*`` and ``?`` as in a shell, of the whole path or from a folder's name on. Times are seconds
        since 1970, datetimes, or texts as in "2024-05-31" or, for an age, "7d". ``min_side_px``: shortest side of the
        box. ``exact`` scores every region instead of those that the index brings; ``stop`` ends that from another
        thread, with QueryError.
        """
        _whole("limit", limit)
        _whole("offset", offset, least=0)
        check_fraction("threshold", threshold)
        cap = _whole("per_image", per_image) if per_image is not None else None
        embeds = self._encode(query)
        like = like_pattern(path_glob) if path_glob is not None else None
        times = _seconds("newer_than", newer_than), _seconds("older_than", older_than)
        where = RegionFilter(like, *times, _number("min_side_px", min_side_px))
        choice = Choice(threshold, cap, glob_pattern(path_glob) if path_glob is not None else None, stop)
        if exact:
            ((scores, rows),) = best_of_all(self._store, self._calibration, embeds, where, choice, limit + offset)
        else:
            scores, rows = best_of_nearest(self._store, self._calibration, embeds, where, choice, limit + offset)
        return to_matches(scores[offset:], rows[slice(offset, None)])

    def search_all(self, queries: QueryEmbeddings, *, limit: int = 10) -> list[list[Match]]:
        """The best regions of each of several queries, every region scored, in one pass over the archive."""
        queries.check_model(self._card.embed_dim, self._card.fingerprint)
        found = best_of_all(self._store, self._calibration, queries, RegionFilter(), Choice(), _whole("limit", limit))
        return [to_matches(scores, rows) for scores, rows in found]

    def sample(self, n: int) -> QueryEmbeddings | None:
        """Up to ``n`` stored regions as queries, spread evenly over the archive; None if it holds none."""
        _, n_regions = self._store.count()
        wanted = {i * n_regions // n for i in range(n)}
        picked, passed = [], 0
        for rows in self._store.scan(RegionFilter()):
            picked.append(rows[[i - passed for i in range(passed, passed + len(rows)) if i in wanted]])
            passed += len(rows)
        rows = Regions.join([part for part in picked if len(part)] or [Regions.none()])
        return self._as_queries(rows) if len(rows) else None

    def more_like(self, region_id: str) -> QueryEmbeddings:
        """A stored region as a query, as an exemplar would be."""
        image_id, _, number = region_id.rpartition("-")
        if number.isdecimal() and image_id.isalnum():
            rows = self._store.regions_of(image_id)
            rows = rows[rows.number == int(number)]
            if len(rows):
                return self._as_queries(rows[:1])
        raise QueryError(f"the archive has no region {region_id!r}")

    def holds(self, image_id: str) -> bool:
        """Whether a picture of that content is in the archive."""
        return image_id.isalnum() and bool(self._store.pictures_of(image_id))

    def open_picture(self, image_id: str) -> Image.Image:
        """The upright picture of that content: from its file, or from the archive if it was an upload.

        ImageError if it is gone or its file has other content by now.
        """
        return open_image(self.read_picture(image_id))

    def read_picture(self, image_id: str) -> bytes:
        """The bytes of the file of that content, as ``open_picture`` finds it."""
        return self._found(image_id, lambda path: (one := read_picture(path)).image_id == image_id and one.content)

    def picture_file(self, image_id: str) -> bytes | str:
        """The path of the file of that content, which may be of any size, or the bytes of an upload."""
        return self._found(image_id, lambda path: read_picture(path, keep=False).image_id == image_id and path)

    def _found(self, image_id: str, read: Callable[[str], Any]) -> Any:
        """The bytes of an upload, or what ``read`` makes of the first file that it finds right."""
        places = self._store.pictures_of(image_id) if image_id.isalnum() else []
        if not places:
            raise ImageError(f"the archive has no picture {image_id!r}")
        for place in places:
            found: Any = None
            if place.uploaded:
                found = self._store.content(image_id)
            else:
                with suppress(ImageError):
                    found = read(from_text(place.path))
            if found:
                return found
        raise ImageError("is gone or has changed since it was indexed; index again", of=from_text(places[0].path))

    def common_folder(self) -> str:
        """The deepest folder with all pictures of folders in it, written as ``Match.path`` is; "" if there is none."""
        folders = {os.path.dirname(from_text(one.path)) for one in self._store.pictures() if not one.uploaded}  # noqa: PTH120
        try:
            return to_text(os.path.commonpath(folders)) if folders else ""
        except ValueError:  # on several drives
            return ""

    def stats(self) -> IndexStats:
        """What the archive holds."""
        card = self._store.card()
        n_images, n_regions = self._store.count()
        share = n_regions / n_images if n_images else 0.0
        return IndexStats(n_images, n_regions, card.model, card.fingerprint, card.image_size, share, card.tiles)

    def close(self) -> None:
        """Lets go of the archive; nothing is lost without it."""
        self._store.close()

    def __enter__(self) -> "RegionIndex":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _only_writer(self, wait: bool, waiting: Callable[[str], None] | None) -> Iterator[None]:
        """Threads of this process queue; other processes are kept out."""
        with self._writing, only_writer(self._store.uri, wait=wait, waiting=waiting):
            self._store.recover()
            yield

    def _encode_uploads(self, images: Sequence[tuple[str, bytes]], n: int) -> Iterator[tuple[EncodedFile, bytes]]:
        for name, content in images:
            held = Content(name, b"", content_hash(content), "", datetime.now().timestamp())
            if self.tiles is not None:
                yield encode_in_tiles(self._detector, held, bytes(content), n, self.tiles), bytes(content)
                continue
            try:
                (file,) = encode_pictures(self._detector, [(held, open_content(bytes(content)))], n)
            except ImageError as error:
                file = EncodedFile(name, problem=str(error))
            yield file, bytes(content)

    def _as_queries(self, rows: Regions) -> QueryEmbeddings:
        embeds = F.normalize(torch.from_numpy(rows.embeds.astype(np.float32)), dim=-1)
        names = tuple(f"{image_id}-{number}" for image_id, number in zip(rows.image_id, rows.number, strict=True))
        routes = ("exemplar",) * len(names)
        return QueryEmbeddings(embeds, names, routes, fingerprint=self._detector.fingerprint)

    def _encode(self, query: str | Exemplar | Query | QueryEmbeddings) -> QueryEmbeddings:
        embeds = query if isinstance(query, QueryEmbeddings) else self._detector.encode_queries([query])
        embeds.check_model(self._card.embed_dim, self._card.fingerprint)
        if len(embeds) != 1:
            raise QueryError(f"an archive is asked one query at a time, got {len(embeds)}")
        return embeds


def _in_tiles(tiles: Tiles | None) -> str:
    return "whole" if tiles is None else f"in tiles of {tiles.size} pixels with an overlap of {tiles.overlap:g}"


def _whole(name: str, value: int, *, least: int = 1) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= 1_000_000:
        raise QueryError(f"{name} must be a whole number from {least} to 1000000, got {value!r}")
    return int(value)


def _number(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real) or not math.isfinite(value):
        raise QueryError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _seconds(name: str, value: TIME) -> float | None:
    if isinstance(value, str):
        return seconds_of(name, value)
    return value.timestamp() if isinstance(value, datetime) else _number("a time", value)
