"""The application under uvicorn: slow connections are closed, and SIGTERM ends it without losing a request."""

import asyncio
import contextlib
import copy
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from owl_swin.errors import ConfigError
from owl_swin.server.problems import MEDIA_TYPE, Problem
from owl_swin.server.serving import Serving
from owl_swin.server.settings import ServerSettings
from owl_swin.signals import TERMINATING

MAX_HEAD_BYTES = 64 * 1024
# Bytes of one connection that are read in one turn of the loop, and the most lines of a chunked body among them: each
# chunk has two, takes its time however short it is, and keeps the others waiting.
READ_BYTES = 16 * 1024
MOST_LINES = 1024
# After an answer to a request whose body is still coming, so much of it is read and thrown away, for so long.
LINGER_BYTES = 64 * 2**20
LINGER_S = 5.0
# Of an answer that waits for its client, so many bytes are read in so many seconds, or the connection is cut.
UNREAD_BYTES, UNREAD_S = 16 * 1024, 30.0
# What the system keeps of answers to one client. It takes more only when a third of that is read, so that with the
# megabytes that it may choose by itself a slow client would seem to stand still.
SEND_BUFFER_BYTES = 256 * 1024


class GuardedProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with a bound on connections and on how long the head of a request may take."""

    settings = ServerSettings()

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._thrown_away = 0
        self._lingers = self._more_to_come = False
        self._linger_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client comes in; one too many gets 503 and is closed."""
        super().connection_made(_Closing(transport, self))  # type: ignore[arg-type]
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        transport.set_write_buffer_limits(0)  # pause_writing is called for whatever the system does not take at once
        if len(self.connections) > self.settings.max_connections:
            problem = Problem("busy", "too many connections; come again later", headers={"Retry-After": "5"})
            self.close_with(problem, linger=False)  # of these there may be any number
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_head_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered; one that stops to read is cut off."""
        super().pause_writing()  # type: ignore[no-untyped-call]
        self._start_unread_timer()

    def resume_writing(self) -> None:
        """The client has read all there was."""
        super().resume_writing()  # type: ignore[no-untyped-call]
        self._stop_unread_timer()

    def _start_unread_timer(self) -> None:
        self._stop_unread_timer()
        self._unread_timer = self.loop.call_later(UNREAD_S, self._check_unread, self.transport.get_write_buffer_size())

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _check_unread(self, n_bytes: int) -> None:
        self._unread_timer = None
        if self.transport.get_write_buffer_size() > max(0, n_bytes - UNREAD_BYTES):
            self.transport.abort()  # close() would wait for what is never read
        else:
            self._start_unread_timer()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, or of a body that was answered already."""
        if self.transport.is_closing():
            if self._lingers:
                self._throw_away(data)
            return
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            self._throw_away(data)
            if self._thrown_away > LINGER_BYTES:
                return
        elif self._head_timer is None and self._between_requests():
            self._start_head_timer()
        super().data_received(data)

    def _throw_away(self, data: bytes) -> None:
        self._thrown_away += len(data)
        if self._thrown_away > LINGER_BYTES:
            self.transport.abort()
        elif self._linger_timer is None:
            self._linger_timer = self.loop.call_later(LINGER_S, self.transport.abort)

    def linger(self, transport: asyncio.Transport) -> bool:
        """Whether a connection that is to close has more of a body to come: it then says no more, and reads for a while
        what comes. The system would take back an answer that the client has not read, with bytes that nobody reads."""
        more = self._more_to_come or self.conn.their_state is h11.SEND_BODY
        if not more or not transport.can_write_eof():
            return False
        self._lingers = True
        transport.write_eof()
        transport.resume_reading()
        self._throw_away(b"")
        return True

    def handle_events(self) -> None:
        """After bytes were read: a request whose head is complete stops the clock."""
        super().handle_events()
        if not self._between_requests():
            self._stop_head_timer()
        if self._linger_timer is not None and self.conn.their_state is not h11.SEND_BODY:
            self._linger_timer.cancel()
            self._linger_timer, self._thrown_away = None, 0

    def _between_requests(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.head_timeout_s, self._head_too_slow)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing() and self._between_requests():
            self.close_with(Problem("request_timeout", "the head of the request came too slowly"))

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing to say: clients that offer HTTP/2 or WebSockets are answered in HTTP/1.1."""

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP."""
        self.close_with(Problem("invalid_http", "this is not a request of HTTP/1.1"))

    def has_chunks(self, data: bytes) -> bool:
        """Whether the bytes that have come belong to a body in chunks, or to its head."""
        name = b"transfer-encoding"
        if self.conn.their_state is h11.SEND_BODY:
            return any(one == name for one, _ in self.headers)
        return name in data.lower()

    def close_with(self, problem: Problem, *, linger: bool = True) -> None:
        """Answers outside of any request, and closes; what is to come of one is read first."""
        self._stop_head_timer()
        self._more_to_come = linger
        answer = problem.response()
        headers = {"content-type": MEDIA_TYPE, "content-length": str(len(answer.body)), "connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in {**headers, **(problem.headers or {})}.items())
        self.transport.write(f"HTTP/1.1 {problem.status} {problem.code}\r\n{head}\r\n".encode() + bytes(answer.body))
        self.transport.close()


class _Closing:
    """A transport that may linger before it closes, as GuardedProtocol says."""

    def __init__(self, transport: asyncio.Transport, protocol: GuardedProtocol):
        self._transport, self._protocol, self._closed = transport, protocol, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """More of an answer, as long as the connection is not to close."""
        if not self._closed:
            self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing more is to be said."""
        return self._closed or self._transport.is_closing()

    def close(self) -> None:
        """After what was written."""
        if not self.is_closing() and not self._protocol.linger(self._transport):
            self._transport.close()
        self._closed = True


class PortionedProtocol(asyncio.BufferedProtocol):
    """Hands a GuardedProtocol what comes in, so many bytes a turn of the loop; chunks of a few bytes are refused."""

    settings = ServerSettings()

    def __init__(self, *arguments: Any, **named: Any):
        self._inner = GuardedProtocol(*arguments, **named)
        self._inner.settings = self.settings
        self._buffer = bytearray(READ_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client comes in."""
        self._inner.connection_made(transport)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The client has read."""
        self._inner.resume_writing()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        data = bytes(self._buffer[:nbytes])
        if self._inner.transport.is_closing():
            self._inner.data_received(data)
        elif data.count(b"\r\n") > MOST_LINES and self._inner.has_chunks(data):
            detail = "the chunks of the body are too short; send fewer and longer ones"
            self._inner.close_with(Problem("invalid_http", detail))
        else:
            self._inner.data_received(data)


class DrainingServer(uvicorn.Server):
    """On a signal it finishes what it took, tells new requests so for a moment, and ends with code 0."""

    def __init__(self, config: uvicorn.Config, serving: Serving, end_streams: Callable[[], None]):
        super().__init__(config)
        self.serving, self._end_streams = serving, end_streams
        self._draining_since: float | None = None
        self.force_exit: bool = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, once the model is warm."""
        await super().startup(sockets)
        for listening in sockets or ():
            print(f"owl-swin: listening on {address(listening)} (API: /docs)", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal drains, the second ends at once, and one more also what would not end by itself. Only the
        main thread of a process hears signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ending = [sig for sig in TERMINATING if signal.getsignal(sig) is not signal.SIG_IGN]  # as SIGHUP is by `nohup`
        before = {sig: signal.signal(sig, self._on_signal) for sig in (signal.SIGINT, *ending)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def _on_signal(self, sig: int, frame: object) -> None:
        if self.force_exit:
            os._exit(128 + sig)
        if self._draining_since is not None:
            self.should_exit = self.force_exit = True
            return
        self.drain()

    def drain(self) -> None:
        """Takes nothing new from now on, and ends when what runs is done."""
        self._draining_since = time.monotonic()
        self.serving.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._draining_since is not None and not self.should_exit:
            draining_s = time.monotonic() - self._draining_since
            settings = self.serving.settings
            idle = self.serving.waiting == 0 and draining_s >= settings.drain_s
            self.should_exit = idle or draining_s >= settings.stop_timeout_s
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the door and waits for answers as long as is left for them; streams that have no end by themselves get
        one first."""
        self._end_streams()
        if self._draining_since is not None:
            left_s = self.serving.settings.stop_timeout_s - (time.monotonic() - self._draining_since)
            self.config.timeout_graceful_shutdown = max(1, int(left_s))
        await super().shutdown(sockets)


def serve(
    make_app: Callable[[], FastAPI], settings: ServerSettings, *, what: str = "", access_log: bool = False
) -> None:
    """Answers until SIGTERM, SIGHUP or SIGINT. Where it listens, and that ``what`` is loaded before, goes to stderr.

    An address that cannot be had is said before anything is loaded. Who asks meanwhile waits.
    """
    # A pass through the model wants Python's lock back after each of its hundreds of operations; by default another
    # thread may keep it 5 ms every time.
    sys.setswitchinterval(0.0005)
    with bind(settings.host, settings.port) as listening:
        print(f"owl-swin: loading {what}, to answer on {address(listening)}", file=sys.stderr, flush=True)
        make_server(make_app(), settings, access_log=access_log).run([listening])


def address(listening: socket.socket) -> str:
    """Where a socket listens, as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: FastAPI, settings: ServerSettings, *, access_log: bool = False) -> DrainingServer:
    """A server for the application, not yet running."""
    protocol = type("Protocol", (PortionedProtocol,), {"settings": settings})
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, int(settings.stop_timeout_s)),
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        log_config=_log_config(access_log),
    )
    return DrainingServer(config, app.state.serving, app.state.end_streams)


def _log_config(access_log: bool) -> dict[str, Any]:
    """As uvicorn logs, but all of it on stderr, and a line a request as the Guard writes it."""
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["formatters"]["line"] = {"format": "%(asctime)s %(message)s"}
    config["handlers"]["line"] = {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}
    level = "INFO" if access_log else "WARNING"
    config["loggers"]["owl_swin.access"] = {"handlers": ["line"], "level": level, "propagate": False}
    return config


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; an address that cannot be had raises ConfigError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {host}, port {port} ({reason}); choose others with --host and --port"
        ) from None
    listening.setblocking(False)
    return listening
