"""What one request may cost: files of saved queries, downloads, and pictures of many frames."""

import asyncio
import threading

import httpx
import pytest
from http_client import ask, b64, detect
from picture_files import encode, noise
from PIL import GifImagePlugin

from owl_swin.exemplar import Exemplar
from owl_swin.queries import Query
from owl_swin.server import serving as serving_module
from owl_swin.server.app import create_app
from owl_swin.server.settings import ServerSettings

PICTURE = encode(noise(60, 90))
URL = {"url": "http://pictures.example/a.png"}


def an_app(detector, **settings):
    return create_app(detector, ServerSettings(**{"url_hosts": ("pictures.example",), **settings}))


# --- Saved queries -------------------------------------------------------------------------------------------------


def saved(queries, tmp_path) -> dict:
    path = tmp_path / "saved.safetensors"
    queries.save(path)
    return {"saved": {"content": b64(path.read_bytes())}}


@pytest.mark.parametrize("n_files, n_loaded", [(4, 0), (3, 2)])
def test_files_of_saved_queries_are_counted_before_they_are_all_read(
    detector, tmp_path, monkeypatch, n_files, n_loaded
):
    app = an_app(detector, max_queries=5, max_exemplars=3)
    loads = []
    load = detector.load_queries
    monkeypatch.setattr(detector, "load_queries", lambda path: loads.append(path) or load(path))
    three = saved(detector.encode_queries(["a", "b", "c"]), tmp_path)
    answer = detect(app, images=[{"content": b64(PICTURE)}], queries=[three] * n_files)
    app.state.serving.close()
    assert (answer.status_code, answer.json()["code"]) == (422, "too_many_queries")
    assert len(loads) == n_loaded


def test_what_a_saved_query_holds_beside_its_own_embedding_counts(detector, tmp_path):
    app = an_app(detector, max_queries=5)
    many = Query("many", texts=["a"], negatives=[*"bcde", Exemplar(PICTURE)])
    answer = detect(app, images=[{"content": b64(PICTURE)}], queries=[saved(detector.encode_queries([many]), tmp_path)])
    app.state.serving.close()
    assert (answer.status_code, answer.json()["code"]) == (422, "too_many_queries")
    assert "got 6 queries" in answer.json()["detail"]


# --- Downloads -----------------------------------------------------------------------------------------------------


class SlowHost:
    """Stands for fetch(): answers when it is let go, and remembers in which threads it was asked."""

    def __init__(self):
        self.entered, self.go, self.threads = threading.Event(), threading.Event(), []

    def __call__(self, url, **limits):
        self.threads.append(threading.current_thread().name)
        self.entered.set()
        assert self.go.wait(30)
        return PICTURE


@pytest.fixture
def host(monkeypatch):
    host = SlowHost()
    monkeypatch.setattr(serving_module, "fetch", host)
    return host


def test_a_download_waits_in_the_queue_and_in_threads_of_its_own(detector, host):
    app = an_app(detector, queue_size=4, max_images=3)
    body = {"images": [URL] * 3, "threshold": 0.0}

    async def two():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            first = asyncio.create_task(client.post("/v1/detect", json=body))
            await asyncio.to_thread(host.entered.wait, 30)
            refused = await client.post("/v1/detect", json=body)
            host.go.set()
            return await first, refused

    first, refused = asyncio.run(two())
    app.state.serving.close()
    assert (refused.status_code, refused.json()["code"]) == (503, "busy")
    assert first.status_code == 200 and len(first.json()["results"]) == 3
    assert len(host.threads) == 3 and all(name.startswith("fetcher") for name in host.threads)
    assert (app.state.serving.waiting, app.state.serving.held_bytes) == (0, 0)


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/detect", {"images": [URL] * 2}),
        ("/v1/detect", {"images": [URL], "queries": [{"exemplars": [{"image": URL}]}]}),
        ("/v1/embed", {"queries": [{"exemplars": [{"image": URL}, {"image": URL}]}]}),
    ],
)
def test_what_was_downloaded_counts_as_held_until_the_request_has_ended(detector, host, path, body):
    app = an_app(detector, max_held_bytes=len(PICTURE) * 3 // 2)
    host.go.set()
    answer = ask(app, "POST", path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")
    assert app.state.serving.held_bytes == 0
    assert detect(app, images=[URL]).status_code == 200
    app.state.serving.close()
    assert app.state.serving.held_bytes == 0


# --- Pictures ------------------------------------------------------------------------------------------------------


def test_the_frames_of_an_animation_are_not_counted(detector, monkeypatch):
    def walk(image):
        raise AssertionError("this walks through the whole file")

    app = an_app(detector)
    monkeypatch.setattr(GifImagePlugin.GifImageFile, "n_frames", property(walk))
    frames = [noise(20, 20, seed) for seed in range(3)]
    many = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    answers = [detect(app, images=[{"content": b64(one)}]) for one in (many, encode(frames[0], "GIF"))]
    app.state.serving.close()
    assert [one.status_code for one in answers] == [422, 200]
    assert "has several frames" in answers[0].json()["detail"]
