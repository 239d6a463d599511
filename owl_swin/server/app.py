"""The application: routes that read a request, ask ``Serving`` and answer. ``create_app`` makes one."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Match, Mount, Route
from starlette.types import Receive, Scope, Send

from owl_swin.detector import Detector
from owl_swin.errors import MissingExtraError
from owl_swin.server.documentation import BODY_CODES, DETECT_EXAMPLE, answers, body, describe_routes, docs_page
from owl_swin.server.problems import Problem, problem_of_fields, problem_of_http
from owl_swin.server.reading import SMALL_BYTES, Form, Reader, parse, take_apart
from owl_swin.server.schemas import (
    Body,
    DetectIn,
    DetectOut,
    EmbedIn,
    EmbedOut,
    HealthOut,
    ImagesIn,
    ImagesOut,
    ModelOut,
    SearchIn,
    SearchOut,
)
from owl_swin.server.security import PATHS, ClientGone, Guard
from owl_swin.server.serving import Serving, embedded
from owl_swin.server.settings import ServerSettings
from owl_swin.server.uploads import Uploads
from owl_swin.types import QueryEmbeddings

Model = TypeVar("Model", bound=Body)

# Answers may hold the names of private pictures: nobody on the way keeps them.
NO_STORE = {"Cache-Control": "no-store"}


def create_app(
    detector: Detector, settings: ServerSettings | None = None, *, index: Any = None, demo: Any = None
) -> FastAPI:
    """The HTTP API over a detector, and over an open RegionIndex if there is one.

    ``demo`` is called with the detector and the index and makes Gradio's pages, which then stand at ``/``.
    ``app.state.serving`` is what the routes share; its ``close`` is called when the application shuts down.
    ``app.state.end_streams`` ends what open pages listen to; call it in the loop that serves, before it waits for them.
    """
    serving = Serving(detector, settings or ServerSettings(), index)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(serving.warm_up)
        yield
        await asyncio.to_thread(serving.close)

    no_pages: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(redirect_slashes=False, title="owl_swin", lifespan=lifespan, **no_pages)
    app.state.serving = serving
    app.state.end_streams = lambda: None
    blocks = demo(detector, index=index) if demo is not None else None
    uploads = None if blocks is None else Uploads(Path(blocks.GRADIO_CACHE), serving.settings.max_uploads_bytes)
    app.add_middleware(Guard, serving=serving, uploads=uploads)

    async def as_problem(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            raise problem_of_fields(error.errors())
        raise problem_of_http(error)  # type: ignore[arg-type]

    app.add_exception_handler(HTTPException, as_problem)
    app.add_exception_handler(RequestValidationError, as_problem)
    _add_pages(app, serving)
    _add_work(app, serving)
    document = describe_routes(app, serving.settings)
    for route in app.routes:  # as Starlette does, and FastAPI does not; after the document, which need not say it
        if isinstance(route, Route) and route.methods == {"GET"}:
            route.methods.add("HEAD")
    # What no route above answers, with any method at all: the pages of the demo would answer in their own way.
    for path in (*sorted(PATHS), "/openapi.json", "/v1", "/v1/{rest:path}"):
        app.router.routes.append(Route(path, _Nothing()))
    app.openapi = lambda: document  # type: ignore[method-assign]
    return app if blocks is None else _with_demo(app, blocks, serving)


def build_demo(detector: Detector, *, index: Any = None) -> Any:
    """The Gradio pages that come with the package."""
    if find_spec("gradio") is None:
        raise MissingExtraError("the demo", "demo")
    # By name: the pages stand outside of the house and know only its public face.
    return import_module("owl_swin.demo.app").build_demo(detector, index=index)


def _with_demo(app: FastAPI, blocks: Any, serving: Serving) -> FastAPI:
    from gradio import mount_gradio_app

    options: dict[str, Any] = {"footer_links": [], "run_history": False}  # as demo/app.py sets them
    limits = serving.settings
    options |= {"max_file_size": limits.max_body_bytes, "root_path": limits.root_path or None}
    app = mount_gradio_app(app, blocks, path="/", **options)
    pages: Any = next(route.app for route in app.routes if isinstance(route, Mount))
    # Every open page listens to a stream that ends with this event alone. Gradio sets it where it runs the server.
    app.state.end_streams = pages.stop_event.set
    return app


def _add_pages(app: FastAPI, serving: Serving) -> None:
    """What answers at once: health, figures, the model, the documentation."""

    async def healthz(request: Request) -> Response:
        alive = serving.batcher.alive
        return JSONResponse({"status": "ok" if alive else "dead"}, 200 if alive else 503, NO_STORE)

    async def readyz(request: Request) -> Response:
        serving.check_room(0)
        return JSONResponse({"status": "ready"}, headers=NO_STORE)

    async def metrics(request: Request) -> Response:
        return Response(serving.metrics.page(), media_type="text/plain; version=0.0.4")

    async def model(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(serving.about))

    async def openapi(request: Request) -> Response:
        return JSONResponse(app.openapi())

    async def docs(request: Request) -> Response:
        page = docs_page(app.openapi())
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    add = partial(app.add_api_route, methods=["GET"])
    for path, check, summary in (
        ("/healthz", healthz, "Whether the process lives"),
        ("/readyz", readyz, "Whether it takes requests"),
    ):
        described = answers(HealthOut, "shutting_down")
        add(path, check, operation_id=path[1:], summary=summary, openapi_extra={"security": []}, **described)
    add(
        "/v1/model",
        model,
        operation_id="model",
        summary="The model, and the limits of this server",
        **answers(ModelOut),
    )
    add(
        "/metrics",
        metrics,
        operation_id="metrics",
        summary="Figures for Prometheus",
        response_class=PlainTextResponse,
        **answers(None),
    )
    add("/openapi.json", openapi, include_in_schema=False)
    add("/docs", docs, include_in_schema=False)


def _add_work(app: FastAPI, serving: Serving) -> None:
    """What waits for the model or the archive."""
    limits = serving.settings

    async def detect(request: Request) -> Response:
        fields, reader = await _read(request, serving, DetectIn)
        if fields.top_k > limits.max_top_k:
            raise Problem("invalid_request", f"#/top_k: at most {limits.max_top_k} boxes a picture")
        options = {name: getattr(fields, name) for name in ("threshold", "nms_iou", "objectness", "top_k")}

        async def find() -> bytes:
            blobs, queries = await reader.pictures(fields.images), await reader.queries(fields.queries)
            return await serving.detect(blobs, queries, **options)

        async with _room(serving, reader, reader.n_pictures(fields.images) + 1):
            results = await _in_time(request, find(), limits.timeout_s)
        return Response(results, media_type="application/json", headers=NO_STORE)

    async def embed(request: Request) -> Response:
        fields, reader = await _read(request, serving, EmbedIn)

        async def encode() -> QueryEmbeddings:
            return await serving.encode(await reader.queries(fields.queries) or [])

        async with _room(serving, reader, 1):
            made = await _in_time(request, encode(), limits.timeout_s)
        saved = await serving.save(made)
        if "application/octet-stream" in request.headers.get("accept", ""):
            name = {"Content-Disposition": 'attachment; filename="queries.safetensors"'}
            return Response(saved, media_type="application/octet-stream", headers={**NO_STORE, **name})
        return _json(embedded(made, saved))

    async def search(request: Request) -> Response:
        fields, reader = await _read(request, serving, SearchIn)
        options = fields.model_dump(exclude={"query", "like_region"})

        async def find() -> list[dict[str, Any]]:
            query = await reader.queries([fields.query]) if fields.query is not None else None
            return await serving.search(query[0] if query else None, fields.like_region, **options)

        async with _room(serving, reader, 1):
            matches = await _in_time(request, find(), limits.timeout_s)
        return _json({"matches": matches})

    async def add_images(request: Request) -> Response:
        fields, reader = await _read(request, serving, ImagesIn)
        async with _room(serving, reader, reader.n_pictures(fields.images)):

            async def add() -> dict[str, Any]:
                # What is stored is stored whole, also when the client does not wait to hear it.
                return await serving.add_images(await reader.pictures(fields.images))

            return _json(await _in_time(request, add(), limits.timeout_s))

    async def thumbnail(
        request: Request,
        image_id: str,
        size: Annotated[int, Query(ge=16, le=2048, description="Longer side in pixels.")] = 256,
    ) -> Response:
        async with serving.room(1):
            content = await _in_time(request, serving.thumbnail(image_id[:255], size), limits.timeout_s)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    archive = ("no_archive", "invalid_archive")
    add = partial(app.add_api_route, methods=["POST"])
    add(
        "/v1/detect", detect, operation_id="detect", summary="Find things in pictures",
        description="One result a picture, in order; nothing found is an empty list. The same pictures and queries of "
        "several requests are encoded once.",
        **answers(DetectOut, *BODY_CODES, example=DETECT_EXAMPLE), **body(DetectIn),
    )  # fmt: skip
    add(
        "/v1/embed", embed, operation_id="embed", summary="Encode queries to keep",
        description='The result goes into "saved" of a later request, or into a file; ask with Accept: '
        "application/octet-stream for the file itself.",
        **answers(EmbedOut, *BODY_CODES, media="application/octet-stream"), **body(EmbedIn),
    )  # fmt: skip
    add(
        "/v1/search", search, operation_id="search", summary="Search the archive",
        description="Where else is this thing? Needs --index.",
        **answers(SearchOut, *BODY_CODES, *archive), **body(SearchIn),
    )  # fmt: skip
    add(
        "/v1/images", add_images, operation_id="add_images", summary="Add pictures to the archive",
        description="They are found by the next search. Needs --index.",
        **answers(ImagesOut, *BODY_CODES, *archive, "archive_busy"), **body(ImagesIn),
    )  # fmt: skip
    codes = (
        "no_archive",
        "no_such_image",
        "invalid_image",
        "image_too_large",
        "invalid_request",
        "busy",
        "shutting_down",
        "timeout",
    )
    app.add_api_route(
        "/v1/images/{image_id}", thumbnail, methods=["GET"], operation_id="thumbnail", response_class=Response,
        summary="A picture of the archive, small", **answers(None, *codes, media="image/jpeg"),
    )  # fmt: skip


async def _read(request: Request, serving: Serving, model: type[Model]) -> tuple[Model, Reader]:
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
async def _room(serving: Serving, reader: Reader, n_works: int) -> AsyncIterator[None]:
    """Places in the queue from before anything is fetched until the answer is there."""
    async with serving.room(n_works):
        try:
            yield
        finally:
            reader.release()


async def _in_time(request: Request, work: Awaitable[Any], timeout_s: float) -> Any:
    """The result of the work; when the client goes away first, or the time is over, the work is dropped."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise Problem("timeout", f"no answer in {timeout_s:g} s; ask for fewer or smaller pictures, or later")
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Nothing:
    """What no route answers: a wrong path, or a right one with a wrong method. As a class it is for every method."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed: set[str] = set()
        for route in scope["app"].routes:
            if isinstance(route, Route) and route.methods and route.matches(scope)[0] is not Match.NONE:
                allowed |= route.methods
        if allowed:
            raise Problem(
                "method_not_allowed",
                "this path answers other methods; see Allow",
                headers={"Allow": ", ".join(sorted(allowed))},
            )
        raise Problem("not_found", "no such path; /docs lists what is there")


def _json(content: Any) -> Response:
    return Response(json.dumps(content).encode(), media_type="application/json", headers=NO_STORE)
