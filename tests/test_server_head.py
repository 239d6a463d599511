"""The head of a request: no header, path or name makes the server fail, or writes a line of its own into the log."""

import asyncio
import json
import logging

import httpx
import pytest
from http_client import ask, b64, running
from picture_files import encode, noise

from owl_swin.detector import Detector
from owl_swin.server.app import build_demo, create_app
from owl_swin.server.security import Guard
from owl_swin.server.settings import ServerSettings

PICTURE = encode(noise(20, 20))
UPLOAD = "/gradio_api/upload"
FORGED = "\n2026-01-01 00:00:00 ERROR forged"


@pytest.fixture(scope="module")
def app(detector):
    # Open to all, so that the pages see every Host; with them, since what they make of headers is not ours.
    app = create_app(detector, ServerSettings(open_to_all=True), demo=build_demo)
    yield app
    app.state.serving.close()


NAMES = [
    "Host", "Origin", "Referer", "Content-Type", "Content-Encoding", "Authorization", "Accept", "Accept-Language",
    "Cookie", "Range", "User-Agent", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto",
    "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Gradio-Server", "X-Gradio-Target", "X-Request-Id",
    "Access-Control-Request-Method", "Access-Control-Request-Headers", "If-Modified-Since", "If-None-Match",
]  # fmt: skip
VALUES = [
    "", "http://[x", "[x", "[:::::]", "[::1", "a:99999", "a:b", "http://a:b", "//", "\\", '";=', "a;b=c;b",
    "=?utf-8?b?x", "%00%0a", "a\xffb", "multipart/form-data; boundary=",
    'multipart/form-data; boundary="\xff"', "Basic \xe9\xe9",
    "bytes=-1,", "x" * 20_000, ";\"" * 5000, ", " * 5000, "http://a/\x7f", "\t",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_header_makes_the_server_fail(app, name):
    async def every():
        answers = {}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            for value in VALUES:
                headers = [(b"Host", b"localhost:8000")] if name != "Host" else []
                sent = [*headers, (name.encode(), value.encode("latin-1"))]
                for method, path in (("GET", "/config"), ("POST", UPLOAD)):
                    answers[method, path, value] = await client.request(method, path, headers=sent, content=b"{}")
        return answers

    answers = asyncio.run(every())
    failed = {key: one.text[:300] for key, one in answers.items() if one.status_code >= 500}
    assert failed == {}
    assert name in ("Host", "Origin") or any(one.status_code == 200 for one in answers.values())


@pytest.mark.parametrize(
    "headers, status, code",
    [
        ({"Origin": "http://[x"}, 403, "cross_origin"),
        ({"Host": "[x"}, 400, "invalid_header"),
        ({"Host": "localhost:99999"}, 400, "invalid_header"),
        ({"X-Forwarded-Host": "a, [x"}, 400, "invalid_header"),
        ({"X-Forwarded-Proto": "gopher"}, 400, "invalid_header"),
    ],
)
def test_before_the_token_is_looked_at_a_header_that_cannot_be_read_is_refused(detector, headers, status, code):
    app = create_app(detector, ServerSettings(token="open-sesame"))
    answer = ask(app, "GET", "/v1/model", headers=headers)
    app.state.serving.close()
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_of_two_origins_each_must_be_this_server_s(app):
    sent = [("Host", "localhost"), ("Origin", "http://evil.example"), ("Origin", "http://localhost")]
    assert ask(app, "GET", "/v1/model", headers=sent).json()["code"] == "cross_origin"


class Failing(Detector):
    """Fails with the words of its caller."""

    def encode_queries(self, queries):
        try:
            raise KeyError(queries[0])
        except KeyError as error:
            raise RuntimeError(f"could not encode {queries[0].name}") from error


def forged_lines(caplog) -> list[str]:
    return [line for one in caplog.records for line in one.getMessage().splitlines() if line.startswith("2026")]


@pytest.mark.parametrize("query", [f"a{FORGED}", {"name": f"a{FORGED}", "texts": ["b"]}])
def test_no_name_begins_a_line_of_the_log(tiny_model, caplog, query):
    app = create_app(Failing(tiny_model, device="cpu"))
    answer = ask(app, "POST", "/v1/detect", json={"images": [{"content": b64(PICTURE)}], "queries": [query]})
    app.state.serving.close()
    assert answer.status_code == 500
    assert "RuntimeError" in caplog.text and "KeyError" in caplog.text and "forged" in caplog.text
    assert forged_lines(caplog) == []


def test_no_path_begins_a_line_of_the_log(app, caplog):
    async def fail(scope, receive, send):
        raise RuntimeError(scope["path"])

    answer = ask(Guard(fail, app.state.serving), "GET", "/%0a2026-01-01%2000:00:00%20ERROR%20forged")
    assert answer.status_code == 500
    assert "forged" in caplog.text
    assert forged_lines(caplog) == []


def test_the_access_log_holds_a_path_on_one_line(detector, caplog):
    with running(detector) as server, caplog.at_level(logging.INFO):
        answer = httpx.get(f"{server.url}/v1/nope%0d%0aforged", timeout=10)
    assert (answer.status_code, json.loads(answer.text)["code"]) == (404, "not_found")
    assert "\nforged" not in caplog.text
