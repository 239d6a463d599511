"""The head of a request: who may ask, and which headers can be read. Nothing of the body is read for it."""

import base64
import binascii
import hmac
import ipaddress
import re
import uuid
from collections.abc import Callable

from starlette.types import Scope

from owl_swin.server.problems import Problem
from owl_swin.server.settings import ServerSettings

# Probes of a load balancer carry no token.
OPEN_PATHS = ("/healthz", "/readyz")
HOST = re.compile(r"([A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(.*)")
# What stands in a log and begins no line of its own.
REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
SERVER = re.compile(r"https?://([^/]*)(?:/[!-~]*)?")


def check_head(scope: Scope, path: str, settings: ServerSettings, max_bytes: int) -> None:
    """Refuses, by raising Problem, who may not ask and what cannot be read, whatever the headers hold.

    ``path`` is the one below the root path.
    """
    headers = headers_of(scope)
    for name, readable in READABLE.items():
        if any(value and not readable(value) for value in _values(scope, name)):
            raise Problem("invalid_header", f"the header {name} cannot be read")
    host = headers.get("host", "").lower()
    if not settings.token and not settings.open_to_all and host and not _names_this_machine(host, settings.host):
        # A page elsewhere whose name points here (DNS rebinding) would otherwise have the browser ask for it.
        raise Problem("wrong_host", "without a token this server answers to localhost only; see --token-file")
    kinds = {_kind_of_origin(origin, headers, path, settings) for origin in _values(scope, "origin")}
    if None in kinds:
        raise Problem("cross_origin", "pages of other sites may not use this server; see --allow-origin")
    # A browser sends the password that it keeps for this server with what any page asks; a page must know a token.
    basic = "any" not in kinds
    if settings.token and path not in OPEN_PATHS and not _carries(headers, settings.token, basic=basic):
        asks = {"WWW-Authenticate": 'Basic realm="owl_swin", charset="UTF-8"'}
        raise Problem("unauthorized", "send the token: Authorization: Bearer TOKEN", headers=asks)
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Problem("encoded_body", "send the body as it is, without Content-Encoding")
    length = headers.get("content-length")
    if length is not None:
        if not (length.isascii() and length.isdigit()):
            raise Problem("invalid_content_length", "Content-Length must be a number of bytes")
        if len(length) > 18 or int(length) > max_bytes:
            raise too_large(max_bytes)


def request_id(scope: Scope) -> str:
    """What this request is called in its answer and in the log: as its client calls it, if that is sane, or anew."""
    given = headers_of(scope).get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def below_root(scope: Scope, root: str) -> tuple[Scope, str]:
    """The request as ASGI has it behind a proxy, and its path below the root path.

    The whole path starts with the root path, whether or not the proxy took that away.
    """
    path = scope["path"]
    if not root:
        return scope, path
    if path == root or path.startswith(f"{root}/"):
        return {**scope, "root_path": root}, path[len(root) :]
    raw = root.encode() + scope.get("raw_path", path.encode())
    return {**scope, "root_path": root, "path": root + path, "raw_path": raw}, path


def headers_of(scope: Scope) -> dict[str, str]:
    """The headers by lower-case name; of one that is given twice, the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def too_large(max_bytes: int) -> Problem:
    """Refuses a body by its size."""
    return Problem("body_too_large", f"a body has at most {max_bytes} bytes here")


def _values(scope: Scope, wanted: str) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name.decode("latin-1").lower() == wanted]


def _is_host(text: str) -> bool:
    """Whether a text is HOST or HOST:PORT, of a name or an address."""
    found = HOST.fullmatch(text)
    if not found or int(found[2] or 0) > 65535:
        return False
    try:
        return not text.startswith("[") or bool(ipaddress.IPv6Address(found[1][1:-1]))
    except ValueError:
        return False


def _are_hosts(text: str) -> bool:
    return all(_is_host(host.strip()) for host in text.split(","))


def _are_schemes(text: str) -> bool:
    return all(scheme.strip().lower() in ("http", "https", "ws", "wss") for scheme in text.split(","))


def _is_server(text: str) -> bool:
    found = SERVER.fullmatch(text)
    return bool(found and _is_host(found[1]))


# What the pages of the demo make addresses of. Behind proxies it is a list, whose first entry counts.
READABLE: dict[str, Callable[[str], bool]] = {
    "host": _is_host,
    "x-forwarded-host": _are_hosts,
    "x-forwarded-proto": _are_schemes,
    "x-gradio-server": _is_server,
}


def _host_of_origin(origin: str) -> str | None:
    found = ORIGIN.fullmatch(origin.strip())
    return found[1].lower() if found and _is_host(found[1]) else None


def _kind_of_origin(origin: str, headers: dict[str, str], path: str, settings: ServerSettings) -> str | None:
    """Whose page asks: this server's "own", a "named" one, with '*' "any" that uses the API, or None that may not.

    A proxy may name this server otherwise, and pages cannot forge what it says: a browser would ask first.
    """
    own = {headers.get("host", "").lower(), headers.get("x-forwarded-host", "").partition(",")[0].strip().lower()}
    if _host_of_origin(origin) in own - {""}:
        return "own"
    if origin.strip() in settings.allow_origins:
        return "named"
    return "any" if "*" in settings.allow_origins and is_api(path) else None


def is_api(path: str) -> bool:
    """Whether programs ask there, and not the pages of the demo."""
    return path.startswith("/v1/") or path in ("/openapi.json", *OPEN_PATHS)


def _names_this_machine(host: str, own: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return name.strip("[]") in {"localhost", "127.0.0.1", "::1", own.lower()}


def _carries(headers: dict[str, str], token: str, *, basic: bool) -> bool:
    """Whether the request carries the token: as a bearer, or with ``basic`` as the password that a browser asks for."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    given = value.strip()
    if basic and scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode(), token.encode())
