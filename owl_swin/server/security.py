"""The door: who may ask, how much may come in and how slowly. One ASGI layer around the whole application."""

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import MutableMapping
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from owl_swin.errors import OwlSwinError
from owl_swin.server.head import OPEN_PATHS, check_head, headers_of, too_large
from owl_swin.server.multipart import PlainGauge
from owl_swin.server.problems import Problem, problem_of
from owl_swin.server.serving import Serving
from owl_swin.server.structure import ValueCounter
from owl_swin.server.uploads import Uploads

log = logging.getLogger(__name__)

PATHS = frozenset(("/v1/detect", "/v1/embed", "/v1/search", "/v1/images", "/v1/model", "/docs", *OPEN_PATHS))
# What may hold a connection open only to wait: pages of the demo stream their events.
API = "/v1/"
# Where the pages of the demo send photos. Gradio writes them to disk as they come and bounds each.
UPLOAD = "/gradio_api/upload"
# Most values in the JSON of a page: the names of a folder of some thousand uploads.
PAGE_VALUES = 50_000
# A client that reads nothing may keep an answer for so long.
SEND_TIMEOUT_S = 30.0
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


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
        started, answer = time.monotonic(), _Answer(send, scope["path"].startswith(API))
        uploads = self._uploads if scope["path"] == UPLOAD else None
        max_bytes = self._settings.max_body_bytes if uploads is None else self._settings.max_upload_bytes
        try:
            check_head(scope, self._settings, max_bytes)
            gauge: Gauge | None = None
            if self._uploads is not None and not scope["path"].startswith(API):
                gauge = ValueCounter(PAGE_VALUES)  # Gradio reads what comes in the loop that serves everybody
            if uploads is not None:
                gauge = PlainGauge(headers_of(scope).get("content-type", ""))
                length = headers_of(scope).get("content-length", self._settings.max_body_bytes)
                await asyncio.to_thread(uploads.make_room, int(length))
            with _Body(receive, self._serving, max_bytes, gauge, uploads) as body:
                await self._app(scope, body.receive, body.unless_refused(answer.send))
        except ClientGone:
            answer.status, answer.code = answer.status or 499, "client_gone"
        except Problem as problem:
            await answer.problem(problem, scope, receive)
        except OwlSwinError as error:
            await answer.problem(problem_of(error), scope, receive)
        except Exception as error:
            instance = f"urn:uuid:{uuid.uuid4()}"
            log.error("%s: %r %r failed\n%s", instance, scope["method"], scope["path"], _failure(error))
            failed = Problem("internal", "the server failed; its log says why, under this instance", instance=instance)
            await answer.problem(failed, scope, receive)
        finally:
            self._serving.metrics.on_request(
                path_of(scope), scope["method"], answer.status, answer.code, time.monotonic() - started
            )


def path_of(scope: Scope) -> str:
    """The route of a request, of which there are only so many, for the figures."""
    path = scope["path"]
    if path in PATHS:
        return path
    return "/v1/images/{image_id}" if path.startswith("/v1/images/") else "other"


def _failure(error: BaseException) -> str:
    """A traceback for the log. Messages stand in quotes, so that what a client sent begins no line of its own."""
    parts, chain = [], error
    seen: set[int] = set()
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        frames = "".join(traceback.format_tb(chain.__traceback__))
        parts.append(f"{frames}{type(chain).__name__}: {str(chain)[:2000]!r}")
        chain = chain.__cause__ or chain.__context__  # type: ignore[assignment]
    return "\nraised while handling:\n".join(parts)


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
        # Beside the pause between two parts, a body as a whole must come at 16 KiB a second at least.
        left = self._deadline + self._size / 16384 - time.monotonic()
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
        if self._gauge is not None:
            self._gauge.write(content)
        self._more = message.get("more_body", False)
        return message


class _Answer:
    """Sends an answer, remembers how it ended, and gives up on a client that reads nothing."""

    def __init__(self, send: Send, timed: bool):
        self._send, self._timed = send, timed
        self.status = 0
        self.code = ""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """One ASGI message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        if not self._timed:
            await self._send(message)
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send(message)
        except TimeoutError:
            raise ClientGone from None

    async def problem(self, problem: Problem, scope: Scope, receive: Receive) -> None:
        """Answers with a problem, if no answer has begun."""
        if self.status:
            return
        await problem.response()(scope, receive, self.send)
        self.code = problem.code
