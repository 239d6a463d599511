"""The routes that wait for the model or the archive."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from owl_swin.classification import check_sees_whole
from owl_swin.encoder import check_has_masks
from owl_swin.postprocess import detect_options
from owl_swin.scoring import names_of
from owl_swin.segmentation import check_named
from owl_swin.server.answer_schemas import (
    ClassifyOut,
    DetectOut,
    EmbedOut,
    ImagesOut,
    SearchOut,
    SegmentOut,
    SimilarityOut,
)
from owl_swin.server.answering import as_picture, heads_of, in_json, in_lines
from owl_swin.server.documentation import BODY_CODES, DETECT_EXAMPLE, answers, body
from owl_swin.server.negotiation import BYTES, JPEG, JSON, LINES, PNG, choose
from owl_swin.server.problems import Problem, timeout
from owl_swin.server.reading import Reader
from owl_swin.server.receiving import NO_STORE, Lines, in_time, places, read_request
from owl_swin.server.schemas import (
    MOST_MASKS,
    ClassifyIn,
    DetectIn,
    EmbedIn,
    ImagesIn,
    SearchIn,
    SegmentIn,
    SimilarityIn,
)
from owl_swin.server.serving import Serving, Work, embedded
from owl_swin.server.tasks import Task, classification, detection, segmentation, similarity
from owl_swin.tiling import Tiles
from owl_swin.types import QueryEmbeddings

LINES_TOLD = (
    " With Accept: application/x-ndjson each picture is a line of its own as soon as it is done, and what is wrong "
    "with one of them stands in its line."
)


def add_work(app: FastAPI, serving: Serving) -> None:
    """Adds the routes."""
    _add_finding(app, serving)
    _add_keeping(app, serving)


def _add_finding(app: FastAPI, serving: Serving) -> None:
    """What is found in the pictures of a request."""
    limits, detector = serving.settings, serving.detector

    async def detect(request: Request) -> Response:
        form = choose(request.headers.getlist("accept"), (JSON, LINES, PNG))
        fields, reader = await read_request(request, serving, DetectIn)
        if fields.top_k > limits.max_top_k:
            raise Problem("invalid_request", f"#/top_k: at most {limits.max_top_k} boxes a picture")
        if fields.masks:
            check_has_masks(detector.spec)
            if fields.top_k > MOST_MASKS:
                raise Problem("invalid_request", f"#/top_k: at most {MOST_MASKS} boxes a picture with masks")
        names = ("threshold", "nms_iou", "box_voting", "rivals", "nms_across", "objectness", "top_k", "masks")
        options = {name: getattr(fields, name) for name in names}

        async def task(work: Work) -> Task:
            queries = await _encoded(fields.queries, reader, serving, work)
            detect_options(None, options).thresholds(names_of(queries))
            return detection(detector, queries, options)

        return await _answer(request, serving, form, fields.images, reader, task, fields.tiles(), masks=fields.masks)

    async def segment(request: Request) -> Response:
        form = choose(request.headers.getlist("accept"), (JSON, LINES, PNG, JPEG))
        fields, reader = await read_request(request, serving, SegmentIn)
        check_has_masks(detector.spec)

        async def task(work: Work) -> Task:
            queries = await _encoded(fields.queries, reader, serving, work)
            check_named(queries)
            assert queries is not None
            return segmentation(detector, queries, fields.threshold)

        return await _answer(request, serving, form, fields.images, reader, task, fields.tiles(), masks=True)

    async def similar(request: Request) -> Response:
        form = choose(request.headers.getlist("accept"), (JSON, LINES, PNG))
        fields, reader = await read_request(request, serving, SimilarityIn)

        async def task(work: Work) -> Task:
            queries = await _encoded(fields.queries, reader, serving, work)
            n_maps = len(names_of(queries))
            if n_maps > MOST_MAPS or (form == PNG and n_maps > 1):
                most = 1 if form == PNG else MOST_MAPS
                raise Problem("too_many_queries", f"got {n_maps} queries, at most {most} have their maps shown at once")
            return similarity(detector, queries)

        return await _answer(request, serving, form, fields.images, reader, task)

    async def classify(request: Request) -> Response:
        form = choose(request.headers.getlist("accept"), (JSON, LINES))
        fields, reader = await read_request(request, serving, ClassifyIn)
        check_sees_whole(detector.spec)

        async def task(work: Work) -> Task:
            sources = await reader.queries(fields.queries) or []
            return classification(detector, *await serving.classes(sources, fields.templates, work))

        return await _answer(request, serving, form, fields.images, reader, task)

    add = partial(app.add_api_route, methods=["POST"])
    add(
        "/v1/detect", detect, operation_id="detect", summary="Find things in pictures",
        description="One result a picture, in order; nothing found is an empty list. The same pictures and queries of "
        "several requests are encoded once. With tile, small things in large pictures are found. With masks, "
        "each thing has its mask too. With Accept: image/png the boxes, and masks, are drawn on the one picture."
        + LINES_TOLD,
        **answers(DetectOut, *BODY_CODES, "too_many_tiles", example=DETECT_EXAMPLE, also=(PNG, LINES)),
        **body(DetectIn),
    )  # fmt: skip
    add(
        "/v1/segment", segment, operation_id="segment", summary="Say what each pixel of pictures shows",
        description="One of the names of the queries, or nothing, at each pixel; queries of one name are one area. "
        "With Accept: image/png the answer is the map of the one picture: a PNG with a palette whose values are the "
        "ids of the areas, 255 nothing (more than 255 names: 16 bits of grey, 65535 nothing). With image/jpeg the "
        "areas are drawn on it. Needs a model with masks." + LINES_TOLD,
        **answers(SegmentOut, *BODY_CODES, "too_many_tiles", also=(PNG, JPEG, LINES)), **body(SegmentIn),
    )  # fmt: skip
    add(
        "/v1/similarity", similar, operation_id="similarity", summary="Compare every part of pictures with queries",
        description="Scores of an even grid over each picture. With Accept: image/png the answer is the heat map of "
        "one query over one picture." + LINES_TOLD,
        **answers(SimilarityOut, *BODY_CODES, also=(PNG, LINES)), **body(SimilarityIn),
    )  # fmt: skip
    add(
        "/v1/classify", classify, operation_id="classify", summary="Say which class fits whole pictures",
        description="A score for each class, which add up to 1. OWLv2 was not trained for it." + LINES_TOLD,
        **answers(ClassifyOut, *BODY_CODES, also=(LINES,)), **body(ClassifyIn),
    )  # fmt: skip


# Of one request; a map has some thousands of numbers.
MOST_MAPS = 16


async def _encoded(listed: Any, reader: Reader, serving: Serving, work: Work) -> QueryEmbeddings | None:
    sources = await reader.queries(listed)
    return None if sources is None else await serving.encode(sources, work)


async def _answer(
    request: Request,
    serving: Serving,
    form: str,
    listed: Any,
    reader: Reader,
    make_task: Callable[[Work], Awaitable[Task]],
    tiles: Tiles | None = None,
    *,
    masks: bool = False,
) -> Response:
    """What the task finds in all pictures, and in ``tiles`` of them, in the form that the client asked for."""
    n_pictures = reader.n_pictures(listed)
    n_places = n_pictures + (1 if tiles is None else serving.settings.tiles_at_once)
    if form == LINES:
        return Lines(request, _lines(request, serving, listed, reader, make_task, n_places, tiles, masks))
    if form in (PNG, JPEG) and n_pictures > 1:
        raise Problem("invalid_request", f"as {form} one picture is answered, got {n_pictures}; ask for JSON")

    async def find() -> bytes:
        blobs, work = await reader.pictures(listed), serving.work(tiles, masks=masks)
        heads = await heads_of(blobs, serving, work)
        task = await make_task(work)
        if form in (PNG, JPEG):
            return await as_picture(blobs[0], heads[0], task, serving, work, form)
        return await in_json(blobs, heads, task, serving, work)

    async with places(serving, reader, n_places):
        content = await in_time(request, find(), serving.settings.timeout_s)
    return Response(content, media_type=form, headers={**NO_STORE, "Vary": "Accept"})


async def _lines(
    request: Request,
    serving: Serving,
    listed: Any,
    reader: Reader,
    make_task: Callable[[Work], Awaitable[Task]],
    n_places: int,
    tiles: Tiles | None,
    masks: bool,
) -> AsyncIterator[bytes]:
    """Queries that are wrong are the whole answer, a picture that is wrong is a line."""
    pictures, timeout_s = reader.named_pictures(listed), serving.settings.timeout_s
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    async with places(serving, reader, n_places):
        work = serving.work(tiles, masks=masks)
        try:
            task = await asyncio.wait_for(make_task(work), timeout_s)
        except TimeoutError:
            raise timeout(timeout_s) from None
        yield b""  # nothing is wrong with the request as a whole: the answer begins
        async for line in in_lines(pictures, task, serving, work, request.scope, deadline_s):
            yield line


def _add_keeping(app: FastAPI, serving: Serving) -> None:
    """Queries to keep, and the archive."""
    limits = serving.settings

    async def embed(request: Request) -> Response:
        form = choose(request.headers.getlist("accept"), (JSON, BYTES))
        fields, reader = await read_request(request, serving, EmbedIn)

        async def encode() -> QueryEmbeddings:
            return await serving.encode(await reader.queries(fields.queries) or [])

        async with places(serving, reader, 1):
            made = await in_time(request, encode(), limits.timeout_s)
        saved = await serving.save(made)
        if form == BYTES:
            name = {"Content-Disposition": 'attachment; filename="queries.safetensors"'}
            return Response(saved, media_type=BYTES, headers={**NO_STORE, **name, "Vary": "Accept"})
        return _json(embedded(made, saved))

    async def search(request: Request) -> Response:
        choose(request.headers.getlist("accept"), (JSON,))
        fields, reader = await read_request(request, serving, SearchIn)
        options = fields.model_dump(exclude={"query", "like_region"})

        async def find() -> list[dict[str, Any]]:
            query = await reader.queries([fields.query]) if fields.query is not None else None
            return await serving.search(query[0] if query else None, fields.like_region, **options)

        async with places(serving, reader, 1):
            matches = await in_time(request, find(), limits.timeout_s)
        return _json({"matches": matches})

    async def add_images(request: Request) -> Response:
        choose(request.headers.getlist("accept"), (JSON,))
        fields, reader = await read_request(request, serving, ImagesIn)
        async with places(serving, reader, reader.n_pictures(fields.images)):

            async def add() -> dict[str, Any]:
                # What is stored is stored whole, also when the client does not wait to hear it.
                return await serving.add_images(await reader.pictures(fields.images))

            return _json(await in_time(request, add(), limits.timeout_s))

    async def thumbnail(
        request: Request,
        image_id: str,
        size: Annotated[int, Query(ge=16, le=2048, description="Longer side in pixels.")] = 256,
    ) -> Response:
        async with serving.room(1):
            content = await in_time(request, serving.thumbnail(image_id[:255], size), limits.timeout_s)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    archive = ("no_archive", "archive_failed")
    add = partial(app.add_api_route, methods=["POST"])
    add(
        "/v1/embed", embed, operation_id="embed", summary="Encode queries to keep",
        description='The result goes into "saved" of a later request, or into a file; ask with Accept: '
        "application/octet-stream for the file itself.",
        **answers(EmbedOut, *BODY_CODES, also=(BYTES,)), **body(EmbedIn),
    )  # fmt: skip
    add(
        "/v1/search", search, operation_id="search", summary="Search the archive",
        description="Where else is this thing? Needs --index.",
        **answers(SearchOut, *BODY_CODES, *archive), **body(SearchIn),
    )  # fmt: skip
    add(
        "/v1/images", add_images, operation_id="add_images", summary="Add pictures to the archive",
        description="They are found by the next search, and shown to the model in the tiles of the archive, if it has "
        "any. Needs --index.",
        **answers(ImagesOut, *BODY_CODES, "too_many_tiles", *archive, "archive_busy"), **body(ImagesIn),
    )  # fmt: skip
    codes = (
        *archive,
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
        summary="A picture of the archive, small", **answers(None, *codes, also=("image/jpeg",)),
    )  # fmt: skip


def _json(content: Any) -> Response:
    return Response(json.dumps(content).encode(), media_type=JSON, headers=NO_STORE)
