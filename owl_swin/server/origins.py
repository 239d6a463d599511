"""Pages of other sites that may use the API (CORS, https://fetch.spec.whatwg.org): which, and what they are answered.

Browsers are never told that they may send what they keep for this server, such as a password: a page that has the token
sends it itself.
"""

from starlette.responses import Response

from owl_swin.server.problems import Problem

# What pages may send and read beside what a browser lets every page.
METHODS = "GET, HEAD, POST"
MAY_SEND = "Accept, Authorization, Content-Type, X-Request-Id"
MAY_READ = "Allow, Content-Disposition, Retry-After, X-Request-Id"
# For so long a browser need not ask again; Chromium takes no more.
MAX_AGE_S = 7200

Headers = list[tuple[bytes, bytes]]


def answer_headers(origin: str | None, allowed: tuple[str, ...]) -> Headers:
    """What stands in every answer of the API, so that pages of the allowed origins can read it."""
    if not allowed:
        return []
    vary = [] if "*" in allowed else [(b"vary", b"Origin")]
    if origin is None or not {origin, "*"} & set(allowed):
        return vary
    named = "*" if "*" in allowed else origin
    readable = (b"access-control-expose-headers", MAY_READ.encode())
    return [(b"access-control-allow-origin", named.encode()), readable, *vary]


def is_preflight(method: str, headers: dict[str, str], allowed: tuple[str, ...]) -> bool:
    """Whether a browser asks what a page may send. It does so without a token."""
    asks = "origin" in headers and "access-control-request-method" in headers
    return bool(allowed) and method == "OPTIONS" and asks


def preflight(origin: str, headers: dict[str, str], allowed: tuple[str, ...]) -> Response:
    """What a page may send; one of an origin that is not allowed raises Problem."""
    if not {origin, "*"} & set(allowed):
        raise Problem("cross_origin", "pages of other sites may not use this server; see --allow-origin")
    answer = {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": MAY_SEND,
        "Access-Control-Max-Age": str(MAX_AGE_S),
    }
    if headers.get("access-control-request-private-network") == "true":  # a public page asks a machine at home
        answer["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=answer)
