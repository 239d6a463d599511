"""The part of the Hugging Face hub that models are fetched from, on this machine: an HTTP server over folders."""

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants


@dataclass
class FakeHub:
    """``repositories``: folders by (name, revision); ``refusals``: HTTP status and X-Error-Code by name."""

    repositories: dict[tuple[str, str], Path] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)

    def answer(self, path):
        """Status, headers and body of a request."""
        parts = path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        name, revision, rest = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "main", "/".join(parts[4:])
        if name in self.refusals:
            status, code = self.refusals[name]
            return status, {"X-Error-Code": code}, b"{}"
        found = {sha(*key): folder for key, folder in self.repositories.items()}
        commit = revision if revision in found else sha(name, revision)
        if not any(key[0] == name for key in self.repositories):
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if commit not in found:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        folder = found[commit]
        if api and (len(parts) == 2 or parts[2] == "revision"):
            files = [{"rfilename": one.name} for one in sorted(folder.iterdir())]
            return 200, {}, json.dumps({"_id": "1", "id": name, "sha": commit, "siblings": files}).encode()
        if api and parts[2] == "tree":
            rows = [
                {"type": "file", "path": one.name, "size": one.stat().st_size, "oid": sha(one.read_bytes().hex())}
                for one in sorted(folder.iterdir())
            ]
            return 200, {}, json.dumps(rows).encode()
        if rest in self.broken:
            return 410, {}, b""  # huggingface_hub waits and asks again after a 500
        content = (folder / rest).read_bytes()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{sha(content.hex())}"'}, content


def sha(*words):
    return hashlib.sha1(" ".join(words).encode()).hexdigest()


@contextmanager
def serving(hub, monkeypatch, cache):
    """huggingface_hub asks ``hub`` and keeps what it gives in the folder ``cache``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(head=False)

        def do_HEAD(self):
            self.reply(head=True)

        def reply(self, head):
            hub.tokens.add(self.headers.get("Authorization", ""))
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if not head:
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
