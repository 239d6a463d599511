"""Ways to ask the application: in this process, or over a real socket from a server that runs in a thread."""

import asyncio
import base64
import contextlib
import json
import socket
import threading

import httpx

from owl_swin.server.app import create_app
from owl_swin.server.run import bind, make_server
from owl_swin.server.settings import ServerSettings


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def ask(app, method: str, path: str, **options) -> httpx.Response:
    """One request, without a socket."""

    async def asked():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


def detect(app, **body) -> httpx.Response:
    return ask(app, "POST", "/v1/detect", json=body)


class Running:
    """A server on a free port of this machine."""

    def __init__(self, server, port: int):
        self.server, self.port = server, port
        self.url = f"http://127.0.0.1:{port}"

    def send(self, raw: bytes, *, timeout_s: float = 10) -> tuple[int, dict]:
        """Raw bytes in, status and JSON of the first answer out; status 0 if the connection ends without one."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(raw)
            return read_answer(connection)


def read_answer(connection: socket.socket) -> tuple[int, dict]:
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < _length(got):
            part = connection.recv(65536)
            if not part:
                break
            got += part
    if not got:
        return 0, {}
    body = got.partition(b"\r\n\r\n")[2]
    return int(got[9:12]), json.loads(body) if body.startswith(b"{") else {}


def _length(got: bytes) -> int:
    for line in got.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


@contextlib.contextmanager
def running(detector, *, demo=None, **settings):
    """A real server in a thread of this process, until the block ends."""
    chosen = ServerSettings(**{"port": 0, "drain_s": 0.1, **settings})
    app = create_app(detector, chosen, demo=demo)
    listening = bind("127.0.0.1", 0)
    server = make_server(app, chosen)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield Running(server, listening.getsockname()[1])
    finally:
        if not server.serving.draining:
            server.drain()
        thread.join(20)
        assert not thread.is_alive()
