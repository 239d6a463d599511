"""Errors of the API as problem documents (RFC 9457): a status, a stable code, and one sentence for a person."""

import json
import logging
import traceback
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from owl_swin.errors import AddressRefusedError, ArchiveError, ImageError, NotFetchedError, OwlSwinError, QueryError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
# Wrong fields that are named in one answer.
MOST_ERRORS = 10

# Every code that the API answers with: (status, title). Programs may rely on both.
CODES = {
    "invalid_http": (400, "Not a request of HTTP/1.1"),
    "invalid_header": (400, "A header cannot be read"),
    "invalid_json": (400, "The body is not JSON"),
    "invalid_multipart": (400, "The body is not multipart/form-data"),
    "invalid_content_length": (400, "The length of the body is not a number"),
    "bad_request": (400, "This cannot be asked"),
    "unauthorized": (401, "A token is needed"),
    "wrong_host": (403, "Not a name of this server"),
    "cross_origin": (403, "Pages of other sites may not ask"),
    "forbidden": (403, "This is kept from visitors"),
    "url_not_allowed": (403, "Pictures are not fetched from there"),
    "not_found": (404, "Nothing is there"),
    "no_archive": (404, "No archive is attached"),
    "no_such_image": (404, "No such picture"),
    "method_not_allowed": (405, "Not with this method"),
    "not_acceptable": (406, "Not offered in this form"),
    "request_timeout": (408, "The request came too slowly"),
    "body_too_large": (413, "The body is too large"),
    "body_too_complex": (413, "The body holds too many values"),
    "unsupported_media_type": (415, "A body of this kind is not read"),
    "encoded_body": (415, "Compressed bodies are not read"),
    "invalid_range": (416, "Not a part of this file"),
    "invalid_request": (422, "A field is wrong"),
    "invalid_image": (422, "A picture cannot be read"),
    "image_too_large": (422, "A picture has too many pixels"),
    "invalid_query": (422, "A query means nothing"),
    "too_many_pixels": (422, "The pictures have too many pixels together"),
    "too_many_images": (422, "Too many pictures"),
    "too_many_tiles": (422, "The pictures have too many tiles together"),
    "too_many_queries": (422, "Too many queries"),
    "url_not_fetched": (422, "A picture could not be fetched"),
    "internal": (500, "The server failed"),
    "busy": (503, "The server is busy"),
    "archive_failed": (503, "The archive cannot be used"),
    "model_stopped": (503, "The model has stopped"),
    "archive_busy": (503, "Another process writes to the archive"),
    "shutting_down": (503, "The server is stopping"),
    "timeout": (504, "The answer took too long"),
}

# Of an error that came with a status alone; others are "bad_request" or "internal".
CODE_OF_STATUS = {
    401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 406: "not_acceptable",
    408: "request_timeout", 413: "body_too_large", 415: "unsupported_media_type", 416: "invalid_range",
    422: "invalid_request", 503: "busy", 504: "timeout",
}  # fmt: skip
ADVICE = {
    "not_found": "no such path; /docs lists what is there",
    "method_not_allowed": "this path answers other methods",
    "internal": "the server failed; its log says why, under this request_id",
}
# Of what another program says of its error.
SAID_CHARS = 300

# Of an error that several kinds describe the first counts.
CODE_OF_ERROR: tuple[tuple[type[OwlSwinError], str], ...] = (
    (AddressRefusedError, "url_not_allowed"),
    (NotFetchedError, "url_not_fetched"),
    (ImageError, "invalid_image"),
    (QueryError, "invalid_query"),
)


class Problem(Exception):
    """An answer that is an error: one of CODES, and what was expected, what came, what to do."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: dict[str, str] | None = None,
        errors: Sequence[dict[str, str]] = (),
    ):
        super().__init__(detail)
        self.code, self.detail, self.headers = code, detail, headers
        self.errors = list(errors)

    @property
    def status(self) -> int:
        """The status of the answer."""
        return CODES[self.code][0]

    def to_dict(self) -> dict[str, Any]:
        """The members of the document."""
        document: dict[str, Any] = {
            "type": "about:blank",
            "title": CODES[self.code][1],
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.errors:
            document["errors"] = self.errors
        return document

    def response(self) -> JSONResponse:
        """The document as an answer."""
        return JSONResponse(self.to_dict(), self.status, headers=self.headers, media_type=MEDIA_TYPE)


def busy(detail: str, retry_after_s: int) -> Problem:
    """Refuses work for now and says when to come again."""
    return Problem("busy", detail, headers={"Retry-After": str(retry_after_s)})


def timeout(timeout_s: float) -> Problem:
    """Says that the time is over."""
    return Problem("timeout", f"no answer in {timeout_s:g} s; ask for fewer or smaller pictures, or later")


def problem_of(error: OwlSwinError) -> Problem:
    """The problem that an error of the library is. Of an archive that fails, why and where it lies goes to the log."""
    if isinstance(error, ArchiveError):
        log.error("%s", error)
        return Problem("archive_failed", "the archive cannot be used at present; the server's log says why")
    for kind, code in CODE_OF_ERROR:
        if isinstance(error, kind):
            return Problem(code, str(error))
    return Problem("invalid_request", str(error))


def problem_of_http(error: HTTPException) -> Problem:
    """The problem of an error that the routing raises: a path or a method that is not there."""
    if error.status_code == 405:
        return Problem(
            "method_not_allowed", "this path answers other methods; see Allow", headers=dict(error.headers or {})
        )
    if error.status_code == 404:
        return Problem("not_found", "no such path; /docs lists what is there")
    return Problem("invalid_request", str(error.detail))


def problem_of_answer(status: int, said: bytes) -> Problem:
    """The problem of an error that another program, such as Gradio, has answered with ``said``.

    Of a failure nothing is repeated, as that may hold what is inside.
    """
    code = CODE_OF_STATUS.get(status, "bad_request" if status < 500 else "internal")
    detail: Any = None
    if code != "internal":
        try:
            document = json.loads(said)
            detail = document.get("detail") or document.get("error")
        except (ValueError, AttributeError, RecursionError):
            detail = said.decode("utf-8", "replace") if said[:1] not in (b"<", b"{", b"[", b'"') else None
    if isinstance(detail, list) and detail and all(isinstance(one, dict) and "loc" in one for one in detail):
        return problem_of_fields([{"msg": "wrong", **one} for one in detail])
    generic = status in (404, 405) or not isinstance(detail, str) or not detail.strip()
    return Problem(code, ADVICE.get(code, CODES[code][1]) if generic else detail.strip()[:SAID_CHARS])


def failure(error: BaseException, scope: Scope) -> Problem:
    """The problem of an error that is a mistake of ours. Why goes to the log, with what the request is called."""
    log.error("%s: %r %r failed\n%s", scope["request_id"], scope["method"], scope["path"], _traceback(error))
    return Problem("internal", ADVICE["internal"])


def _traceback(error: BaseException) -> str:
    """A traceback for the log. Messages stand in quotes, so that what a client sent begins no line of its own."""
    parts: list[str] = []
    seen: set[int] = set()
    chain: BaseException | None = error
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        frames = "".join(traceback.format_tb(chain.__traceback__))
        parts.append(f"{frames}{type(chain).__name__}: {str(chain)[:2000]!r}")
        chain = chain.__cause__ or chain.__context__
    return "\nraised while handling:\n".join(parts)


def problem_of_validation(error: ValidationError) -> Problem:
    """What is wrong with a JSON body: 400 where it is no JSON at all, else 422 and each wrong field."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(one["type"] == "json_invalid" for one in found):
        return Problem("invalid_json", found[0]["msg"])
    return problem_of_fields(found)


def problem_of_fields(found: Sequence[Any]) -> Problem:
    """What is wrong with fields, as pydantic lists it."""
    errors = [
        {"pointer": pointer(one["loc"]), "detail": one["msg"].removeprefix("Value error, ")}
        for one in found[:MOST_ERRORS]
    ]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Problem("invalid_request", f"{errors[0]['pointer']}: {errors[0]['detail']}{more}", errors=errors)


# Parts of pydantic's locations that are no fields but ways to read one.
NO_FIELDS = {"constrained-float", "text", "object"}


def pointer(location: Sequence[int | str]) -> str:
    """The place of a field as a JSON pointer; strings of the caller are cut, since they may be long."""
    fields = [part for part in location if part not in NO_FIELDS and not str(part).startswith("list[")]
    parts = [str(part)[:80].replace("~", "~0").replace("/", "~1") for part in fields]
    return "#" + "".join(f"/{part}" for part in parts)
