"""From the body of a request to its fields and files: checked, found, within limits. No model here."""

import asyncio
import base64
import binascii
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from owl_swin.server.multipart import Part, read_multipart
from owl_swin.server.pictures import content_key
from owl_swin.server.problems import Problem, problem_of_validation
from owl_swin.server.schemas import AnyQuery, Body, ExemplarIn, File, QueryIn, SavedIn
from owl_swin.server.settings import ServerSettings
from owl_swin.server.structure import check_n_values

Model = TypeVar("Model", bound=Body)
Result = TypeVar("Result")

# What is larger is read by another thread, so that the others need not wait.
SMALL_BYTES = 16 * 1024
# Base64 is decoded in parts, a multiple of 4 letters each, so that other threads get their turn.
PART = 2**20


def _yes_or_no(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"expected true or false, got {text[:80]!r}")
    return text == "true"


def _number_or_model(text: str) -> float | str:
    return text if text == "model" else float(text)


# Plain fields of a form, for callers who write no JSON: how each is read.
FORM_FIELDS: dict[str, Callable[[str], Any]] = {
    "threshold": float,
    "nms_iou": _number_or_model,
    "box_voting": _yes_or_no,
    "rivals": _number_or_model,
    "nms_across": _yes_or_no,
    "objectness": float,
    "top_k": int,
    "masks": _yes_or_no,
    "tile": int,
    "overlap": float,
    "limit": int,
    "offset": int,
    "path_glob": str,
    "like_region": str,
    "per_image": int,
    "newer_than": float,
    "older_than": float,
    "min_side_px": float,
    "exact": _yes_or_no,
}


@dataclass(frozen=True, slots=True)
class Blob:
    """A file that came with the request: its bytes, and what answers call it."""

    content: bytes
    name: str
    where: str


@dataclass(frozen=True, slots=True)
class ExemplarFile:
    """An exemplar: a file and the box in it."""

    blob: Blob
    box_xyxy: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class QueryParts:
    """One query with its files at hand."""

    name: str
    texts: tuple[str, ...]
    exemplars: tuple[ExemplarFile, ...]
    negatives: tuple[str | ExemplarFile, ...]
    weight: float

    def key(self) -> bytes:
        """Hash of everything that decides its embeddings."""

        def identity(part: str | ExemplarFile) -> list:
            return ["text", part] if isinstance(part, str) else [content_key(part.blob.content).hex(), part.box_xyxy]

        parts = [self.name, self.texts, [identity(e) for e in self.exemplars], [identity(n) for n in self.negatives]]
        return hashlib.sha256(json.dumps([*parts, self.weight]).encode()).digest()

    def all_exemplars(self) -> list[ExemplarFile]:
        """All its exemplars, negative ones too."""
        return [*self.exemplars, *(part for part in self.negatives if isinstance(part, ExemplarFile))]


# A query, or the bytes of a file of saved ones.
QuerySource = QueryParts | Blob


@dataclass(frozen=True, slots=True)
class Form:
    """A body taken apart: its JSON, and the uploaded files."""

    json: bytes
    images: tuple[Part, ...] = ()
    files: tuple[Part, ...] = ()


def take_apart(body: bytes, content_type: str, *, one_query: bool = False) -> Form:
    """JSON, or a form of the parts ``request`` (JSON), ``images``, ``files``, ``query`` and the plain fields.

    The parts ``query`` become the list ``queries`` of the JSON, or with ``one_query`` its only ``query``.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return Form(body)
    if kind != "multipart/form-data":
        raise Problem("unsupported_media_type", f"expected application/json or multipart/form-data, got {kind[:80]!r}")
    parts = read_multipart(body, content_type)
    named: dict[str, list[Part]] = {}
    for part in parts:
        named.setdefault(part.name, []).append(part)
    images, files = named.pop("images", []), named.pop("files", [])
    fields = _form_fields(named, one_query)
    requests = named.pop("request", [])
    if len(requests) > 1 or (requests and fields):
        raise Problem("invalid_request", 'a form has one part "request", or plain fields in its place')
    if named:
        known = ", ".join(("request", "images", "files", "query", *FORM_FIELDS))
        raise Problem("invalid_request", f"unknown part {next(iter(named))[:80]!r}; a form has {known}")
    return Form(requests[0].content if requests else json.dumps(fields).encode(), tuple(images), tuple(files))


def _form_fields(named: dict[str, list[Part]], one_query: bool) -> dict[str, Any]:
    """The plain fields, which are taken out of ``named``."""
    fields: dict[str, Any] = {}
    try:
        if "query" in named:
            texts = [part.content.decode() for part in named.pop("query")]
            if one_query and len(texts) > 1:
                raise Problem("invalid_request", f"the field query comes {len(texts)} times, a search is for one")
            fields |= {"query": texts[0]} if one_query else {"queries": texts}
        for field, read in FORM_FIELDS.items():
            if field in named:
                parts = named.pop(field)
                if len(parts) > 1:
                    raise Problem("invalid_request", f"the field {field} comes {len(parts)} times")
                fields[field] = read(parts[0].content[:2000].decode())
    except ValueError as error:
        raise Problem("invalid_request", f"a field of the form cannot be read: {str(error)[:200]}") from None
    return fields


def parse(model: type[Model], content: bytes, max_values: int) -> Model:
    """The fields of a request, checked; of a body with more values than that nothing is read."""
    check_n_values(content, max_values)
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise problem_of_validation(error) from None


class Reader:
    """Finds the files of one request and holds the limits.

    ``fetch`` gets the bytes at a URL, and ``hold`` counts them until ``release`` is called. ``in_thread`` runs what
    takes a while.
    """

    def __init__(
        self,
        form: Form,
        settings: ServerSettings,
        *,
        fetch: Callable[[str], Awaitable[bytes]],
        hold: Callable[[int], None],
        in_thread: Callable[[Callable[[], bytes]], Awaitable[bytes]],
    ):
        self._form, self._settings, self._fetch, self._hold = form, settings, fetch, hold
        self._in_thread = in_thread
        self._held_bytes = 0

    def release(self) -> None:
        """What was fetched is not needed any more."""
        self._hold(-self._held_bytes)
        self._held_bytes = 0

    def n_pictures(self, listed: Sequence[File]) -> int:
        """How many pictures there are, without reading one; none, or too many, raise Problem."""
        if listed and self._form.images:
            raise Problem("invalid_request", 'pictures stand in the JSON or in the parts "images", not in both')
        n = len(listed) or len(self._form.images)
        if not n:
            raise Problem("invalid_request", 'no picture: send parts "images" in a form, or "images" in JSON')
        if n > self._settings.max_images:
            raise Problem("too_many_images", f"got {n} pictures, at most {self._settings.max_images} a request")
        return n

    def named_pictures(self, listed: Sequence[File]) -> list[tuple[str, Callable[[], Awaitable[Blob]]]]:
        """The pictures of the form, or those of the JSON, in order: what each is called, and what reads it."""
        self.n_pictures(listed)
        if self._form.images:
            parts = enumerate(self._form.images)
            blobs = [Blob(p.content, (p.filename or f"images[{i}]")[:255], f"images[{i}]") for i, p in parts]
            return [(blob.name, partial(_there, blob)) for blob in blobs]
        wheres = [f"images[{i}]" for i in range(len(listed))]
        named = zip(listed, wheres, strict=True)
        return [(one.name or (one.url or where)[:255], partial(self._blob, one, where)) for one, where in named]

    async def pictures(self, listed: Sequence[File]) -> list[Blob]:
        """The pictures, in order."""
        return await all_of([read() for _, read in self.named_pictures(listed)])

    async def queries(self, listed: Sequence[AnyQuery] | None) -> list[QuerySource] | None:
        """The queries with their files."""
        if listed is None:
            return None
        if not listed:
            raise Problem("invalid_query", "the list of queries is empty; leave it out to find anything")
        self._check_queries(listed)
        return [await self._query(one, f"queries[{i}]") for i, one in enumerate(listed)]

    def _check_queries(self, listed: Sequence[AnyQuery]) -> None:
        limits = self._settings
        texts = [one for one in listed if isinstance(one, str)]
        full = [one for one in listed if isinstance(one, QueryIn)]
        for one in full:
            texts += [*one.texts, *(part for part in one.negatives if isinstance(part, str))]
        n_exemplars = sum(len(q.exemplars) + sum(isinstance(p, ExemplarIn) for p in q.negatives) for q in full)
        if max(len(listed), len(texts)) > limits.max_queries:
            n = max(len(listed), len(texts))
            raise Problem("too_many_queries", f"got {n} queries or texts, at most {limits.max_queries} a request")
        n_saved = sum(isinstance(one, SavedIn) for one in listed)
        if n_saved > limits.max_exemplars:  # each is a file to read, as an exemplar is
            raise Problem("too_many_queries", f"got {n_saved} saved files, at most {limits.max_exemplars} a request")
        if n_exemplars > limits.max_exemplars:
            raise Problem("too_many_queries", f"got {n_exemplars} exemplars, at most {limits.max_exemplars} a request")
        for text in texts:
            if len(text) > limits.max_query_chars:
                raise Problem(
                    "invalid_query", f"a text has {len(text)} characters, at most {limits.max_query_chars} are read"
                )

    async def _query(self, one: AnyQuery, where: str) -> QuerySource:
        if isinstance(one, str):
            return QueryParts(one, (one,), (), (), 0.5)
        if isinstance(one, SavedIn):
            return await self._blob(one.saved, f"{where}.saved")
        exemplars = [
            await self._exemplar(exemplar, f"{where}.exemplars[{i}]") for i, exemplar in enumerate(one.exemplars)
        ]
        negatives = [
            part if isinstance(part, str) else await self._exemplar(part, f"{where}.negatives[{i}]")
            for i, part in enumerate(one.negatives)
        ]
        name = one.name
        if name is None:
            name = one.texts[0] if one.texts else label_of(one.exemplars[0].image) if one.exemplars else "query"
        return QueryParts(name, tuple(one.texts), tuple(exemplars), tuple(negatives), one.weight)

    async def _exemplar(self, exemplar: ExemplarIn, where: str) -> ExemplarFile:
        return ExemplarFile(
            await self._blob(exemplar.image, where), None if exemplar.box is None else tuple(exemplar.box)
        )

    async def _blob(self, file: File, where: str) -> Blob:
        if file.url is not None:
            content = await self._fetch(file.url)
            self._hold(len(content))
            self._held_bytes += len(content)
            return Blob(content, file.name or file.url[:255], where)
        if file.content is not None:
            decode = partial(_decoded, file.content, where)
            content = decode() if len(file.content) <= SMALL_BYTES else await self._in_thread(decode)
            return Blob(content, file.name or where, where)
        found = [part for part in self._form.files if part.filename == file.file]
        if len(found) != 1:
            name = (file.file or "")[:80]
            raise Problem(
                "invalid_request", f'{where}: {len(found)} parts "files" have the filename {name!r}, expected 1'
            )
        return Blob(found[0].content, file.name or (file.file or where), where)


def label_of(image: File) -> str:
    """What the thing in an exemplar is called whose query has no name: as its file without its suffix, if that has one.

    It is what the command line calls it, or a bare Exemplar.
    """
    path = image.name or image.file or (urlsplit(image.url).path if image.url else "")
    stem = PurePosixPath(unquote(path).replace("\\", "/")).stem
    return stem if stem.strip(". ") else "exemplar"


async def all_of(awaitables: Sequence[Awaitable[Result]]) -> list[Result]:
    """All results; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(one) for one in awaitables]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _there(blob: Blob) -> Blob:
    return blob


def _decoded(content: str, where: str) -> bytes:
    """The bytes of base64, or of a data: URL in base64."""
    if content.startswith("data:"):
        head, _, content = content.partition(",")
        if not head.endswith(";base64"):
            raise Problem("invalid_request", f"{where}: a data: URL must be in base64")
    parts = [content[start : start + PART] for start in range(0, len(content), PART)]
    try:
        if any(part.endswith("=") for part in parts[:-1]):
            raise ValueError("padding before the end")
        return b"".join([base64.b64decode(part, validate=True) for part in parts])
    except (binascii.Error, ValueError):
        raise Problem("invalid_request", f"{where}: the content is not base64") from None
