"""The door: who may ask, how much may come in and how slowly. One ASGI layer around the whole application."""

import asyncio
import json
import logging
import time
from collections.abc import MutableMapping
from typing import Any, Protocol

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from owl_swin.errors import OwlSwinError
from owl_swin.server.head import (
    OPEN_PATHS,
    below_root,
    check_head,
    headers_of,
    is_api,
    request_id,
    too_large,
)
from owl_swin.server.multipart import PlainGauge
from owl_swin.server.origins import answer_headers, is_preflight, preflight
from owl_swin.server.problems import MEDIA_TYPE, Problem, failure, problem_of, problem_of_answer
from owl_swin.server.serving import Serving
from owl_swin.server.structure import ValueCounter
from owl_swin.server.uploads import Uploads

access = logging.getLogger("owl_swin.access")

WORK_PATHS = (
    *("/v1/detect", "/v1/segment", "/v1/classify", "/v1/similarity", "/v1/embed", "/v1/search", "/v1/images"),
)
PATHS = frozenset((*WORK_PATHS, "/v1/model", "/docs", *OPEN_PATHS))
# What may hold a connection open only to wait: pages of the demo stream their events.
API = "/v1/"
# Where the pages of the demo send photos. Gradio writes them to disk as they come and bounds each.
UPLOAD = "/gradio_api/upload"
# Most values in the JSON of a page: the names of a folder of some thousand uploads.
PAGE_VALUES = 50_000
# A client that reads nothing may keep an answer for so long.
SEND_TIMEOUT_S = 30.0
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
# Of an error that is no problem document, so many bytes are read for what it says.
ERROR_BYTES = 64 * 1024


class Gauge(Protocol):
    """What reads a body along with who it is for; what it refuses raises Problem."""

    def write(self, data: bytes) -> None: ...


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Guard:
    """Checks the head of every request, counts and times its body, and turns what fails into a problem document."""

    def __init__(self, app: ASGIApp, serving: Serving, uploads: Uploads | None = None):
        """``uploads`` is where the pages of the demo keep what is sent to them; None: there are no such pages."""
        self._app, self._serving, self._settings, self._uploads = app, serving, serving.settings, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope, path = below_root({**scope, "request_id": request_id(scope)}, self._settings.root_path)
        headers = headers_of(scope)
        origin, allowed = headers.get("origin"), self._settings.allow_origins
        mine = [*HEADERS, (b"x-request-id", scope["request_id"].encode())]
        mine += answer_headers(origin, allowed) if is_api(path) else []
        started, answer = time.monotonic(), _Answer(send, mine, scope["request_id"], timed=path.startswith(API))
        try:
            if is_preflight(scope["method"], headers, allowed) and is_api(path):
                await preflight(str(origin), headers, allowed)(scope, receive, answer.send)
            elif not path:  # the root path itself: pages find the rest below it
                await RedirectResponse(f"{self._settings.root_path}/")(scope, receive, answer.send)
            else:
                await self._answer(scope, path, receive, answer)
        except ClientGone:
            answer.status, answer.code = answer.status or 499, "client_gone"
        except Problem as problem:
            await answer.problem(problem)
        except OwlSwinError as error:
            await answer.problem(problem_of(error))
        except Exception as error:
            await answer.problem(failure(error, scope))
        finally:
            seconds = time.monotonic() - started
            self._serving.metrics.on_request(path_of(path), scope["method"], answer.status, answer.code, seconds)
            line = (_client(scope), scope["method"], scope["path"], answer.status, seconds, scope["request_id"])
            access.info("%s %r %r %d %.3f s %s", *line)  # what a client sent stands in quotes

    async def _answer(self, scope: Scope, path: str, receive: Receive, answer: "_Answer") -> None:
        uploads = self._uploads if path == UPLOAD else None
        max_bytes = self._settings.max_body_bytes if uploads is None else self._settings.max_upload_bytes
        check_head(scope, path, self._settings, max_bytes)
        gauge: Gauge | None = None
        if self._uploads is not None and not path.startswith(API):
            gauge = ValueCounter(PAGE_VALUES)  # Gradio reads what comes in the loop that serves everybody
        if uploads is not None:
            gauge = PlainGauge(headers_of(scope).get("content-type", ""))
            length = headers_of(scope).get("content-length", self._settings.max_body_bytes)
            await asyncio.to_thread(uploads.make_room, int(length))
        with _Body(receive, self._serving, max_bytes, gauge, uploads) as body:
            await self._app(scope, body.receive, body.unless_refused(answer.send))


def path_of(path: str) -> str:
    """The route of a request, of which there are only so many, for the figures."""
    if path in PATHS:
        return path
    return "/v1/images/{image_id}" if path.startswith("/v1/images/") else "other"


def _client(scope: Scope) -> str:
    return str((scope.get("client") or ("-",))[0])


class _Body:
    """The body of one request, counted as it comes in: no length that a client claims is believed.

    It stays in memory until the request has ended, or its files go to disk as ``uploads``.
    """

    def __init__(
        self, receive: Receive, serving: Serving, max_bytes: int, gauge: Gauge | None, uploads: Uploads | None
    ):
        self._receive, self._serving, self._settings = receive, serving, serving.settings
        self._max_bytes, self._gauge = max_bytes, gauge
        self._hold = serving.hold if uploads is None else uploads.hold
        self._size = 0
        self._more = True
        self._refused: Problem | None = None
        self._deadline = time.monotonic() + 2 * serving.settings.body_timeout_s

    def __enter__(self) -> "_Body":
        return self

    def __exit__(self, *_: object) -> None:
        self._hold(-self._size)

    async def receive(self) -> Message:
        """The next part of the body; too much, or too slow, raises Problem."""
        if not self._more:
            return await self._receive()
        try:
            return await self._next()
        except Problem as problem:
            self._refused = problem
            raise

    def unless_refused(self, send: Send) -> Send:
        """``send`` for who reads this body: Gradio would answer a Problem with a 500 of its own."""

        async def checked(message: Message) -> None:
            if self._refused is not None:
                raise self._refused
            await send(message)

        return checked

    async def _next(self) -> Message:
        # Beside the pause between two parts, a body must come at 16 KiB a second, also after a quick beginning.
        left = self._deadline - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, min(left, self._settings.body_timeout_s))):
                message = await self._receive()
        except TimeoutError:
            raise Problem("request_timeout", "the body came too slowly", headers={"Connection": "close"}) from None
        content = message.get("body", b"")
        part = len(content)
        if self._size + part > self._max_bytes:
            raise too_large(self._max_bytes)
        self._hold(part)
        self._size += part
        self._deadline = min(self._deadline + part / 16384, time.monotonic() + 2 * self._settings.body_timeout_s)
        if self._gauge is not None:
            self._gauge.write(content)
        self._more = message.get("more_body", False)
        return message


class _Answer:
    """Sends an answer, remembers how it ended, and gives up on a client that reads nothing.

    An error that is no problem document yet, as Gradio and Starlette write them, becomes one.
    """

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]], request_id: str, *, timed: bool):
        self._send, self._headers, self._request_id, self._timed = send, headers, request_id, timed
        self.status = 0
        self.code = ""
        self._error: MutableMapping[str, Any] | None = None  # the head of an error that becomes a problem document
        self._said = b""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """One ASGI message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kinds = [value for name, value in message.get("headers", []) if name.lower() == b"content-type"]
            if self.status >= 400 and kinds[:1] != [MEDIA_TYPE.encode()]:
                self._error = message
                return
            message = {**message, "headers": [*message.get("headers", []), *self._headers]}
        elif self._error is not None:
            self._said = (self._said + message.get("body", b""))[:ERROR_BYTES]
            if not message.get("more_body", False):
                head, self._error = self._error, None
                await self._send_problem(problem_of_answer(head["status"], self._said), head.get("headers", []))
            return
        if not self._timed:
            await self._send(message)
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send(message)
        except TimeoutError:
            raise ClientGone from None

    async def problem(self, problem: Problem) -> None:
        """Answers with a problem, if no answer has begun."""
        if self.status and self._error is None:
            return
        self._error = None
        await self._send_problem(problem)

    async def _send_problem(self, problem: Problem, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        body = json.dumps({**problem.to_dict(), "request_id": self._request_id}).encode()
        own = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **(problem.headers or {})}
        kept = [pair for pair in headers or [] if pair[0].lower().decode("latin-1") not in own]
        own_headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in own.items()]
        self.code = problem.code
        await self.send({"type": "http.response.start", "status": problem.status, "headers": [*kept, *own_headers]})
        await self.send({"type": "http.response.body", "body": body})
