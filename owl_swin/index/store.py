"""The interface between the archive and what keeps it, and the rows that cross it. Stores know no model.

An archive is three kinds of rows: pictures (a file, or an upload), their regions, and the bytes of uploads. A store
writes pictures whole: after ``recover`` a picture has all of its regions or is not there.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from owl_swin.errors import ArchiveError, QueryError

if TYPE_CHECKING:
    from owl_swin.tiling import Tiles

FORMAT = "owl_swin-regions-2"
# Bytes of uploads by the names of their contents.
Uploads = Mapping[str, bytes]
# What begins the name of an upload's bytes among the names of pictures that are being written.
UPLOAD = "upload-"
# The ``search_norm`` of archives whose card does not say it.
FIRST_NORM = 16.0


class NoArchiveError(ArchiveError):
    """There is no archive at the place that was named."""

    def __init__(self, uri: str):
        super().__init__(f"{uri}: there is no archive here; `owl-swin index PHOTOS --to {uri}` makes one")


@dataclass(frozen=True, slots=True)
class Card:
    """Which model an archive's regions are of, and how it was shown the pictures.

    ``search_norm`` is the length of every vector that is searched in; ``Regions.vectors`` says why. ``tiles`` are shown
    beside each whole picture.
    """

    model: str
    fingerprint: str
    image_size: int
    embed_dim: int
    search_norm: float = FIRST_NORM
    tiles: "Tiles | None" = None

    def __post_init__(self) -> None:
        if not 0 < self.search_norm < math.inf:
            raise ValueError(f"the vectors of an archive have a positive, finite length, got {self.search_norm}")

    def to_json(self) -> str:
        """The card with the archive's format, as stores keep it."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @staticmethod
    def from_json(uri: str, text: str | bytes | None) -> "Card":
        """The card of ``to_json``; anything else raises ArchiveError."""
        from owl_swin.tiling import Tiles  # with all of torch, which the command line starts without

        try:
            card = json.loads(text or "{}")
            form = card.pop("format", None)
        except (ValueError, AttributeError, TypeError):
            raise ArchiveError(f"{uri}: is no archive of regions, or its description is damaged") from None
        if form != FORMAT:
            raise ArchiveError(
                f"{uri}: is no archive of regions that this version reads (format {form!r}, expected {FORMAT!r}); "
                "make a new one with `owl-swin index`"
            )
        try:
            return Card(
                str(card["model"]),
                str(card["fingerprint"]),
                int(card["image_size"]),
                int(card["embed_dim"]),
                float(card.get("search_norm", FIRST_NORM)),
                Tiles(**card["tiles"]) if card.get("tiles") is not None else None,
            )
        except (KeyError, TypeError, ValueError, QueryError):
            raise ArchiveError(f"{uri}: the archive's description is damaged") from None


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of an archive. ``key`` names its place (a path, or an upload), ``image_id`` its content.

    ``path`` is text that every store can hold (``paths.to_text``). ``stamp`` changes whenever the file may have, ""
    always does. ``modified`` is in seconds since 1970.
    """

    key: str
    path: str
    image_id: str
    stamp: str
    modified: float
    width: int
    height: int
    n_regions: int
    uploaded: bool


@dataclass(frozen=True, slots=True)
class Regions:
    """Rows [N] of stored regions, column by column; ``picture`` is the key of each row's picture.

    ``number`` counts the regions of a picture from 0, ``boxes [N, 4]`` are xyxy pixels, ``embeds [N, E]`` unit
    embeddings.
    """

    picture: np.ndarray[Any, Any]
    number: np.ndarray[Any, Any]
    image_id: np.ndarray[Any, Any]
    path: np.ndarray[Any, Any]
    modified: np.ndarray[Any, Any]
    width: np.ndarray[Any, Any]
    height: np.ndarray[Any, Any]
    boxes: np.ndarray[Any, Any]
    objectness: np.ndarray[Any, Any]
    shift: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]
    embeds: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, keep: Any) -> "Regions":
        """A part of the rows, by mask, indices or slice."""
        return Regions(*(getattr(self, field.name)[keep] for field in fields(self)))

    def vectors(self, search_norm: float) -> np.ndarray[Any, Any]:
        """What stores keep of embedding, shift and scale, to search in: float32 [N, D] of ``vector_dim``.

        A region's logit is (cosine + shift) · scale. The embedding times the scale, and after it shift times scale, is
        a vector whose inner product with a query's embedding and a 1 is just that. One number more gives all vectors
        the same length ``search_norm``, so that the nearest by cosine are the best by score; by cosine of the
        embeddings alone they are not. A vector that is longer without that number is searched for a little less well,
        and scored just as well.

        In float16 they would take half the room, but LanceDB's CPU code compares such vectors more slowly.
        """
        embed_dim = self.embeds.shape[1]
        vectors = np.zeros((len(self), vector_dim(embed_dim)), np.float32)
        vectors[:, :embed_dim] = self.embeds * self.scale.astype(np.float32)[:, None]
        vectors[:, embed_dim] = (self.shift * self.scale).astype(np.float32)
        vectors[:, embed_dim + 1] = np.sqrt(np.maximum(search_norm**2 - (vectors**2).sum(1), 0))
        return vectors

    @property
    def keys(self) -> list[str]:
        """A name for every row that no other row of the archive has."""
        return [f"{picture}-{number:03d}" for picture, number in zip(self.picture, self.number, strict=True)]

    @property
    def sides(self) -> np.ndarray[Any, Any]:
        """The shorter side of every box in pixels."""
        return np.minimum(self.boxes[:, 2] - self.boxes[:, 0], self.boxes[:, 3] - self.boxes[:, 1])

    def of(self, picture: Picture) -> "Regions":
        """The same regions, found in another place."""
        n = len(self)
        return replace(
            self,
            picture=np.full(n, picture.key, object),
            path=np.full(n, picture.path, object),
            modified=np.full(n, picture.modified),
        )

    @staticmethod
    def none() -> "Regions":
        """No rows."""
        columns = {name: np.zeros(0, object) for name in PLAIN_COLUMNS}
        return Regions(**columns, boxes=np.zeros((0, 4), np.float32), embeds=np.zeros((0, 0), np.float32))

    @staticmethod
    def join(parts: Sequence["Regions"]) -> "Regions":
        """All rows of the parts, of which there is at least one, in order."""
        return Regions(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Regions)))


# The columns of Regions that hold one value a row.
PLAIN_COLUMNS = tuple(field.name for field in fields(Regions) if field.name not in ("boxes", "embeds"))


@dataclass(frozen=True, slots=True)
class RegionFilter:
    """Which regions may answer: text that the path is LIKE, bounds of the file's time, shortest side of the box."""

    path_like: str | None = None
    newer_than: float | None = None
    older_than: float | None = None
    min_side_px: float | None = None

    def expression(self, quote: Callable[[str], str]) -> str:
        """The condition in the words that the stores share, or "" for all; ``quote`` writes a text."""
        parts = []
        if self.path_like is not None:
            parts.append(f"path like {quote(self.path_like)}")
        if self.newer_than is not None:
            parts.append(f"modified >= {self.newer_than!r}")
        if self.older_than is not None:
            parts.append(f"modified < {self.older_than!r}")
        if self.min_side_px is not None:
            parts.append(f"side >= {self.min_side_px!r}")
        return " and ".join(parts)


def vector_dim(embed_dim: int) -> int:
    """Length of the vectors of an archive: an embedding and two numbers, filled up with zeros to a multiple of 8."""
    return -(-(embed_dim + 2) // 8) * 8


def embeds_of(vectors: np.ndarray[Any, Any], scale: np.ndarray[Any, Any], embed_dim: int) -> np.ndarray[Any, Any]:
    """The embeddings [N, E] in ``Regions.vectors``."""
    return vectors[:, :embed_dim] / np.maximum(scale.astype(np.float32), 1e-12)[:, None]


class Store(Protocol):
    """What keeps an archive. Everything that goes wrong in one is an ArchiveError with one sentence."""

    uri: str

    def card(self) -> Card:
        """Which model the archive is of."""
        ...

    def count(self) -> tuple[int, int]:
        """Numbers of pictures and of regions."""
        ...

    def pictures(self) -> Iterator[Picture]:
        """All pictures, streamed."""
        ...

    def pictures_of(self, image_id: str) -> list[Picture]:
        """The places of one content."""
        ...

    def regions_of(self, image_id: str) -> Regions:
        """The regions of one content, in all of its places."""
        ...

    def scan(self, where: RegionFilter) -> Iterator[Regions]:
        """All regions that satisfy ``where``, streamed."""
        ...

    def nearest(self, vector: np.ndarray[Any, Any], k: int, where: RegionFilter, probes: int | None = None) -> Regions:
        """About the ``k`` regions whose vectors have the highest cosine to ``vector [D]``.

        ``probes`` is how many partitions of the index are read, None as many as do for most; a store may take no
        notice.
        """
        ...

    def recover(self) -> None:
        """Takes away what a writer that was killed left unfinished. For the one writer, before it writes."""
        ...

    def write(self, pictures: Sequence[Picture], regions: Regions | None, uploads: Uploads | None = None) -> None:
        """Puts pictures with their regions in the place of whatever was known under their keys.

        ``uploads`` holds the bytes of those that are uploads; keeping them twice is keeping them once.
        """
        ...

    def remove(self, keys: Sequence[str], uploads: Sequence[str] = ()) -> None:
        """Forgets pictures with their regions, and the bytes of uploads by the names of their contents."""
        ...

    def content(self, image_id: str) -> bytes | None:
        """The bytes of an upload, None if there are none of that name."""
        ...

    def unsettled(self) -> int:
        """About how many writes have not been settled, as far as the store does not do so by itself."""
        ...

    def settle(self) -> None:
        """After writing: compacts the files and brings the search index up to date."""
        ...

    def close(self) -> None:
        """Lets go of what the store holds."""
        ...
