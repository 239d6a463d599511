"""The application: routes that read a request, ask ``Serving`` and answer. ``create_app`` makes one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Match, Mount, Route
from starlette.types import Receive, Scope, Send

from owl_swin.detector import Detector
from owl_swin.errors import MissingExtraError
from owl_swin.server.answer_schemas import (
    HealthOut,
    ModelOut,
)
from owl_swin.server.documentation import answers, describe_routes, docs_page
from owl_swin.server.problems import Problem, problem_of_fields, problem_of_http
from owl_swin.server.receiving import NO_STORE, in_time
from owl_swin.server.security import PATHS, Guard
from owl_swin.server.serving import Serving
from owl_swin.server.settings import ServerSettings
from owl_swin.server.uploads import Uploads
from owl_swin.server.work import add_work


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
    add_work(app, serving)
    document = describe_routes(app, serving.settings)
    for route in app.routes:  # as Starlette does, and FastAPI does not; after the document, which need not say it
        if isinstance(route, Route) and route.methods == {"GET"}:
            route.methods.add("HEAD")
    # What no route above answers, with any method at all: the pages of the demo would answer in their own way.
    for path in (*sorted(PATHS), "/openapi.json", "/v1", "/v1/{rest:path}"):
        app.router.routes.append(Route(path, _Nothing()))
    app.openapi = lambda: document  # type: ignore[method-assign]
    return app if blocks is None else _with_demo(app, blocks, serving)


def build_demo(detector: Detector, *, index: Any = None, source: str = "") -> Any:
    """The Gradio pages that come with the package; code that they give calls the model by its ``source``."""
    if find_spec("gradio") is None:
        raise MissingExtraError("the demo", "demo")
    # By name: the pages stand outside of the house and know only its public face.
    pages = import_module("owl_swin.demo.app")
    called = Path(source).name if source and Path(source).exists() else source  # where it lies is nobody's business
    return pages.build_demo(detector, index=index, choice=pages.Models(detector, [called] if called else []))


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
        if not serving.batcher.alive:
            raise Problem("model_stopped", "the model of this server has stopped; start the server again")
        return JSONResponse({"status": "ok"}, headers=NO_STORE)

    async def readyz(request: Request) -> Response:
        serving.check_room(0)
        return JSONResponse({"status": "ready"}, headers=NO_STORE)

    async def metrics(request: Request) -> Response:
        return Response(serving.metrics.page(), media_type="text/plain; version=0.0.4")

    async def model(request: Request) -> Response:
        about = asyncio.to_thread(serving.about)
        return JSONResponse(await in_time(request, about, serving.settings.timeout_s))

    async def openapi(request: Request) -> Response:
        return JSONResponse(app.openapi())

    async def docs(request: Request) -> Response:
        page = docs_page(app.openapi())
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    add = partial(app.add_api_route, methods=["GET"])
    for path, check, summary, code in (
        ("/healthz", healthz, "Whether the process lives", "model_stopped"),
        ("/readyz", readyz, "Whether it takes requests", "shutting_down"),
    ):
        described = answers(HealthOut, code)
        add(path, check, operation_id=path[1:], summary=summary, openapi_extra={"security": []}, **described)
    add(
        "/v1/model",
        model,
        operation_id="model",
        summary="The model, and the limits of this server",
        **answers(ModelOut, "archive_failed", "timeout"),
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
