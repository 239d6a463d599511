"""Around the work of a request: its body is read, it has its places in the queue, and its time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from owl_swin.server.negotiation import LINES
from owl_swin.server.problems import timeout
from owl_swin.server.reading import SMALL_BYTES, Form, Reader, parse, take_apart
from owl_swin.server.schemas import Body
from owl_swin.server.security import ClientGone
from owl_swin.server.serving import Serving

Model = TypeVar("Model", bound=Body)

# Answers may hold the names of private pictures: nobody on the way keeps them.
NO_STORE = {"Cache-Control": "no-store"}


async def read_request(request: Request, serving: Serving, model: type[Model]) -> tuple[Model, Reader]:
    """The fields of a request and what finds its files. A server without room says so before it reads the body."""
    if not serving.draining:
        serving.check_room()
    chunks: list[bytes] = []
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    content = b"".join(chunks)
    serving.check_room()

    def read() -> tuple[Model, Form]:
        one_query = "query" in model.model_fields
        form = take_apart(content, request.headers.get("content-type", ""), one_query=one_query)
        return parse(model, form.json, serving.settings.max_json_values), form

    fields, form = read() if len(content) <= SMALL_BYTES else await serving.in_parser(read)
    return fields, Reader(form, serving.settings, fetch=serving.fetch, hold=serving.hold, in_thread=serving.in_parser)


@asynccontextmanager
async def places(serving: Serving, reader: Reader, n_works: int) -> AsyncIterator[None]:
    """Places in the queue from before anything is fetched until the answer is there."""
    async with serving.room(n_works):
        try:
            yield
        finally:
            reader.release()


async def in_time(request: Request, work: Awaitable[Any], timeout_s: float | None) -> Any:
    """The result of the work; when the client goes away first, or the time is over, the work is dropped."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise timeout(timeout_s or 0.0)
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Lines(Response):
    """An answer that is sent line by line; when the client goes away, the work on the rest ends.

    Before the first line, which may be empty, whatever is wrong can still be the answer.
    """

    media_type = LINES

    def __init__(self, request: Request, lines: AsyncIterator[bytes]):
        super().__init__(headers={**NO_STORE, "Vary": "Accept", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request, self._lines = request, lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all lines."""
        await in_time(self._request, self._send_all(send), None)

    async def _send_all(self, send: Send) -> None:
        begun = False
        async with aclosing(self._lines) as lines:  # type: ignore[type-var]
            async for line in lines:
                if not begun:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                begun = True
                if line:
                    await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
