"""Pictures by URL: only from hosts that the operator named, never from a private address, never after a redirect."""

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from owl_swin.server.addresses import is_public
from owl_swin.server.problems import Problem

TIMEOUT_S = 10.0
CHUNK = 64 * 1024


def fetch(
    url: str,
    allowed: Collection[str],
    *,
    max_bytes: int,
    allow_address: Callable[[str], bool] = is_public,
    timeout_s: float = TIMEOUT_S,
) -> bytes:
    """The bytes at an http(s) URL whose host, or host:port, is one of ``allowed``.

    The name is resolved once, every address of it is checked, and the connection goes to a checked one, so that a name
    that changes its mind gains nothing. Anything else raises Problem.
    """
    scheme, host, port, target = _taken_apart(url, allowed)
    deadline = time.monotonic() + timeout_s
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Problem("url_not_fetched", f"{host}: no such host") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(allow_address(address) for address in addresses):
        raise Problem("url_not_allowed", f"{host}: has an address that is not of the open internet")
    connection = _connection(scheme, host, port, addresses[0], timeout_s)
    try:
        headers = {"User-Agent": "owl_swin", "Accept": "image/*", "Accept-Encoding": "identity"}
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        if response.status != 200:
            kind = "a redirect, which is not followed" if 300 <= response.status < 400 else "no picture"
            raise Problem("url_not_fetched", f"{host}: answered {response.status}, {kind}")
        return _read(response, host, max_bytes, deadline)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Problem("url_not_fetched", f"{host}: could not be read ({type(error).__name__})") from None
    finally:
        connection.close()


def _taken_apart(url: str, allowed: Collection[str]) -> tuple[str, str, int, str]:
    """Scheme, host, port and target of a URL that may be fetched."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Problem("url_not_allowed", "the URL cannot be read") from None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        raise Problem("url_not_allowed", "a URL must be http or https, with a host and without a user")
    standard = 443 if parts.scheme == "https" else 80
    name = host if port in (None, standard) else f"{host}:{port}"
    if name.lower() not in {one.lower() for one in allowed}:
        raise Problem(
            "url_not_allowed", f"{name[:255]}: this server fetches nothing from there; send the picture itself"
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(not "!" <= letter <= "~" for letter in target):
        raise Problem("url_not_allowed", "the URL holds characters that must be written as %xx")
    return parts.scheme, host, port or standard, target


def _connection(scheme: str, host: str, port: int, address: str, timeout_s: float) -> http.client.HTTPConnection:
    """A connection to ``address`` that asks for ``host``, by name in TLS too."""
    if scheme == "http":
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())

    def to_the_checked_address(_: tuple[str, int], *arguments, **named) -> socket.socket:
        return socket.create_connection((address, port), *arguments, **named)

    connection._create_connection = to_the_checked_address  # type: ignore[attr-defined]
    return connection


def _read(response: http.client.HTTPResponse, host: str, max_bytes: int, deadline: float) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := response.read1(CHUNK):
        size += len(chunk)
        if size > max_bytes:
            raise Problem("url_not_fetched", f"{host}: the picture has more than {max_bytes} bytes")
        if time.monotonic() > deadline:
            raise Problem("url_not_fetched", f"{host}: took too long")
        chunks.append(chunk)
    return b"".join(chunks)
