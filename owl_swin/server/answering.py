"""From the pictures of a request to its answer: whole as JSON, line by line as they are done, or as one picture."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from starlette.types import Scope

from owl_swin.errors import OwlSwinError
from owl_swin.server.negotiation import PNG
from owl_swin.server.pictures import check_picture, draw_on, image_file
from owl_swin.server.problems import Problem, failure, problem_of, timeout
from owl_swin.server.reading import Blob, all_of
from owl_swin.server.serving import Head, Serving, Work
from owl_swin.server.tasks import Task
from owl_swin.server.tiled import find_in_tiles

Pictures = Sequence[tuple[str, Callable[[], Awaitable[Blob]]]]


async def heads_of(blobs: Sequence[Blob], serving: Serving, work: Work) -> list[Head]:
    """The heads of all pictures, which are counted; the first that is wrong raises Problem."""
    heads = await all_of(
        [work.read(partial(serving.head, blob, in_tiles=work.tiles is not None, masks=work.masks)) for blob in blobs]
    )
    work.count_pixels(heads)
    return heads


async def in_json(blobs: Sequence[Blob], heads: Sequence[Head], task: Task, serving: Serving, work: Work) -> bytes:
    """One record a picture, in order."""

    async def one(blob: Blob, head: Head) -> bytes:
        return await _record(blob, await _asked(blob, head, task, serving, work), task, work)

    found = await all_of([one(*pair) for pair in zip(blobs, heads, strict=True)])
    return b'{"results": [' + b", ".join(found) + b"]}"


async def as_picture(blob: Blob, head: Head, task: Task, serving: Serving, work: Work, form: str) -> bytes:
    """What was found, drawn on the picture, or as a picture of its own where the task makes one as PNG."""
    assert task.draw is not None, "routes offer a picture only where one can be drawn"
    found, name = await _asked(blob, head, task, serving, work), form.rpartition("/")[2].upper()
    if form == PNG and (plain := task.plain) is not None:
        return await work.read(lambda: image_file(plain(found), name), task.pixels(found))
    most = serving.settings.max_pixels
    cost = await work.read(partial(check_picture, blob.content, blob.where, max_pixels=most))
    make = partial(draw_on, blob.content, blob.where, partial(task.draw, found=found), max_pixels=most, form=name)
    return await work.read(make, max(cost.decoded, task.pixels(found)))


async def in_lines(
    pictures: Pictures, task: Task, serving: Serving, work: Work, scope: Scope, deadline_s: float
) -> AsyncIterator[bytes]:
    """A line of JSON a picture, as they are done: ``index`` says which it is, and ``error`` what is wrong with it.

    When the event loop's clock says ``deadline_s``, those that are not done are so said to be.
    """

    async def one(index: int, name: str, read: Callable[[], Awaitable[Blob]]) -> bytes:
        try:
            blob = await read()
            (head,) = await heads_of([blob], serving, work)
            record = await _record(blob, await _asked(blob, head, task, serving, work), task, work)
            return b'{"index": %d, ' % index + record[1:] + b"\n"
        except Problem as problem:
            return _line(index, name, problem, scope)
        except OwlSwinError as error:
            return _line(index, name, problem_of(error), scope)
        except Exception as error:
            return _line(index, name, failure(error, scope), scope)

    works = {asyncio.ensure_future(one(i, *picture)): i for i, picture in enumerate(pictures)}
    pending = set(works)
    try:
        while pending:
            left_s = max(0.0, deadline_s - asyncio.get_running_loop().time())
            done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            for work_done in sorted(done, key=works.__getitem__):
                yield work_done.result()
            if not done:
                for index in sorted(works[late] for late in pending):
                    yield _line(index, pictures[index][0], timeout(serving.settings.timeout_s), scope)
                return
    finally:
        for work_left in works:
            work_left.cancel()


async def _asked(blob: Blob, head: Head, task: Task, serving: Serving, work: Work) -> Any:
    if work.tiles is not None:
        return await find_in_tiles(blob, head, task, serving, work)
    if (known := head.known) is not None:
        return await work.ask_model(None, lambda _: task.answer(known))
    read = partial(serving.picture, blob, head, masks=work.masks)
    return await work.ask_model(await work.read(read, head.cost.decoded), task.answer)


async def _record(blob: Blob, found: Any, task: Task, work: Work) -> bytes:
    return await work.read(lambda: json.dumps(task.record(blob.name, found)).encode(), task.pixels(found))


def _line(index: int, name: str, problem: Problem, scope: Scope) -> bytes:
    error = {**problem.to_dict(), "request_id": scope["request_id"]}
    return json.dumps({"index": index, "image": name, "error": error}).encode() + b"\n"
