"""The pages of the demo inside of the server: what they send is taken, and a tab that is open keeps nothing waiting."""

import json
import os
import time
from importlib import import_module
from pathlib import Path
from threading import Event

import httpx
import pytest
from http_client import ask, running
from picture_files import BAD_FILES, encode, noise

from owl_swin.errors import ImageError
from owl_swin.server.app import build_demo, create_app
from owl_swin.server.settings import ServerSettings

PICTURE = encode(noise(60, 90))
LIMITS = {"max_body_bytes": 100_000, "max_held_bytes": 100_000, "max_upload_bytes": 2_000_000}
FORM = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def app(detector):
    app = create_app(detector, ServerSettings(**LIMITS), demo=build_demo)
    yield app
    app.state.serving.close()


@pytest.fixture(scope="module")
def pages(detector):
    app = create_app(detector, demo=build_demo)
    yield app
    app.state.serving.close()


def folder(n_files: int, n_bytes: int) -> list:
    return [("files", (f"{i}.png", PICTURE + bytes(n_bytes - len(PICTURE)))) for i in range(n_files)]


def test_a_folder_larger_than_a_body_is_uploaded_file_by_file(app):
    answer = ask(app, "POST", "/gradio_api/upload", files=folder(9, 90_000))
    assert answer.status_code == 200, answer.text
    assert len(answer.json()) == 9
    assert app.state.serving.held_bytes == 0


@pytest.mark.parametrize("n_files, n_bytes", [(1, 110_000), (23, 90_000)])
def test_a_file_or_a_folder_beyond_its_bound_is_refused(app, n_files, n_bytes):
    assert ask(app, "POST", "/gradio_api/upload", files=folder(n_files, n_bytes)).status_code == 413


def test_what_would_stay_in_memory_has_a_small_bound(app):
    fields = {"note": "a" * 700_000, "more": "b" * 400_000}
    with_files = ask(app, "POST", "/gradio_api/upload", files=folder(1, 90_000), data={"note": "a"})
    assert with_files.status_code == 200
    answer = ask(app, "POST", "/gradio_api/upload", files=folder(1, 10_000), data=fields)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    broken = ask(app, "POST", "/gradio_api/upload", content=b"x" * 99, headers={"Content-Type": FORM})
    assert (broken.status_code, broken.json()["code"]) == (400, "invalid_multipart")


@pytest.mark.parametrize("path", ["queue/join", "run/predict", "call/x", "api/predict", "component_server"])
@pytest.mark.parametrize("body", [b"[" + b"1," * 90_000 + b"1]", b'{"data": [' + b"[[]]," * 30_000 + b"1]}"])
def test_a_body_of_many_values_for_the_pages_is_refused(pages, path, body):
    answer = ask(pages, "POST", f"/gradio_api/{path}", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_complex")


def test_uploads_of_all_visitors_have_a_bound_together_and_the_oldest_go_first(detector, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # apart from what other tests leave, and lose at any time
    app = create_app(detector, ServerSettings(**{**LIMITS, "max_uploads_bytes": 2_000_000}), demo=build_demo)
    fit = 2_000_000 // 90_100

    def upload(n_files: int, first: int):
        files = [
            ("files", (f"{i}.png", PICTURE + bytes([i]) * (90_000 - len(PICTURE))))
            for i in range(first, first + n_files)
        ]
        return ask(app, "POST", "/gradio_api/upload", files=files)

    first = upload(fit - 2, 0)
    assert {Path(path).parents[1] for path in first.json()} == {tmp_path}
    refused = upload(4, 50)
    for path in first.json():
        os.utime(path, (1, 1))
    again = upload(4, 100)
    app.state.serving.close()
    assert (first.status_code, refused.status_code, again.status_code) == (200, 503, 200)
    assert refused.json()["code"] == "busy" and int(refused.headers["retry-after"]) > 0
    assert sum(Path(path).exists() for path in first.json()) < len(first.json())
    assert all(Path(path).exists() for path in again.json())


def test_uploads_stay_apart_from_the_files_of_others(tmp_path, monkeypatch):
    app = import_module("owl_swin.demo.app")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "shared"))
    with app.own_folder() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == folder
        assert Path(folder).parent == tmp_path / "shared"
    assert list((tmp_path / "shared").iterdir()) == []


def test_archives_of_all_visitors_have_a_bound_together(detector, tmp_path, monkeypatch):
    filling = import_module("owl_swin.demo.filling")
    mine, other = filling.Archive.own(detector), filling.Archive.own(detector)
    (tmp_path / "a.png").write_bytes(PICTURE)
    uploads = [import_module("owl_swin.demo.pieces").Upload(str(tmp_path / "a.png"), "a.png")]
    list(filling.index_files(mine, uploads, Event()))
    paths = [path for folder in filling.FOLDERS for path in Path(folder.name).rglob("*")]
    full = sum(path.stat().st_size for path in paths if path.is_file())
    monkeypatch.setattr(filling, "MOST_BYTES", full)
    with pytest.raises(ImageError, match="archives of all visitors are full"):
        list(filling.index_files(other, uploads, Event()))
    assert other.index.stats().n_images == 0


def test_a_folder_whose_length_nobody_told_is_counted_as_it_comes(app):
    async def parts():
        for i in range(30):
            head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{i}.png"\r\n\r\n'
            yield head.encode() + bytes(90_000) + b"\r\n"

    answer = ask(app, "POST", "/gradio_api/upload", content=parts(), headers={"Content-Type": FORM})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "method, path, status, code",
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("DELETE", "/", 405, "method_not_allowed"),
        ("OPTIONS", "/healthz", 405, "method_not_allowed"),
        ("POST", "/openapi.json", 405, "method_not_allowed"),
        ("DELETE", "/docs", 405, "method_not_allowed"),
        ("MAKE", "/v1/detect", 405, "method_not_allowed"),
        ("MAKE", "/v1/nope", 404, "not_found"),
    ],
)
def test_beside_the_pages_every_wrong_path_and_method_gets_a_problem_document(pages, method, path, status, code):
    answer = ask(pages, method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["code"] == code


def test_a_failure_of_the_pages_is_a_problem_document(detector):
    with running(detector, demo=build_demo) as server:
        body = {"data": [1], "fn_index": 99_999, "session_hash": "a"}
        answer = httpx.post(f"{server.url}/gradio_api/queue/join", json=body, timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")


def test_without_the_demo_its_path_has_no_bound_of_its_own(detector):
    app = create_app(detector, ServerSettings(**LIMITS))
    assert ask(app, "POST", "/gradio_api/upload", files=folder(2, 90_000)).status_code == 413
    app.state.serving.close()


def test_an_open_page_does_not_keep_a_server_that_was_told_to_stop(detector):
    with (
        running(detector, demo=build_demo, stop_timeout_s=600.0) as server,
        httpx.stream("GET", f"{server.url}/gradio_api/heartbeat/a-tab", timeout=30) as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines) == "data: ALIVE"
        server.server.drain()
        for _ in lines:
            pass


def test_the_mounted_pages_are_set_up_as_the_demo_on_its_own(app):
    config = ask(app, "GET", "/config").json()
    assert config["footer_links"] == []
    assert config["run_history"] is False


# --- What visitors send to the pages -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, path, options, status, code",
    [
        ("GET", "file=/etc/passwd", {}, 403, "forbidden"),
        ("GET", "file=http://evil.example/a", {}, 403, "forbidden"),
        ("GET", "file=../../etc/passwd", {}, 404, "not_found"),
        ("GET", "file/etc/passwd", {}, 403, "forbidden"),
        ("GET", "proxy=http://evil.example/", {}, 400, "bad_request"),
        ("POST", "upload", {"json": {}}, 400, "bad_request"),
        ("POST", "component_server", {"json": {}}, 400, "bad_request"),
        ("POST", "queue/join", {"json": {}}, 422, "invalid_request"),
        ("POST", "queue/join", {"json": [1]}, 422, "invalid_request"),
        ("GET", "queue/data", {}, 422, "invalid_request"),
        ("GET", "upload_progress?upload_id=nobody's", {}, 404, "not_found"),
        ("DELETE", "upload", {}, 405, "method_not_allowed"),
        ("MAKE", "queue/join", {}, 405, "method_not_allowed"),
    ],
)  # fmt: skip
def test_errors_of_the_pages_themselves_are_problem_documents(pages, method, path, options, status, code):
    answer = ask(
        pages, method, f"/gradio_api/{path}", headers={"X-Request-Id": "mine", **options.pop("headers", {})}, **options
    )
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    problem = answer.json()
    assert (problem["code"], problem["status"], problem["request_id"]) == (code, status, "mine")
    assert isinstance(problem["detail"], str) and len(answer.text) < 2000


def events(client: httpx.Client, function: int, values: list) -> list[dict]:
    """What a page hears of an event, from its start to its end."""
    session = {"session_hash": f"visitor-{function}-{time.monotonic_ns()}"}
    asked = {"data": values, "fn_index": function, **session}
    assert client.post("/gradio_api/queue/join", json=asked).status_code == 200
    heard = []
    with client.stream("GET", "/gradio_api/queue/data", params=session) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                heard.append(json.loads(line[5:]))
                if heard[-1]["msg"] == "process_completed":
                    break
    return heard


SVG = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg><script>alert(1)</script>&e;</svg>'
HOSTILE_FILES = {
    "../../etc/passwd.jpg": BAD_FILES["cut.jpg"][0],
    "/etc/passwd.png": BAD_FILES["bomb.png"][0],
    "<img src=x onerror=alert(1)>.png": BAD_FILES["text.jpg"][0],
    "Ünïcode %0a\r\n.gif": BAD_FILES["cut.gif"][0],
    "a" * 300 + ".svg": SVG,
    "list.mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n",
}


def test_hostile_uploads_are_refused_by_every_button_and_the_server_lives(detector):
    with running(detector, demo=build_demo) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        config = client.get("/config").json()
        parts = {one["id"]: one for one in config["components"]}
        files = [("files", file) for file in HOSTILE_FILES.items()]
        sent = client.post("/gradio_api/upload", files=files)
        assert sent.status_code == 200, sent.text
        folder = import_module("owl_swin.demo.app").UPLOADS.name
        assert all(Path(path).resolve().is_relative_to(Path(folder).resolve()) for path in sent.json())
        buttons = [one for one in config["dependencies"] if one["targets"] and one["targets"][0][1] == "upload"]
        assert len(buttons) > 5
        for button in buttons:
            for paths in [*([path] for path in sent.json()), ["/etc/passwd"], sent.json()]:
                if len(paths) > 1 and not takes_many(parts, button):
                    continue
                heard = events(client, button["id"], [value_of(parts[part], paths) for part in button["inputs"]])
                assert heard[-1]["msg"] == "process_completed"
                for inside in ("Traceback", "site-packages", "root:x:", folder):
                    assert inside not in json.dumps(heard), (button, paths)
        found = client.post("/v1/detect", files={"images": PICTURE}, data={"query": "cat"})
        assert found.status_code == 200


def takes_many(parts: dict, button: dict) -> bool:
    """Whether an event comes with several files."""
    sent = [parts[part] for part in button["inputs"] if parts[part]["type"] == "uploadbutton"]
    return any(part["props"]["file_count"] != "single" for part in sent)


def value_of(part: dict, paths: list[str]):
    """What a page sends of one of its parts, with these uploads."""
    if part["type"] != "uploadbutton":
        return part["props"].get("value")
    files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
    return files[0] if part["props"].get("file_count") == "single" else files
