"""The part of the Hugging Face hub that models are fetched from and sent to, on this machine: a server over folders."""

import base64
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
    writers: set[str] = field(default_factory=set)
    folder: Path | None = None
    messages: list[str] = field(default_factory=list)

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
        if not (folder / rest).is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = (folder / rest).read_bytes()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{sha(content.hex())}"'}, content

    def take(self, path, body):
        """Status, headers and body of a request that writes: a new model, branch or commit."""
        parts = path.partition("?")[0].strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            return 200, {}, b'{"errors": [], "warnings": []}'
        made = parts == ["api", "repos", "create"]
        name = "/".join(
            [json.loads(body).get("organization") or "me", json.loads(body)["name"]] if made else parts[2:4]
        )
        if name in self.refusals:
            status, code = self.refusals[name]
            return status, {"X-Error-Code": code}, b"{}"
        revision = "main" if made else parts[5]
        if made or parts[4] == "branch":
            folder = self.repositories.setdefault((name, revision), self.folder / name / revision)
            folder.mkdir(parents=True, exist_ok=True)
            return 200, {}, json.dumps({"url": f"{huggingface_hub.constants.ENDPOINT}/{name}"}).encode()
        if parts[4] == "preupload":
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return 200, {}, json.dumps({"files": modes}).encode()
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.messages.append(line["value"]["summary"])
            else:
                place = self.repositories[name, revision] / line["value"]["path"]
                place.write_bytes(base64.b64decode(line["value"]["content"]))
        address = f"{huggingface_hub.constants.ENDPOINT}/{name}/commit/{sha(name)}"
        return 200, {}, json.dumps({"success": True, "commitUrl": address, "commitOid": sha(name)}).encode()


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

        def do_POST(self):
            length = int(self.headers.get("Content-Length") or 0)
            content = self.rfile.read(length) if length else b"".join(self.chunks())
            hub.writers |= {self.headers.get("Authorization", "")} if "validate-yaml" not in self.path else set()
            self.reply(head=False, answer=hub.take(self.path, content))

        def chunks(self):
            while size := int(self.rfile.readline(), 16) if self.headers.get("Transfer-Encoding") else 0:
                yield self.rfile.read(size)
                self.rfile.readline()

        def reply(self, head, answer=None):
            hub.tokens.add(self.headers.get("Authorization", ""))
            status, headers, body = answer or hub.answer(self.path)
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
