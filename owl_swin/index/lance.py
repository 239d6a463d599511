"""An archive in LanceDB: a folder on disk, or a place in object storage."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.errors import ArchiveError, MissingExtraError
from owl_swin.index.record import pack, unpack
from owl_swin.index.store import Card, NoArchiveError, Picture, Regions, Where, embeds_of, vector_dim

CARD = b"owl_swin"
# Rows that are read at a time.
BATCH = 8192
# Below this many regions a look at all of them is quicker than the detour over an index.
INDEX_FROM = 20_000
# Regions of one partition of the index, and the partitions that a search looks at: see `owl-swin bench search`. The
# index compares vectors of 8 bits a number; what it brings is scored anew from the whole ones.
PARTITION = 1000
PROBES = 240
# An index is trained anew when the archive has so many times the regions; until then new ones are put in the old.
GROWN = 3
# Versions older than this are deleted: readers of other processes have long moved on.
KEEP_VERSIONS = timedelta(hours=1)
# The columns that make Regions; the others are to filter by, and for those who read the table without owl_swin. Of a
# million regions a search that read twelve columns took 14 ms longer.
READ = ("record", "vector")
TABLES = ("pictures", "pending", "uploads", "regions")


class LanceStore:
    """The store of a folder or object-storage URI. Each change of a table is one atomic commit of LanceDB."""

    def __init__(self, uri: str, *, create: Card | None):
        """Opens the archive; makes an empty one of that card first where ``create`` says so and there is none."""
        lancedb, self._pa = _packages()
        self.uri = uri
        local = "://" not in uri
        if create is None and local and not Path(uri).is_dir():
            raise NoArchiveError(uri)
        with self._told("opened"):
            self._db = lancedb.connect(uri, read_consistency_interval=timedelta(0))
            there = set(self._db.list_tables().tables)
        if "regions" not in there:
            if create is None:
                raise NoArchiveError(uri)
            if local and not there and _foreign(Path(uri)):
                raise ArchiveError(f"{uri}: is a folder with other things in it; name a new folder for the archive")
            self._create(create, there)
        with self._told("opened"):
            self._pictures, self._pending, self._uploads, self._regions = map(self._db.open_table, TABLES)
            metadata = self._regions.schema.metadata or {}
        self._card = Card.from_json(uri, metadata.get(CARD))

    def card(self) -> Card:
        """Which model the archive is of."""
        return self._card

    def count(self) -> tuple[int, int]:
        """Numbers of pictures and of regions."""
        with self._told("read"):
            return self._pictures.count_rows(), self._regions.count_rows()

    def pictures(self) -> Iterator[Picture]:
        """All pictures, streamed."""
        with self._told("read"):
            for batch in self._pictures.search().to_batches(BATCH):
                yield from (Picture(**row) for row in batch.to_pylist())

    def pictures_of(self, image_id: str) -> list[Picture]:
        """The places of one content."""
        with self._told("read"):
            rows = self._pictures.search().where(f"image_id = {_quote(image_id)}").to_arrow().to_pylist()
        return [Picture(**row) for row in rows]

    def regions_of(self, image_id: str) -> Regions:
        """The regions of one content, in all of its places."""
        with self._told("read"):
            found = self._regions.search().where(f"image_id = {_quote(image_id)}").select(list(READ))
            return self._rows(found.to_arrow())

    def scan(self, where: Where) -> Iterator[Regions]:
        """All regions that satisfy ``where``, streamed."""
        with self._told("read"):
            query = self._regions.search().select(list(READ))
            condition = where.expression(_quote)
            for batch in (query.where(condition) if condition else query).to_batches(BATCH):
                yield self._rows(self._pa.Table.from_batches([batch]))

    def nearest(self, vector: np.ndarray[Any, Any], k: int, where: Where, probes: int | None = None) -> Regions:
        """About the ``k`` regions whose vectors have the highest cosine to ``vector [D]``."""
        with self._told("searched"):
            query = (
                self._regions.search(vector.astype(np.float32), vector_column_name="vector").metric("cosine").limit(k)
            )
            query = query.nprobes(probes or PROBES).select([*READ, "_distance"])
            condition = where.expression(_quote)
            return self._rows((query.where(condition) if condition else query).to_arrow())

    def recover(self) -> None:
        """Takes away what a writer that was killed left unfinished."""
        with self._told("written"):
            keys = self._pending.to_arrow()["key"].to_pylist()
            if keys:
                self._forget(keys)
                self._pending.delete("true")

    def write(self, pictures: Sequence[Picture], regions: Regions | None) -> None:
        """Puts pictures with their regions in the place of whatever was known under their keys.

        A table changes in one commit, so that on a full disk what was known stays. A kill may come between two: the
        first commit names the pictures, so that ``recover`` knows.
        """
        keys = [picture.key for picture in pictures]
        rows = [{field: getattr(picture, field) for field in Picture.__slots__} for picture in pictures]
        with self._told("written"):
            self._pending.add(self._pa.table({"key": keys}))
            known = self._pictures.count_rows(_among("key", keys)) > 0
            if regions is not None and len(regions):
                self._put(self._regions, self._table(regions), _among("picture", keys) if known else "")
            elif known:
                self._regions.delete(_among("picture", keys))
            added = self._pa.Table.from_pylist(rows, schema=self._pictures.schema)
            self._put(self._pictures, added, _among("key", keys) if known else "")
            self._pending.delete("true")

    def remove(self, keys: Sequence[str]) -> None:
        """Forgets pictures with their regions."""
        with self._told("written"):
            for start in range(0, len(keys), BATCH):
                part = list(keys[start : start + BATCH])
                self._pending.add(self._pa.table({"key": part}))
                self._forget(part)
                self._pending.delete("true")

    def keep(self, image_id: str, content: bytes) -> None:
        """Keeps the bytes of an upload."""
        if self.content(image_id) is None:
            with self._told("written"):
                rows = [{"image_id": image_id, "content": content}]
                self._uploads.add(self._pa.Table.from_pylist(rows, schema=self._uploads.schema))

    def content(self, image_id: str) -> bytes | None:
        """The bytes of an upload, None if there are none of that name."""
        with self._told("read"):
            found = self._uploads.search().where(f"image_id = {_quote(image_id)}").limit(1).to_arrow()
        return found["content"][0].as_py() if len(found) else None

    def settle(self) -> None:
        """After writing: compacts the files and brings the search index up to date."""
        with self._told("written"):
            for table in (self._pictures, self._pending, self._uploads, self._regions):
                table.optimize(cleanup_older_than=KEEP_VERSIONS)
            self._index()

    def close(self) -> None:
        """Lets go of the tables."""
        for table in (self._pictures, self._pending, self._uploads, self._regions):
            with contextlib.suppress(Exception):
                table.close()

    def _index(self) -> None:
        """Trains the index over the vectors when it is first worth it, and anew when the archive has become another."""
        n = self._regions.count_rows()
        trained = {index.name: int(index.name.rpartition("_")[2]) for index in self._regions.list_indices()}
        if n < INDEX_FROM or any(n < GROWN * size for size in trained.values()):
            return
        from lancedb.index import IvfSq

        config = IvfSq(distance_type="cosine", num_partitions=max(1, n // PARTITION), max_iterations=15, sample_rate=64)
        self._regions.create_index("vector", config=config, name=f"vector_of_{n}", replace=True)
        for name in trained:
            self._regions.drop_index(name)

    def _forget(self, keys: Sequence[str]) -> None:
        self._regions.delete(_among("picture", keys))
        self._pictures.delete(_among("key", keys))

    def _put(self, table: Any, rows: Any, instead_of: str) -> None:
        """Adds rows, in the place of all that satisfy a condition, if there is one."""
        if not instead_of:
            table.add(rows)
            return
        change = table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
        change.when_not_matched_by_source_delete(instead_of).execute(rows)

    def _create(self, card: Card, there: set[str]) -> None:
        schemas = _schemas(self._pa, card)
        with self._told("made"):
            for name in TABLES:  # regions last: with them the archive is there
                if name not in there:
                    self._db.create_table(name, schema=schemas[name], exist_ok=True)

    def _table(self, regions: Regions) -> Any:
        pa = self._pa
        vectors = regions.vectors
        columns = {
            "key": regions.keys,
            "picture": regions.picture,
            "number": regions.number,
            "image_id": regions.image_id,
            "path": regions.path,
            "modified": regions.modified,
            "width": regions.width,
            "height": regions.height,
            "box": pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(regions.boxes, np.float32).ravel(), 4),
            "side": regions.sides,
            "objectness": regions.objectness,
            "shift": regions.shift,
            "scale": regions.scale,
            "record": pack(regions),
            "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
        }
        return pa.table(columns, schema=_schemas(pa, self._card)["regions"].remove_metadata())

    def _rows(self, table: Any) -> Regions:
        """Rows of the table "regions" as Regions."""
        columns = unpack(table["record"].to_pylist())
        dim = vector_dim(self._card.embed_dim)
        vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(table), dim)
        return Regions(**columns, embeds=embeds_of(vectors, columns["scale"], self._card.embed_dim))

    @contextlib.contextmanager
    def _told(self, done: str) -> Iterator[None]:
        """Any error of LanceDB as one sentence."""
        try:
            yield
        except ArchiveError:
            raise
        except Exception as error:  # its errors are OSError, ValueError, RuntimeError, ArrowException, …
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ArchiveError(f"{self.uri}: the archive cannot be {done} ({reason})") from error


def _packages() -> tuple[Any, Any]:
    os.environ.setdefault("LANCE_LOG", "error")  # it reports in pages how the training of an index goes
    try:
        import lancedb
        import pyarrow
    except ImportError:
        raise MissingExtraError("an archive in LanceDB", "search") from None
    return lancedb, pyarrow


def _schemas(pa: Any, card: Card) -> dict[str, Any]:
    text, whole = pa.string(), pa.int32()
    return {
        "pictures": pa.schema(
            {
                **dict.fromkeys(("key", "path", "image_id", "stamp"), text),
                "modified": pa.float64(),
                **dict.fromkeys(("width", "height", "n_regions"), whole),
                "uploaded": pa.bool_(),
            }
        ),
        "pending": pa.schema({"key": text}),
        "uploads": pa.schema({"image_id": text, "content": pa.large_binary()}),
        "regions": pa.schema(
            {
                **dict.fromkeys(("key", "picture"), text),
                "number": whole,
                **dict.fromkeys(("image_id", "path"), text),
                "modified": pa.float64(),
                **dict.fromkeys(("width", "height"), whole),
                "box": pa.list_(pa.float32(), 4),
                **dict.fromkeys(("side", "objectness", "shift", "scale"), pa.float32()),
                "record": pa.binary(),
                "vector": pa.list_(pa.float32(), vector_dim(card.embed_dim)),
            },
            metadata={CARD: card.to_json().encode()},
        ),
    }


def _foreign(folder: Path) -> bool:
    """Whether a folder holds anything but the lock of an archive."""
    return folder.is_dir() and any(entry.name != "writer.lock" for entry in folder.iterdir())


def _among(column: str, values: Sequence[str]) -> str:
    return f"{column} in ({', '.join(map(_quote, values))})"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
