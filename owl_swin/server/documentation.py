"""What FastAPI cannot know of the routes, for the OpenAPI document that it writes, and a page of it without scripts."""

import html
import json
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from owl_swin.server.answer_schemas import (
    LineOut,
    ProblemOut,
)
from owl_swin.server.client_examples import JAVASCRIPT, PYTHON
from owl_swin.server.negotiation import LINES
from owl_swin.server.problems import CODES, MEDIA_TYPE
from owl_swin.server.reading import FORM_FIELDS
from owl_swin.server.schemas import (
    Body,
    ClassifyIn,
    DetectIn,
    EmbedIn,
    ImagesIn,
    SearchIn,
    SegmentIn,
    SimilarityIn,
)
from owl_swin.server.settings import ServerSettings

Json = dict[str, Any]

ABOUT = (
    "Open-vocabulary object detection: find anything that you can name or show. A query is a text, a picture of the "
    "thing (or the box in it), or both; boxes are pixels of your own picture. Errors are problem documents (RFC 9457) "
    "with a stable `code`."
)
# Codes that every path which reads a body may answer with.
BODY_CODES = (
    "invalid_json", "invalid_multipart", "invalid_content_length", "request_timeout", "body_too_large",
    "body_too_complex", "unsupported_media_type", "encoded_body", "not_acceptable", "invalid_request", "invalid_image",
    "image_too_large", "too_many_pixels", "invalid_query", "too_many_images", "too_many_queries", "url_not_allowed",
    "url_not_fetched", "busy", "shutting_down", "timeout",
)  # fmt: skip
DOOR_CODES = ("invalid_header", "unauthorized", "wrong_host", "cross_origin", "internal")
LINE: Json = {"$ref": "#/components/schemas/LineOut"}
BINARY: Json = {"type": "string", "format": "binary"}
BODIES = (DetectIn, SegmentIn, SimilarityIn, ClassifyIn, EmbedIn, SearchIn, ImagesIn, LineOut, ProblemOut)
REQUEST_ID: Json = {
    "name": "X-Request-Id",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "What the request is called in the log and in its answer: at most 128 letters, digits and "
    "._~:/+=@- . Otherwise, or left out, the server makes one up.",
}
REF = "#/components/schemas/{model}"


def describe_routes(app: FastAPI, settings: ServerSettings) -> Json:
    """/openapi.json: as FastAPI writes it, with the bodies that the routes read themselves."""
    servers = [{"url": settings.root_path}] if settings.root_path else None
    version = metadata.version("owl_swin")
    document = get_openapi(title="owl_swin", version=version, description=ABOUT, routes=app.routes, servers=servers)
    # The routes read their bodies themselves, JSON or a form, so that FastAPI has not met these models.
    models = [(model, "validation") for model in BODIES]
    _, schemas = models_json_schema(models, ref_template=REF)  # type: ignore[arg-type]
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema["properties"] = {name: _say_default(field) for name, field in schema["properties"].items()}
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["parameters"] = [*operation.get("parameters", []), REQUEST_ID]
    if settings.token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _say_default(field: Json) -> Json:
    """A field that says as text what it is when it is left out: some generators take ``default`` for always there."""
    said = dict(field)
    default = said.pop("default", None)
    if default not in (None, [], ""):
        said["description"] = f"{said.get('description', '')} Left out: {json.dumps(default)}.".strip()
    return said


def answers(model: type[BaseModel] | None, *codes: str, example: Json | None = None, also: Sequence[str] = ()) -> Json:
    """What ``app.add_api_route`` needs for the answers of a route: its model, ``also`` other forms, and its codes."""
    responses: dict[int, Json] = {200: {"description": "As asked"}}
    if also:
        responses[200]["content"] = {form: {"schema": LINE if form == LINES else BINARY} for form in also}
    if example is not None:
        responses[200].setdefault("content", {})["application/json"] = {"example": example}
    for code in (*DOOR_CODES, *codes):
        status, title = CODES[code]
        content: Json = {MEDIA_TYPE: {"schema": {"$ref": REF.format(model="ProblemOut")}}}
        entry = responses.setdefault(status, {"description": "", "content": content})
        entry["description"] += f"{', ' if entry['description'] else ''}`{code}`: {title}"
        if status == 503:
            entry["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
    return {"response_model": model, "responses": responses}


def body(model: type[Body]) -> Json:
    """The body of a route as JSON, or as a form whose part ``request`` is that JSON, or of plain fields."""
    reference = {"$ref": REF.format(model=model.__name__)}
    files = {"type": "array", "items": BINARY, "description": 'Files that {"file": FILENAME} of the JSON names.'}
    form = {"type": "object", "properties": {"request": reference, **_plain_fields(model), "files": files}}
    content = {
        "application/json": {"schema": reference},
        "multipart/form-data": {"schema": form, "encoding": {"request": {"contentType": "application/json"}}},
    }
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}}}


def _plain_fields(model: type[Body]) -> Json:
    """The fields of a form in place of ``request``; one leaves out what it does not mean."""
    own = model.model_json_schema()["properties"]
    text: Json = {"type": "string", "description": "A text to find, in place of request."}
    fields: Json = {}
    if "images" in own:
        fields["images"] = {"type": "array", "items": BINARY, "description": "The pictures, one part each."}
    if "queries" in own:
        fields["query"] = {"type": "array", "items": text}
    if "query" in own:
        fields["query"] = text
    for name in FORM_FIELDS:
        if name in own:
            kind = own[name].get("anyOf", [own[name]])[0]
            fields[name] = {**_say_default(kind), "description": _say_default(own[name]).get("description", "")}
    return fields


DETECT_EXAMPLE = {
    "results": [
        {
            "image": "kitchen.jpg",
            "width": 640,
            "height": 480,
            "detections": [
                {
                    "query": 0,
                    "label": "a red mug",
                    "score": 0.912345,
                    "box": {"xmin": 40.25, "ymin": 60.5, "xmax": 210.0, "ymax": 300.75},
                }
            ],
        }
    ]
}

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code,pre{font:14px/1.4 ui-monospace,monospace}pre{overflow:auto;padding:.7rem;border:1px solid #8886}"
    "h2{margin-top:2.5rem;border-bottom:1px solid #8886}table{border-collapse:collapse}td{padding:.1rem .8rem .1rem 0;"
    "vertical-align:top}"
)


def docs_page(document: Json) -> str:
    """/docs: the document as a page, for people.

    Not FastAPI's own, which loads its scripts from another site: this one also opens without the internet.
    """
    parts = [
        f"<p>{_text(ABOUT)}</p><p>For programs: <a href='openapi.json'>openapi.json</a>. "
        "Clients to copy: <a href='#python'>Python</a>, <a href='#javascript'>JavaScript</a></p>"
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation_html(path, method, operation, document))
    for name, code in (("Python", PYTHON), ("JavaScript", JAVASCRIPT)):
        parts.append(f"<h2 id='{name.lower()}'>A client in {name}</h2><pre>{html.escape(code)}</pre>")
    parts.append("<h2>Schemas</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"<h3 id='{name}'>{name}</h3><p>{_text(schema.get('description', ''))}</p>{_fields(schema)}")
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><style>{STYLE}</style>"
    body = f"<body><h1>owl_swin API</h1>{''.join(parts)}</body>"
    return f"<!doctype html><html lang='en'><head><title>owl_swin API</title>{head}</head>{body}</html>"


def _operation_html(path: str, method: str, operation: Json, document: Json) -> str:
    parts = [f"<h2><code>{method.upper()} {path}</code></h2><p>{_text(operation['summary'])}. "]
    parts.append(f"{_text(operation.get('description', ''))}</p>")
    bodies = operation.get("requestBody", {}).get("content", {})
    if bodies:
        name = bodies["application/json"]["schema"]["$ref"].rpartition("/")[2]
        parts.append(f"<p>Body: JSON <a href='#{name}'>{name}</a>, or a form of these parts:</p>")
        parts.append(_fields(bodies["multipart/form-data"]["schema"]))
        for example in document["components"]["schemas"][name].get("examples", []):
            parts.append(f"<pre>{html.escape(json.dumps(example, indent=1))}</pre>")
    for kind, answer in operation["responses"]["200"]["content"].items():
        name = answer["schema"].get("$ref", "").rpartition("/")[2]
        parts.append(f"<p>Answers {kind} <a href='#{name}'>{name}</a></p>")
        if "example" in answer:
            parts.append(f"<pre>{html.escape(json.dumps(answer['example'], indent=1))}</pre>")
    rows = [
        f"<tr><td>{status}</td><td>{_text(response['description'])}</td></tr>"
        for status, response in operation["responses"].items()
        if status != "200"
    ]
    return "".join([*parts, f"<table>{''.join(rows)}</table>"])


def _fields(schema: Json) -> str:
    rows = [
        f"<tr><td><code>{name}</code></td><td>{html.escape(_kind(field))}</td>"
        f"<td>{_text(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _kind(field: Json) -> str:
    """What a field holds, in a few words."""
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    for join in ("anyOf", "oneOf"):
        if join in field:
            return " or ".join(_kind(one) for one in field[join])
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    return "file" if field.get("format") == "binary" else str(field.get("type", "anything"))


def _text(text: str) -> str:
    """Plain text as HTML; what stands between backticks is code."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
