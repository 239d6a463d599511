"""An archive in LanceDB: a folder on disk, or a place in object storage."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.errors import ArchiveError, MissingExtraError
from owl_swin.index.lock import only_writer
from owl_swin.index.record import pack, unpack
from owl_swin.index.store import (
    UPLOAD,
    Card,
    NoArchiveError,
    Picture,
    RegionFilter,
    Regions,
    Uploads,
    embeds_of,
    vector_dim,
)

CARD = b"owl_swin"
# Rows that are read at a time.
BATCH = 8192
# Below this many regions comparing with all of them is quicker than an index.
INDEX_FROM = 20_000
# Regions of one partition of the index, and the partitions that a search reads: `owl-swin bench search` compares. The
# index compares vectors of 8 bits a number; what it brings is scored anew from the whole ones.
PARTITION = 1000
PROBES = 240
# An index is trained anew when the archive has so many times the regions; until then new ones are put in the old.
GROWN = 3
# Versions older than this are deleted: readers of other processes have long moved on.
KEEP_VERSIONS = timedelta(hours=1)
# The columns that make Regions; the others are to filter by, and for those who read the table without owl_swin. Reading
# one column of records is quicker than reading a dozen columns.
READ = ("record", "vector")
TABLES = ("pictures", "pending", "uploads", "regions")
# Where in its own source an error of LanceDB came up.
RUST_PLACE = re.compile(r",? ?/[^ ,]+\.rs:[0-9]+:[0-9]+")


class LanceStore:
    """The store of a folder or object-storage URI. Each change of a table is one atomic commit of LanceDB.

    In object storage there is no lock that holds between machines, and ``recover`` undoes the writing of all: one
    machine at a time may write there.
    """

    def __init__(self, uri: str, *, create: Card | None):
        """Opens the archive; makes an empty one of that card first where ``create`` says so and there is none."""
        lancedb, self._pa = _packages()
        local = "://" not in uri
        self.uri = uri = os.path.abspath(uri) if local else uri  # noqa: PTH100 - wherever the process goes meanwhile
        if create is None and local and not Path(uri).is_dir():
            raise NoArchiveError(uri)
        with self._one_sentence("opened"):
            self._db = lancedb.connect(uri, read_consistency_interval=timedelta(0))
            there = self._made()
        if "regions" not in there:
            if create is None:
                raise NoArchiveError(uri)
            if local and not there and _foreign(Path(uri)):
                raise ArchiveError(f"{uri}: is a folder with other things in it; name a new folder for the archive")
            self._create(create)
        with self._one_sentence("opened"):
            self._pictures, self._pending, self._uploads, self._regions = map(self._db.open_table, TABLES)
            metadata = self._regions.schema.metadata or {}
        self._card = Card.from_json(uri, metadata.get(CARD))

    def card(self) -> Card:
        """Which model the archive is of."""
        return self._card

    def count(self) -> tuple[int, int]:
        """Numbers of pictures and of regions."""
        with self._one_sentence("read"):
            return self._pictures.count_rows(), self._regions.count_rows()

    def pictures(self) -> Iterator[Picture]:
        """All pictures, streamed."""
        with self._one_sentence("read"):
            for batch in self._pictures.search().to_batches(BATCH):
                yield from (Picture(**row) for row in batch.to_pylist())

    def pictures_of(self, image_id: str) -> list[Picture]:
        """The places of one content."""
        with self._one_sentence("read"):
            rows = self._pictures.search().where(f"image_id = {_quote(image_id)}").to_arrow().to_pylist()
        return [Picture(**row) for row in rows]

    def regions_of(self, image_id: str) -> Regions:
        """The regions of one content, in all of its places."""
        with self._one_sentence("read"):
            found = self._regions.search().where(f"image_id = {_quote(image_id)}").select(list(READ))
            return self._rows(found.to_arrow())

    def scan(self, where: RegionFilter) -> Iterator[Regions]:
        """All regions that satisfy ``where``, streamed."""
        with self._one_sentence("read"):
            query = self._regions.search().select(list(READ))
            condition = where.expression(_quote)
            for batch in (query.where(condition) if condition else query).to_batches(BATCH):
                yield self._rows(self._pa.Table.from_batches([batch]))

    def nearest(self, vector: np.ndarray[Any, Any], k: int, where: RegionFilter, probes: int | None = None) -> Regions:
        """About the ``k`` regions whose vectors have the highest cosine to ``vector [D]``."""
        with self._one_sentence("searched"):
            query = (
                self._regions.search(vector.astype(np.float32), vector_column_name="vector").metric("cosine").limit(k)
            )
            query = query.nprobes(probes or PROBES).select([*READ, "_distance"])
            if probes is None:  # a narrow condition may leave fewer than k in those; then the others are read too
                query = query.maximum_nprobes(0)
            condition = where.expression(_quote)
            return self._rows((query.where(condition) if condition else query).to_arrow())

    def recover(self) -> None:
        """Takes away what a writer that was killed left unfinished."""
        with self._one_sentence("written"):
            keys = self._pending.to_arrow()["key"].to_pylist()
            if keys:
                self._forget(self._torn([key for key in keys if not key.startswith(UPLOAD)]))
                self._drop([key.removeprefix(UPLOAD) for key in keys if key.startswith(UPLOAD)])
                self._pending.delete("true")

    def write(self, pictures: Sequence[Picture], regions: Regions | None, uploads: Uploads | None = None) -> None:
        """Puts pictures with their regions in the place of whatever was known under their keys.

        A table changes in one commit: where the first fails, as on a full disk, what was known stays. A failure or a
        kill may come between two: a commit before them names the pictures, so that ``recover`` knows which may be torn.
        """
        keys = [picture.key for picture in pictures]
        rows = [{field: getattr(picture, field) for field in Picture.__slots__} for picture in pictures]
        with self._one_sentence("written"):
            self._mark(keys, list(uploads or ()))
            if uploads:
                self._keep(uploads)
            known = self._pictures.count_rows(_among("key", keys)) > 0
            if regions is not None and len(regions):
                self._put(self._regions, self._table(regions), _among("picture", keys) if known else "")
            elif known:
                self._regions.delete(_among("picture", keys))
            added = self._pa.Table.from_pylist(rows, schema=self._pictures.schema)
            self._put(self._pictures, added, _among("key", keys) if known else "")
            self._pending.delete("true")

    def remove(self, keys: Sequence[str], uploads: Sequence[str] = ()) -> None:
        """Forgets pictures with their regions, and the bytes of uploads by the names of their contents."""
        with self._one_sentence("written"):
            for start in range(0, max(len(keys), len(uploads)), BATCH):
                part = slice(start, start + BATCH)
                self._mark(keys[part], uploads[part])
                self._forget(keys[part])
                self._drop(uploads[part])
                self._pending.delete("true")

    def content(self, image_id: str) -> bytes | None:
        """The bytes of an upload, None if there are none of that name."""
        with self._one_sentence("read"):
            found = self._uploads.search().where(f"image_id = {_quote(image_id)}").limit(1).to_arrow()
        return found["content"][0].as_py() if len(found) else None

    def unsettled(self) -> int:
        """About how many writes have not been settled: what is, lies in few large files."""
        with self._one_sentence("read"):
            return int(self._regions.stats()["fragment_stats"]["num_small_fragments"])

    def settle(self) -> None:
        """After writing: compacts the files and brings the search index up to date."""
        with self._one_sentence("written"):
            for table in (self._pictures, self._pending, self._uploads, self._regions):
                if table is not self._uploads or self._worth_compacting(table):
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
        if n >= INDEX_FROM and all(n >= GROWN * size for size in trained.values()):
            from lancedb.index import IvfSq

            n_partitions = max(1, n // PARTITION)
            config = IvfSq(distance_type="cosine", num_partitions=n_partitions, max_iterations=15, sample_rate=64)
            self._regions.create_index("vector", config=config, name=f"vector_of_{n}", replace=True)
            trained[f"vector_of_{n}"] = n
        for name in sorted(trained, key=trained.__getitem__)[:-1]:  # also one that a kill kept from being dropped
            self._regions.drop_index(name)

    def _worth_compacting(self, uploads: Any) -> bool:
        """Whether uploads have grown or shrunk by a quarter: all of their bytes are written anew. Where one file holds
        them, few are, and the files of old versions go."""
        fragments = uploads.stats()["fragment_stats"]
        largest = fragments["lengths"]["max"]
        return bool(fragments["num_fragments"] == 1 or 4 * abs(uploads.count_rows() - largest) >= largest)

    def _mark(self, keys: Sequence[str], uploads: Sequence[str]) -> None:
        """Names what is being written or taken away."""
        self._pending.add(self._pa.table({"key": [*keys, *(UPLOAD + image_id for image_id in uploads)]}))

    def _torn(self, keys: Sequence[str]) -> list[str]:
        """Of the pictures of these keys those that have not just the regions that are theirs."""
        if not keys:
            return []
        regions = self._regions.search().where(_among("picture", keys)).select(["picture", "image_id"]).to_arrow()
        there = Counter(zip(regions["picture"].to_pylist(), regions["image_id"].to_pylist(), strict=True))
        pictures = self._pictures.search().where(_among("key", keys)).to_arrow().to_pylist()
        expected = {(picture["key"], picture["image_id"]): picture["n_regions"] for picture in pictures}
        return sorted({one[0] for one in {*there, *expected} if there[one] != expected.get(one, 0)})

    def _forget(self, keys: Sequence[str]) -> None:
        if keys:
            self._regions.delete(_among("picture", keys))
            self._pictures.delete(_among("key", keys))

    def _keep(self, uploads: Uploads) -> None:
        """Keeps bytes that are not kept yet."""
        found = self._uploads.search().where(_among("image_id", list(uploads))).select(["image_id"]).to_arrow()
        missing = uploads.keys() - set(found["image_id"].to_pylist())
        if missing:
            rows = [{"image_id": image_id, "content": uploads[image_id]} for image_id in sorted(missing)]
            self._uploads.add(self._pa.Table.from_pylist(rows, schema=self._uploads.schema))

    def _drop(self, uploads: Sequence[str]) -> None:
        """Deletes the bytes of those contents of which no upload is left."""
        if not uploads:
            return
        still_used = self._pictures.search().where(f"uploaded and {_among('image_id', uploads)}").select(["image_id"])
        gone = set(uploads) - set(still_used.to_arrow()["image_id"].to_pylist())
        if gone:
            self._uploads.delete(_among("image_id", sorted(gone)))

    def _put(self, table: Any, rows: Any, instead_of: str) -> None:
        """Adds rows, in the place of all that satisfy a condition, if there is one."""
        if not instead_of:
            table.add(rows)
            return
        change = table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
        change.when_not_matched_by_source_delete(instead_of).execute(rows)

    def _made(self) -> set[str]:
        """The tables that are there. One whose making was killed is a folder that has no version yet."""
        names = set(self._db.list_tables().tables)
        if "://" in self.uri:
            return names
        return {name for name in names if any(Path(self.uri, f"{name}.lance").glob("_versions/*.manifest"))}

    def _create(self, card: Card) -> None:
        """Makes what is not there yet, alone; another process may have been quicker, or was killed while doing it."""
        schemas = _schemas(self._pa, card)
        with only_writer(self.uri, wait=True), self._one_sentence("made"):
            there = self._made()
            for name in TABLES:  # regions last: with them the archive is there
                if name not in there:
                    self._db.create_table(name, schema=schemas[name], exist_ok=True)

    def _table(self, regions: Regions) -> Any:
        pa = self._pa
        vectors = regions.vectors(self._card.search_norm)
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
    def _one_sentence(self, done: str) -> Iterator[None]:
        """Any error of LanceDB as one sentence."""
        try:
            yield
        except ArchiveError:
            raise
        except Exception as error:  # its errors are OSError, ValueError, RuntimeError, ArrowException, …
            text = RUST_PLACE.sub("", " ".join(str(error).split()))
            reason = text[:300] or type(error).__name__
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
    """Whether a folder holds anything but the lock of an archive, and tables whose making was begun."""
    own = {"writer.lock", *(f"{name}.lance" for name in TABLES)}
    return folder.is_dir() and any(entry.name not in own for entry in folder.iterdir())


def _among(column: str, values: Sequence[str]) -> str:
    return f"{column} in ({', '.join(map(_quote, values))})"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
