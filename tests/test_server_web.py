"""The server and the web around it: pages of other origins, a proxy before it, and what a request is called."""

import asyncio
import logging
import re
import socket

import httpx
import pytest
from http_client import ask, b64, detect
from picture_files import encode, noise
from test_cli import owl_swin  # noqa: F401

from owl_swin.errors import ConfigError
from owl_swin.index.region_index import RegionIndex
from owl_swin.server import cluster
from owl_swin.server.app import build_demo, create_app
from owl_swin.server.settings import ServerSettings

PICTURE = encode(noise(60, 90))
APP = "https://app.example"
TOKEN = {"Authorization": "Bearer open-sesame"}
BASIC = {"Authorization": "Basic " + b64(b"me:open-sesame")}


@pytest.fixture(scope="module")
def served(detector):
    """Makes applications, which end with the module."""
    made = []

    def make(**settings):
        demo = settings.pop("demo", None)
        made.append(create_app(detector, ServerSettings(**settings), demo=demo))
        return made[-1]

    yield make
    for app in made:
        app.state.serving.close()


@pytest.fixture(scope="module")
def named(served):
    return served(allow_origins=(APP, "http://localhost:5173"))


@pytest.fixture(scope="module")
def anyone(served):
    return served(allow_origins=("*",), token="open-sesame")


@pytest.fixture(scope="module")
def proxied(served):
    return served(root_path="/tools/owl", allow_origins=(APP,), demo=build_demo)


# --- Pages of other origins ----------------------------------------------------------------------------------------


def asks_first(app, origin: str, path: str = "/v1/detect", **headers):
    given = {"Origin": origin, "Access-Control-Request-Method": "POST", **headers}
    return ask(app, "OPTIONS", path, headers=given)


def cors(answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control")}


@pytest.mark.parametrize("origin", [APP, "http://localhost:5173"])
def test_pages_of_a_named_origin_may_ask_and_read_answers_and_errors(named, origin):
    first = asks_first(named, origin, **{"Access-Control-Request-Headers": "authorization,content-type"})
    assert (first.status_code, first.headers["access-control-allow-origin"]) == (204, origin)
    assert {"Authorization", "Content-Type", "X-Request-Id"} <= set(
        first.headers["access-control-allow-headers"].split(", ")
    )
    for body, status in [({"images": [{"content": b64(PICTURE)}]}, 200), ({"images": []}, 422)]:
        answer = ask(named, "POST", "/v1/detect", json=body, headers={"Origin": origin})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, origin)
        assert "Origin" in answer.headers["vary"]
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://app.example.evil.example",
        "http://app.example",
        "https://app.example:8443",
        "null",
    ],
)
def test_pages_of_no_named_origin_may_not(named, origin):
    first = asks_first(named, origin)
    answer = ask(named, "POST", "/v1/detect", json={}, headers={"Origin": origin})
    for refused in (first, answer):
        assert (refused.status_code, refused.json()["code"], cors(refused)) == (403, "cross_origin", {})


def test_a_cache_keeps_answers_of_origins_apart(named, served):
    assert "Origin" in ask(named, "GET", "/v1/model").headers["vary"]
    assert "vary" not in ask(served(), "GET", "/v1/model").headers


def test_a_page_on_the_web_may_ask_a_machine_at_home_if_it_is_named(named):
    private = {"Access-Control-Request-Private-Network": "true"}
    assert asks_first(named, APP, **private).headers["access-control-allow-private-network"] == "true"
    assert asks_first(named, "https://evil.example", **private).status_code == 403


def test_all_origins_need_the_token_itself_and_no_password_that_the_browser_keeps(anyone):
    first = asks_first(anyone, "https://any.example")
    assert (first.status_code, first.headers["access-control-allow-origin"]) == (204, "*")
    statuses = [
        ask(anyone, "GET", "/v1/model", headers={**told, **origin}).status_code
        for told in ({}, BASIC, TOKEN)
        for origin in ({}, {"Origin": "http://localhost"}, {"Origin": "https://any.example"}, {"Origin": "null"})
    ]
    assert statuses == [401] * 4 + [200, 200, 401, 401] + [200] * 4
    answer = ask(anyone, "GET", "/v1/model", headers={**TOKEN, "Origin": "https://any.example"})
    assert cors(answer).keys() == {"access-control-allow-origin", "access-control-expose-headers"}


def test_pages_of_the_demo_are_for_named_origins_only(served):
    pages = served(allow_origins=("*",), token="open-sesame", demo=build_demo)
    answer = ask(pages, "GET", "/config", headers={**TOKEN, "Origin": "https://any.example"})
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
    assert ask(pages, "GET", "/config", headers={**TOKEN, "Origin": "http://localhost"}).status_code == 200


@pytest.mark.parametrize(
    "origin, sentence",
    [
        ("app.example", "an origin is SCHEME://HOST"),
        ("https://app.example/", "without a path"),
        ("https://App.example", "small letters"),
        ("https://a.example:99999", "an origin is"),
        ("https://a.example:443", "leave the port away that https has anyway: say https://a.example"),
        ("https://*.example", "an origin is"),
        ("null", "an origin is"),
        ("", "an origin is"),
        ("*", "every page that you visit"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        ServerSettings(allow_origins=(origin,))


def test_origins_that_browsers_send_are_taken():
    taken = ("http://[::1]:3000", "chrome-extension://abcdef", "https://xn--bcher-kva.example", "http://localhost:5173")
    assert ServerSettings(allow_origins=taken).allow_origins == taken
    assert ServerSettings(allow_origins=("*",), open_to_all=True).allow_origins == ("*",)


# --- A proxy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "/tools/owl"])  # a proxy that takes the root path away, and one that does not
def test_behind_a_proxy_the_api_its_documentation_and_the_demo_are_found(proxied, before):
    assert ask(proxied, "GET", before + "/healthz").json() == {"status": "ok"}
    assert "href='openapi.json'" in ask(proxied, "GET", before + "/docs").text
    assert ask(proxied, "GET", before + "/openapi.json").json()["servers"] == [{"url": "/tools/owl"}]
    assert ask(proxied, "GET", before + "/v1/nope").json()["code"] == "not_found"
    assert ask(proxied, "DELETE", before + "/v1/detect").json()["code"] == "method_not_allowed"
    found = ask(proxied, "POST", before + "/v1/detect", files={"images": PICTURE}, data={"query": "cat"})
    assert found.status_code == 200 and len(found.json()["results"]) == 1
    outside = {"X-Forwarded-Host": "www.example", "X-Forwarded-Proto": "https"}
    assert ask(proxied, "GET", before + "/config", headers=outside).json()["root"] == "https://www.example/tools/owl"
    sent = ask(proxied, "POST", before + "/gradio_api/upload", files={"files": PICTURE})
    assert sent.status_code == 200, sent.text
    assert 'path="/v1/detect"' in ask(proxied, "GET", before + "/metrics").text


def test_the_root_path_itself_leads_to_the_pages(proxied):
    answer = ask(proxied, "GET", "/tools/owl")
    assert (answer.status_code, answer.headers["location"]) == (307, "/tools/owl/")
    assert ask(proxied, "GET", "/tools/owls").json()["code"] == "not_found"


def test_the_pages_may_send_through_a_proxy_that_names_the_server_otherwise(proxied):
    for headers, status in [
        ({"Origin": "https://www.example", "X-Forwarded-Host": "www.example"}, 200),
        ({"Origin": APP}, 200),
        ({"Origin": "https://www.example"}, 403),
        ({"Origin": "https://evil.example", "X-Forwarded-Host": "www.example"}, 403),
    ]:
        answer = ask(proxied, "POST", "/gradio_api/upload", files={"files": PICTURE}, headers=headers)
        assert answer.status_code == status, headers


def test_thumbnails_are_named_as_the_proxy_shows_them(detector, tmp_path):
    index = RegionIndex.open(str(tmp_path / "a.lance"), detector, create=True)
    app = create_app(detector, ServerSettings(root_path="/owl"), index=index)
    assert ask(app, "POST", "/owl/v1/images", files={"images": PICTURE}).json()["added"] == 1
    (match,) = ask(app, "POST", "/owl/v1/search", json={"query": "a", "limit": 1}).json()["matches"]
    assert match["thumbnail"].startswith("/owl/v1/images/")
    assert ask(app, "GET", match["thumbnail"]).headers["content-type"] == "image/jpeg"
    app.state.serving.close()


@pytest.mark.parametrize("path", ["owl", "/owl/", "/", "//owl", "/a/../b", "/owl?x", "/ö", "/v1", "/gradio_api/x"])
def test_a_root_path_that_no_proxy_can_have_is_refused(path):
    with pytest.raises(ConfigError, match="the root path"):
        ServerSettings(root_path=path)


# --- What a request is called --------------------------------------------------------------------------------------


def test_a_request_is_called_as_its_client_calls_it(named):
    for path in ("/v1/model", "/healthz", "/docs", "/v1/nope"):
        answer = ask(named, "GET", path, headers={"X-Request-Id": "job-17/3"})
        assert answer.headers["x-request-id"] == "job-17/3"
    assert answer.json()["request_id"] == "job-17/3"


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "é", "a\x7fb", "<script>"])
def test_a_name_that_is_not_sane_is_replaced(named, given):
    async def asked():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(named), base_url="http://localhost") as client:
            headers = {} if given is None else {"X-Request-Id": given.encode("latin-1")}
            return await client.get("/v1/nope", headers=headers)

    one, other = asyncio.run(asked()), asyncio.run(asked())
    assert re.fullmatch("[0-9a-f]{32}", one.headers["x-request-id"])
    assert one.json()["request_id"] == one.headers["x-request-id"] != other.headers["x-request-id"]


def test_the_access_log_says_what_was_asked_and_how_it_was_called(detector, caplog, monkeypatch):
    access = logging.getLogger("owl_swin.access")
    # Whatever another test of this process has set up for logging: the lines go to caplog alone.
    monkeypatch.setattr(access, "handlers", [caplog.handler])
    monkeypatch.setattr(access, "propagate", False)
    monkeypatch.setattr(access, "disabled", False)
    with caplog.at_level(logging.INFO, "owl_swin.access"):
        app = create_app(detector)
        ask(app, "GET", "/v1/nope%0aforged", headers={"X-Request-Id": "job-18"})
        app.state.serving.close()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "owl_swin.access"]
    assert re.fullmatch(r"127\.0\.0\.1 'GET' '/v1/nope\\nforged' 404 \d+\.\d{3} s job-18", line)


# --- What things are called ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image, label",
    [
        ({"content": b64(PICTURE)}, "exemplar"),
        ({"content": b64(PICTURE), "name": "shelf/red mug.v2.jpg"}, "red mug.v2"),
        ({"content": b64(PICTURE), "name": "C:\\photos\\mug.png"}, "mug"),
        ({"content": b64(PICTURE), "name": "../"}, "exemplar"),
    ],
)
def test_a_thing_that_is_only_shown_is_called_as_its_file(named, image, label):
    queries = ["a", {"exemplars": [{"image": image}]}]
    answer = detect(named, images=[{"content": b64(PICTURE)}], queries=queries, threshold=[1.0, 0.0])
    rows = answer.json()["results"][0]["detections"]
    assert {(row["query"], row["label"]) for row in rows} == {(1, label)}


def test_the_version_is_that_of_the_card_or_of_the_package(named, detector):
    assert (
        ask(named, "GET", "/v1/model").json()["version"] == ask(named, "GET", "/openapi.json").json()["info"]["version"]
    )
    detector = type(detector)(detector.model, card={"version": "7"}, device="cpu")
    app = create_app(detector)
    assert ask(app, "GET", "/v1/model").json()["version"] == "7"
    app.state.serving.close()


# --- Before it answers ---------------------------------------------------------------------------------------------


def test_a_port_in_use_is_said_before_anything_is_loaded(owl_swin, monkeypatch):  # noqa: F811
    loaded = []
    monkeypatch.setattr(cluster.Recipe, "make", lambda recipe: loaded.append(recipe))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = owl_swin("serve", "--port", taken.getsockname()[1])
    assert (run.code, loaded) == (2, [])
    assert "cannot listen on" in run.err and "loading" not in run.err


def test_what_is_loaded_is_said_while_it_is(owl_swin, monkeypatch):  # noqa: F811
    def stop(recipe):
        raise ConfigError("stopped while loading")

    monkeypatch.setattr(cluster.Recipe, "make", stop)
    run = owl_swin("serve", "--port", "0", "--model", "nano")
    said = r"owl-swin: loading nano and the demo, to answer on http://127\.0\.0\.1:\d+\n.*stopped while loading\n"
    assert re.fullmatch(said, run.err) and run.code == 2
