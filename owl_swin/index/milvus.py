"""An archive in Milvus, on a server or in the one file of Milvus Lite."""

import base64
import contextlib
import logging
import os
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.errors import ArchiveError, MissingExtraError
from owl_swin.index.store import (
    PLAIN_COLUMNS,
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

# Rows in one message: with its texts a region has about 2 kB, and servers take messages of at most 64 MB.
ROWS = 1000
# Keys in one condition.
KEYS = 256
# Bytes of an upload in one row: in base64 they are just less than the longest text that Milvus keeps.
CHUNK = 48_000
LONGEST_TEXT = 65_535
# The variable that holds "user:password" or an API key, for servers that want one.
TOKEN = "MILVUS_TOKEN"

_SERVER = re.compile(r"milvus://([^/@]+)/([A-Za-z_]\w*)")
_FILE = re.compile(r"milvus://(/.+\.db)/([A-Za-z_]\w*)")


class MilvusStore:
    """The store of "milvus://host:19530/collection" or "milvus:///path/file.db/collection".

    The collection holds the regions; two more beside it the pictures, and notes: the card, names of pictures that are
    being written, and uploads in pieces. Milvus has no transactions: every row has a fixed key and is written over
    itself, so that doing something twice is doing it once.
    """

    def __init__(self, uri: str, *, create: Card | None):
        """Opens the archive; makes an empty one of that card first where ``create`` says so and there is none."""
        self.uri = uri
        self._place, self._regions = _parsed(uri)
        self._lite = self._place.endswith(".db")
        self._pictures, self._notes = f"{self._regions}_pictures", f"{self._regions}_notes"
        self._host = platform.node()
        if create is None and self._lite and not Path(self._place).exists():
            raise NoArchiveError(uri)
        self._client = self._connect()
        with self._one_sentence("opened"):
            there = self._client.has_collection(self._notes)
            if there:
                self._client.load_collection(self._notes)
            cards = self._rows(self._notes, 'key == "card"', ["text"]) if there else []
        if not cards:
            if create is None:
                self.close()
                raise NoArchiveError(uri)
            with self._one_sentence("made"):
                self._create(create)
            cards = [{"text": create.to_json()}]
        self._card = Card.from_json(uri, cards[0]["text"])
        with self._one_sentence("opened"):
            for name in (self._regions, self._pictures, self._notes):
                self._client.load_collection(name)

    def card(self) -> Card:
        """Which model the archive is of."""
        return self._card

    def count(self) -> tuple[int, int]:
        """Numbers of pictures and of regions."""
        with self._one_sentence("read"):
            n = [self._client.query(c, filter="", output_fields=["count(*)"]) for c in (self._pictures, self._regions)]
            return int(n[0][0]["count(*)"]), int(n[1][0]["count(*)"])

    def pictures(self) -> Iterator[Picture]:
        """All pictures, streamed."""
        with self._one_sentence("read"):
            for rows in self._iterate(self._pictures, "", list(Picture.__slots__)):
                yield from map(_picture, rows)

    def pictures_of(self, image_id: str) -> list[Picture]:
        """The places of one content."""
        with self._one_sentence("read"):
            return list(map(_picture, self._rows(self._pictures, f"image_id == {_quote(image_id)}", Picture.__slots__)))

    def regions_of(self, image_id: str) -> Regions:
        """The regions of one content, in all of its places."""
        with self._one_sentence("read"):
            return self._as_regions(self._rows(self._regions, f"image_id == {_quote(image_id)}", COLUMNS))

    def scan(self, where: RegionFilter) -> Iterator[Regions]:
        """All regions that satisfy ``where``, streamed."""
        with self._one_sentence("read"):
            for rows in self._iterate(self._regions, where.expression(_quote), list(COLUMNS)):
                yield self._as_regions(rows)

    def nearest(self, vector: np.ndarray[Any, Any], k: int, where: RegionFilter, probes: int | None = None) -> Regions:
        """About the ``k`` regions whose vectors have the highest cosine to ``vector [D]``."""
        with self._one_sentence("searched"):
            (found,) = self._client.search(
                self._regions,
                data=[vector.astype(np.float32).tolist()],
                anns_field="vector",
                limit=k,
                filter=where.expression(_quote),
                output_fields=list(COLUMNS),
            )
            return self._as_regions([hit["entity"] for hit in found])

    def recover(self) -> None:
        """Takes away what a writer on this machine, if it was killed, left unfinished."""
        with self._one_sentence("written"):
            start = f"writing-{self._host}-"
            found = self._rows(self._notes, f"key like {_quote(start + '%')}", ["key", "text"])
            marks = [mark for mark in found if mark["key"].startswith(start)]  # _ in a name stands for any letter
            if marks:
                names = [mark["text"] for mark in marks]
                self._forget([name for name in names if not name.startswith(UPLOAD)])
                self._drop([name.removeprefix(UPLOAD) for name in names if name.startswith(UPLOAD)])
                self._delete(self._notes, "key", [mark["key"] for mark in marks])

    def write(self, pictures: Sequence[Picture], regions: Regions | None, uploads: Uploads | None = None) -> None:
        """Puts pictures with their regions in the place of whatever was known under their keys.

        Notes name them while that goes on. Writers on other machines take no notice of the notes of this one.
        """
        keys = [picture.key for picture in pictures]
        rows = [{field: getattr(picture, field) for field in Picture.__slots__} for picture in pictures]
        with self._one_sentence("written"):
            marks = self._mark([*keys, *(UPLOAD + image_id for image_id in uploads or ())])
            self._forget(keys)
            for image_id, content in (uploads or {}).items():
                self._keep(image_id, content)
            for start in range(0, len(regions) if regions is not None else 0, ROWS):
                self._put(self._regions, _region_rows(regions[slice(start, start + ROWS)], self._card.search_norm))  # type: ignore[index]
            self._put(self._pictures, rows)
            self._delete(self._notes, "key", marks)

    def remove(self, keys: Sequence[str], uploads: Sequence[str] = ()) -> None:
        """Forgets pictures with their regions, and the bytes of uploads by the names of their contents."""
        with self._one_sentence("written"):
            for start in range(0, max(len(keys), len(uploads)), KEYS):
                part = slice(start, start + KEYS)
                marks = self._mark([*keys[part], *(UPLOAD + image_id for image_id in uploads[part])])
                self._forget(keys[part])
                self._drop(uploads[part])
                self._delete(self._notes, "key", marks)

    def content(self, image_id: str) -> bytes | None:
        """The bytes of an upload, None if there are none of that name."""
        with self._one_sentence("read"):
            first = self._rows(self._notes, f"key == {_quote(f'{UPLOAD}{image_id}-0')}", ["text", "n"])
            pieces = [first[0]["text"]] if first else []
            for number in range(1, first[0]["n"] if first else 0):
                (piece,) = self._rows(self._notes, f"key == {_quote(f'{UPLOAD}{image_id}-{number}')}", ["text"])
                pieces.append(piece["text"])
        return b"".join(map(base64.b64decode, pieces)) if pieces else None

    def unsettled(self) -> int:
        """None: Milvus puts rows in files by itself when there are many."""
        return 0

    def settle(self) -> None:
        """After writing: has the rows put in files, where they are indexed."""
        with self._one_sentence("written"):
            for name in (self._regions, self._pictures, self._notes):
                self._client.flush(name)

    def close(self) -> None:
        """Lets go of the connection; a file of Milvus Lite can then be opened by another process."""
        with contextlib.suppress(Exception):
            self._client.close()
        if self._lite:
            _close_file(self._place)

    def _connect(self) -> Any:
        try:
            from pymilvus import MilvusClient
            from pymilvus.exceptions import MilvusException
        except ImportError:
            raise MissingExtraError("an archive in Milvus", "milvus") from None
        lite = self._lite
        if lite:  # which logs errors in full, and what only servers have
            for name in ("pymilvus", "milvus_lite", "grpc"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            client = MilvusClient(self._place, token="" if lite else os.environ.get(TOKEN, ""))
        except (MilvusException, OSError) as error:
            why = "another process has it open, or it is no file of Milvus Lite" if lite else _reason(error)
            raise ArchiveError(f"{self.uri}: the archive cannot be opened ({why})") from None
        if lite:
            _OPEN[self._place] = _OPEN.get(self._place, 0) + 1
        return client

    def _create(self, card: Card) -> None:
        """Three collections and, when they are complete, the card."""
        from pymilvus import DataType

        text, whole, number = DataType.VARCHAR, DataType.INT32, DataType.FLOAT
        place = {"path": text, "image_id": text, "modified": DataType.DOUBLE, "width": whole, "height": whole}
        columns = {
            self._regions: {"picture": text, "number": whole, **place}
            | dict.fromkeys(("x0", "y0", "x1", "y1", "side", "objectness", "shift", "scale"), number),
            self._pictures: {"stamp": text, **place, "n_regions": whole, "uploaded": DataType.BOOL},
            self._notes: {"text": text, "n": whole},
        }
        for name, fields in columns.items():
            if self._client.has_collection(name):
                continue
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("key", text, is_primary=True, max_length=256)
            for field, kind in fields.items():
                schema.add_field(field, kind, **({"max_length": LONGEST_TEXT} if kind is text else {}))
            # Milvus wants a vector in every collection.
            dim = vector_dim(card.embed_dim) if name == self._regions else 2
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
            index = self._client.prepare_index_params()
            index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
            self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
        self._put(self._notes, [{"key": "card", "text": card.to_json(), "n": 1}])

    def _mark(self, keys: Sequence[str]) -> list[str]:
        marks = [f"writing-{self._host}-{key}" for key in keys]
        rows = [{"key": mark, "text": key, "n": 1} for mark, key in zip(marks, keys, strict=True)]
        self._put(self._notes, rows)
        return marks

    def _forget(self, keys: Sequence[str]) -> None:
        self._delete(self._regions, "picture", keys)
        self._delete(self._pictures, "key", keys)

    def _keep(self, image_id: str, content: bytes) -> None:
        pieces = [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]
        for number, piece in reversed(list(enumerate(pieces))):  # the first one last: it says how many there are
            text = base64.b64encode(piece).decode()
            self._put(self._notes, [{"key": f"{UPLOAD}{image_id}-{number}", "text": text, "n": len(pieces)}])

    def _drop(self, uploads: Sequence[str]) -> None:
        """Deletes the bytes of those contents of which no upload is left."""
        for image_id in uploads:
            if not self._rows(self._pictures, f"uploaded == true and image_id == {_quote(image_id)}", ["key"]):
                pieces = self._rows(self._notes, f"key like {_quote(f'{UPLOAD}{image_id}-%')}", ["key"])
                self._delete(self._notes, "key", [piece["key"] for piece in pieces])

    def _put(self, collection: str, rows: list[dict[str, Any]]) -> None:
        filled = rows if collection == self._regions else [{**row, "vector": [1.0, 0.0]} for row in rows]
        for start in range(0, len(filled), ROWS):
            self._client.upsert(collection, filled[start : start + ROWS])

    def _delete(self, collection: str, field: str, values: Sequence[str]) -> None:
        for start in range(0, len(values), KEYS):
            named = ", ".join(map(_quote, values[start : start + KEYS]))
            self._client.delete(collection, filter=f"{field} in [{named}]")

    def _rows(self, collection: str, condition: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        return [row for rows in self._iterate(collection, condition, list(fields)) for row in rows]

    def _iterate(self, collection: str, condition: str, fields: list[str]) -> Iterator[list[dict[str, Any]]]:
        found = self._client.query_iterator(collection, batch_size=ROWS, filter=condition, output_fields=fields)
        try:
            while rows := found.next():
                yield rows
        finally:
            found.close()

    def _as_regions(self, rows: Sequence[dict[str, Any]]) -> Regions:
        """Rows of the collection of regions as Regions."""
        if not rows:
            return Regions.none()
        text = ("picture", "image_id", "path")
        columns = {
            name: np.array([row[name] for row in rows], object if name in text else None) for name in PLAIN_COLUMNS
        }
        boxes = np.array([[row[name] for name in ("x0", "y0", "x1", "y1")] for row in rows], np.float32)
        vectors = np.array([row["vector"] for row in rows], np.float32)
        return Regions(**columns, boxes=boxes, embeds=embeds_of(vectors, columns["scale"], self._card.embed_dim))

    @contextlib.contextmanager
    def _one_sentence(self, done: str) -> Iterator[None]:
        """Any error of Milvus as one sentence."""
        try:
            yield
        except ArchiveError:
            raise
        except Exception as error:  # MilvusException, grpc.RpcError, ValueError, …
            raise ArchiveError(f"{self.uri}: the archive cannot be {done} ({_reason(error)})") from error


# How often each file of Milvus Lite is open in this process, which has one server for it.
_OPEN: dict[str, int] = {}
# The fields of a region's row that make Regions.
COLUMNS = (*PLAIN_COLUMNS, "x0", "y0", "x1", "y1", "vector")


def _parsed(uri: str) -> tuple[str, str]:
    """What to connect to, and the collection."""
    if found := _FILE.fullmatch(uri):
        return os.path.normpath(found[1]), found[2]
    if found := _SERVER.fullmatch(uri):
        return f"http://{found[1]}", found[2]
    raise ArchiveError(
        f"{uri}: an archive in Milvus is milvus://host:19530/collection or milvus:///path/file.db/collection; the "
        "collection's name has letters, digits and _"
    )


def _close_file(place: str) -> None:
    _OPEN[place] -= 1
    if not _OPEN[place]:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(place)


def _picture(row: dict[str, Any]) -> Picture:
    return Picture(**{field: row[field] for field in Picture.__slots__})


def _region_rows(regions: Regions, search_norm: float) -> list[dict[str, Any]]:
    columns: dict[str, list[Any]] = {name: getattr(regions, name).tolist() for name in PLAIN_COLUMNS}
    columns |= {name: regions.boxes[:, i].tolist() for i, name in enumerate(("x0", "y0", "x1", "y1"))}
    columns |= {"key": regions.keys, "side": regions.sides.tolist()}
    columns["vector"] = regions.vectors(search_norm).tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", "") or error).split())[:300] or type(error).__name__


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
