"""Errors of the API as problem documents (RFC 9457): a status, a stable code, and one sentence for a person."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from owl_swin.errors import AddressRefusedError, ArchiveError, ImageError, NotFetchedError, OwlSwinError, QueryError

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
    "unauthorized": (401, "A token is needed"),
    "wrong_host": (403, "Not a name of this server"),
    "cross_origin": (403, "Pages of other sites may not ask"),
    "url_not_allowed": (403, "Pictures are not fetched from there"),
    "not_found": (404, "Nothing is there"),
    "no_archive": (404, "No archive is attached"),
    "no_such_image": (404, "No such picture"),
    "method_not_allowed": (405, "Not with this method"),
    "request_timeout": (408, "The request came too slowly"),
    "body_too_large": (413, "The body is too large"),
    "body_too_complex": (413, "The body holds too many values"),
    "unsupported_media_type": (415, "A body of this kind is not read"),
    "encoded_body": (415, "Compressed bodies are not read"),
    "invalid_request": (422, "A field is wrong"),
    "invalid_image": (422, "A picture cannot be read"),
    "image_too_large": (422, "A picture has too many pixels"),
    "invalid_query": (422, "A query means nothing"),
    "invalid_archive": (422, "The archive cannot do this"),
    "too_many_pixels": (422, "The pictures have too many pixels together"),
    "too_many_images": (422, "Too many pictures"),
    "too_many_queries": (422, "Too many queries"),
    "url_not_fetched": (422, "A picture could not be fetched"),
    "internal": (500, "The server failed"),
    "busy": (503, "The server is busy"),
    "archive_busy": (503, "Another process writes to the archive"),
    "shutting_down": (503, "The server is stopping"),
    "timeout": (504, "The answer took too long"),
}

# Of an error that several kinds describe the first counts.
CODE_OF_ERROR: tuple[tuple[type[OwlSwinError], str], ...] = (
    (AddressRefusedError, "url_not_allowed"),
    (NotFetchedError, "url_not_fetched"),
    (ImageError, "invalid_image"),
    (QueryError, "invalid_query"),
    (ArchiveError, "invalid_archive"),
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
        instance: str = "",
    ):
        super().__init__(detail)
        self.code, self.detail, self.headers = code, detail, headers
        self.errors = list(errors)
        self.instance = instance

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
        if self.instance:
            document["instance"] = self.instance
        return document

    def response(self) -> JSONResponse:
        """The document as an answer."""
        return JSONResponse(self.to_dict(), self.status, headers=self.headers, media_type=MEDIA_TYPE)


def busy(detail: str, retry_after_s: int) -> Problem:
    """Refuses work for now and says when to come again."""
    return Problem("busy", detail, headers={"Retry-After": str(retry_after_s)})


def problem_of(error: OwlSwinError) -> Problem:
    """The problem that an error of the library is."""
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
