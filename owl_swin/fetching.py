"""Pictures by URL: never from an address that is not of the open internet, and only from hosts that are allowed."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from urllib.parse import urljoin, urlsplit

from owl_swin.addresses import is_public
from owl_swin.errors import AddressRefusedError, NotFetchedError

TIMEOUT_S = 10.0
CHUNK = 64 * 1024


def fetch(
    url: str,
    allowed: Collection[str] | None,
    *,
    max_bytes: int,
    allow_address: Callable[[str], bool] = is_public,
    timeout_s: float = TIMEOUT_S,
    redirects: int = 0,
) -> bytes:
    """The bytes at an http(s) URL whose host, or host:port, is one of ``allowed``; None allows every host.

    The name is resolved once, every address of it is checked, and the connection goes to a checked one, so that a name
    that changes its mind gains nothing. As many ``redirects`` are followed, each to a URL that is checked in the same
    way. A URL that may not be fetched raises AddressRefusedError, one that cannot NotFetchedError.
    """
    deadline = time.monotonic() + timeout_s
    for left in range(redirects, -1, -1):
        found = _fetch_once(url, allowed, max_bytes, allow_address, deadline, follow=left > 0)
        if isinstance(found, bytes):
            return found
        url = found
    raise NotFetchedError("the URL was redirected too often")


def _fetch_once(
    url: str,
    allowed: Collection[str] | None,
    max_bytes: int,
    allow_address: Callable[[str], bool],
    deadline: float,
    *,
    follow: bool,
) -> bytes | str:
    """The bytes at the URL, or the URL to which its host sends on."""
    scheme, host, port, target = _taken_apart(url, allowed)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # ValueError: a name that holds what no name can
        raise NotFetchedError(f"{host}: no such host") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(allow_address(address) for address in addresses):
        raise AddressRefusedError(f"{host}: has an address that is not of the open internet")
    left_s = max(0.1, deadline - time.monotonic())
    connection = _connection(scheme, host, port, addresses[0], left_s)
    alarm = threading.Timer(left_s, connection.cut)
    alarm.daemon = True
    alarm.start()
    try:
        headers = {
            "Host": urlsplit(url).netloc,
            "User-Agent": "owl_swin",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
        }
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        if 300 <= response.status < 400:
            if follow and (location := response.getheader("Location")):
                return urljoin(url, location)
            raise NotFetchedError(f"{host}: answered {response.status}, a redirect, which is not followed")
        if response.status != 200:
            raise NotFetchedError(f"{host}: answered {response.status}, no picture")
        return _read(response, host, max_bytes, deadline)
    except NotFetchedError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = "took too long" if time.monotonic() >= deadline else f"could not be read ({type(error).__name__})"
        raise NotFetchedError(f"{host}: {why}") from None
    finally:
        alarm.cancel()
        connection.close()


def _taken_apart(url: str, allowed: Collection[str] | None) -> tuple[str, str, int, str]:
    """Scheme, host, port and target of a URL that may be fetched."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise AddressRefusedError("the URL cannot be read") from None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        raise AddressRefusedError("a URL must be http or https, with a host and without a user")
    standard = 443 if parts.scheme == "https" else 80
    name = host if port in (None, standard) else f"{host}:{port}"
    names = {name.lower(), f"{host}:{port or standard}".lower()}
    if allowed is not None and names.isdisjoint(one.lower() for one in allowed):
        raise AddressRefusedError(f"{name[:255]}: pictures are not fetched from there; send the picture itself")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(not "!" <= letter <= "~" for letter in target):
        raise AddressRefusedError("the URL holds characters that must be written as %xx")
    return parts.scheme, host, port or standard, target


class _Checked(http.client.HTTPConnection):
    """A connection to an address that was checked, which asks for the host of the URL."""

    def __init__(self, host: str, port: int, address: str, timeout_s: float, context: ssl.SSLContext | None):
        super().__init__(host, port, timeout=timeout_s)
        self._address, self._context = address, context
        self._connected: socket.socket | None = None
        self._late = False

    def connect(self) -> None:
        """Connects, in TLS by the host's name, without asking for its address again."""
        self.sock = self._connected = socket.create_connection((self._address, self.port), self.timeout)
        if self._late:
            raise TimeoutError
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self._connected = self.sock
            self.sock.do_handshake()

    def cut(self) -> None:
        """Ends what is waited for. A socket's own timeout begins anew with each byte."""
        self._late = True
        if self._connected is not None:  # "sock" goes to the answer where it is the last of its connection
            with suppress(OSError):
                self._connected.shutdown(socket.SHUT_RDWR)


def _connection(scheme: str, host: str, port: int, address: str, timeout_s: float) -> _Checked:
    context = ssl.create_default_context() if scheme == "https" else None
    return _Checked(host, port, address, timeout_s, context)


def _read(response: http.client.HTTPResponse, host: str, max_bytes: int, deadline: float) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := response.read1(CHUNK):
        size += len(chunk)
        if size > max_bytes:
            raise NotFetchedError(f"{host}: the picture has more than {max_bytes} bytes")
        if time.monotonic() >= deadline:
            break
        chunks.append(chunk)
    if time.monotonic() >= deadline:  # which has cut it
        raise NotFetchedError(f"{host}: took too long")
    return b"".join(chunks)
