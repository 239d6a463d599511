"""The OpenAPI document, made of the schemas and the settings, and a page that shows it without any script."""

import html
import json
from typing import Any

from pydantic.json_schema import models_json_schema

from owl_swin.server.problems import CODES, MEDIA_TYPE
from owl_swin.server.schemas import MODELS, DetectIn, SearchIn
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
    "body_too_complex", "unsupported_media_type", "encoded_body", "invalid_request", "invalid_image",
    "image_too_large", "too_many_pixels", "invalid_query", "too_many_images", "too_many_queries", "url_not_allowed",
    "url_not_fetched", "busy", "shutting_down", "timeout",
)  # fmt: skip
DOOR_CODES = ("invalid_header", "unauthorized", "wrong_host", "cross_origin", "internal")
BINARY: Json = {"type": "string", "format": "binary"}


def openapi_document(settings: ServerSettings) -> Json:
    """/openapi.json: every path with its bodies, answers, error codes and examples."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in MODELS], ref_template="#/components/schemas/{model}"
    )
    components: Json = {"schemas": schemas["$defs"], "responses": {}}
    if settings.token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document: Json = {
        "openapi": "3.1.0",
        "info": {"title": "owl_swin", "version": "1", "description": ABOUT},
        "paths": {**_work(), **_pages()},
        "components": components,
    }
    if settings.token:
        document["security"] = [{"token": []}]
    return document


def _work() -> Json:
    """The paths that wait for the model or the archive."""
    archive = ("no_archive", "invalid_archive")
    file = {"application/octet-stream": {"schema": BINARY}}
    operations = {
        "/v1/detect": _operation(
            "detect",
            "Find things in pictures",
            "One result a picture, in order; nothing found is an empty list. The same pictures and queries of "
            "several requests are encoded once.",
            _body("DetectIn", _detect_form()),
            _answer("DetectOut", DETECT_EXAMPLE),
        ),
        "/v1/embed": _operation(
            "embed",
            "Encode queries to keep",
            'The result goes into "saved" of a later request, or into a file; ask with Accept: '
            "application/octet-stream for the file itself.",
            _body("EmbedIn", {"query": _texts()}),
            {**_answer("EmbedOut"), **file},
        ),
        "/v1/search": _operation(
            "search",
            "Search the archive",
            "Where else is this thing? Needs --index.",
            _body("SearchIn", _search_form()),
            _answer("SearchOut"),
            archive,
        ),
        "/v1/images": _operation(
            "add_images",
            "Add pictures to the archive",
            "They are found by the next search. Needs --index.",
            _body("ImagesIn", {"images": _images()}),
            _answer("ImagesOut"),
            (*archive, "archive_busy"),
        ),
    }
    return {
        **{path: {"post": operation} for path, operation in operations.items()},
        "/v1/images/{image_id}": {"get": _thumbnail()},
    }


def _pages() -> Json:
    """The paths that answer at once."""
    text: Json = {"text/plain": {"schema": {"type": "string"}}}
    model, health = _answer("ModelOut"), _answer("HealthOut")
    operations = {
        "/v1/model": _operation("model", "The model, and the limits of this server", "", None, model),
        "/healthz": _operation("healthz", "Whether the process lives", "", None, health, health=True),
        "/readyz": _operation("readyz", "Whether it takes requests", "", None, health, health=True),
        "/metrics": _operation("metrics", "Figures for Prometheus", "", None, text),
    }
    return {path: {"get": operation} for path, operation in operations.items()}


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


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(name: str, example: Json | None = None) -> Json:
    content: Json = {"schema": _ref(name)}
    return {"application/json": content if example is None else {**content, "example": example}}


def _images() -> Json:
    return {"type": "array", "items": BINARY, "description": "The pictures, one part each."}


def _texts() -> Json:
    return {"type": "array", "items": {"type": "string"}, "description": "Texts to find, in place of request."}


def _search_form() -> Json:
    """The fields of SearchIn, of which a form leaves out what it does not mean; of its queries it has the text."""
    own = SearchIn.model_json_schema()["properties"]
    plain = {
        name: {**field.get("anyOf", [field])[0], "description": field.get("description", "")}
        for name, field in own.items()
        if name != "query"
    }
    return {"query": {"type": "string", "description": "The text to find, in place of request."}, **plain}


def _detect_form() -> Json:
    own = DetectIn.model_json_schema()["properties"]
    plain = {name: {"type": "number", "description": own[name]["description"]} for name in ("threshold", "nms_iou")}
    return {
        "images": _images(),
        "query": _texts(),
        **plain,
        "top_k": {"type": "integer", "minimum": 1, "description": own["top_k"]["description"]},
    }


def _body(name: str, plain: Json) -> Json:
    """A body as JSON, or as a form whose part ``request`` is that JSON."""
    files = {"type": "array", "items": BINARY, "description": 'Files that {"file": FILENAME} of the JSON names.'}
    form = {"type": "object", "properties": {"request": _ref(name), **plain, "files": files}}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": _ref(name)},
            "multipart/form-data": {"schema": form, "encoding": {"request": {"contentType": "application/json"}}},
        },
    }


def _operation(
    identity: str,
    summary: str,
    description: str,
    body: Json | None,
    content: Json,
    codes: tuple[str, ...] = (),
    *,
    health: bool = False,
) -> Json:
    codes = (*DOOR_CODES, *(BODY_CODES if body else ()), *(("shutting_down",) if health else ()), *codes)
    operation: Json = {"operationId": identity, "summary": summary, "responses": _responses(content, codes)}
    if health:
        operation["security"] = []
    if description:
        operation["description"] = description
    if body:
        operation["requestBody"] = body
    return operation


def _thumbnail() -> Json:
    operation = _operation(
        "thumbnail",
        "A picture of the archive, small",
        "",
        None,
        {"image/jpeg": {"schema": BINARY}},
        ("no_archive", "no_such_image", "invalid_request", "busy", "shutting_down", "timeout"),
    )
    size = {"type": "integer", "minimum": 16, "maximum": 2048, "default": 256}
    operation["parameters"] = [
        {"name": "image_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}},
        {"name": "size", "in": "query", "schema": size, "description": "Longer side in pixels."},
    ]
    return operation


def _responses(content: Json, codes: tuple[str, ...]) -> Json:
    """200, and each status with the codes that it may carry."""
    responses: Json = {"200": {"description": "As asked", "content": content}}
    for code in codes:
        status, title = CODES[code]
        entry = responses.setdefault(
            str(status), {"description": "", "content": {MEDIA_TYPE: {"schema": _ref("ProblemOut")}}}
        )
        entry["description"] += f"{', ' if entry['description'] else ''}`{code}`: {title}"
        if status == 503:
            entry["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
    return responses


STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code,pre{font:14px/1.4 ui-monospace,monospace}pre{overflow:auto;padding:.7rem;border:1px solid #8886}"
    "h2{margin-top:2.5rem;border-bottom:1px solid #8886}table{border-collapse:collapse}td{padding:.1rem .8rem .1rem 0;"
    "vertical-align:top}"
)


def docs_page(document: Json) -> str:
    """/docs: the document as a page, for people. It loads nothing, so that it also opens without the internet."""
    parts = [f"<p>{_text(ABOUT)}</p><p>For programs: <a href='openapi.json'>openapi.json</a></p>"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation_html(path, method, operation, document))
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
