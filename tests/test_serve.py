"""The server as a whole: its queue, its schema, and the command."""

import asyncio
import contextlib
import re
import signal
import socket
import threading

import pytest
import schemathesis
import uvicorn
from http_client import ask, b64, detect
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from picture_files import encode, noise
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from test_cli import Run, assert_one_sentence, owl_swin  # noqa: F401

from owl_swin.bench.serving import benchmark_serving
from owl_swin.server.app import build_demo, create_app
from owl_swin.server.batching import Batcher, QueueFull
from owl_swin.server.cache import ByteCache
from owl_swin.server.run import make_server
from owl_swin.server.settings import ServerSettings

PICTURE = encode(noise(60, 90))

# --- The queue -----------------------------------------------------------------------------------------------------


class Shape:
    def __init__(self, side: int):
        self.shape = (side, side)


def batcher(seen: list, *, entered=None, go=None, **options) -> Batcher:
    """A queue whose batches are written down; it can be held in its first."""

    def encode(pictures):
        seen.append([picture.shape[0] for picture in pictures])
        if entered is not None:
            entered.set()
            assert go.wait(30)
        return [picture.shape[0] for picture in pictures]

    return Batcher(encode, **{"max_batch": 3, "max_wait_s": 0.0, "queue_size": 9, **options})


def test_works_of_one_shape_share_a_batch_and_the_oldest_goes_first():
    seen, dropped, entered, go = [], [], threading.Event(), threading.Event()
    queue = batcher(seen, entered=entered, go=go, on_drop=dropped.append)

    async def ask_all():
        first = queue.submit(Shape(1), lambda one: one)
        await asyncio.to_thread(entered.wait, 30)
        futures = [queue.submit(Shape(side), lambda one: one * 10) for side in (2, 3, 2, 2, 2, 3)]
        no_picture = queue.submit(None, lambda none: none)
        gone = queue.submit(Shape(4), lambda one: one)
        gone.cancel()
        with pytest.raises(QueueFull):
            for _ in range(9):
                queue.submit(Shape(2), lambda one: one)
        for waiting in list(queue._queue)[8:]:
            waiting.future.cancel()
        go.set()
        return await first, await asyncio.gather(*futures), await no_picture

    assert asyncio.run(ask_all()) == (1, [20, 30, 20, 20, 20, 30], None)
    queue.close()
    assert seen == [[1], [2, 2, 2], [3, 3], [2]]
    assert sum(dropped) == 2
    assert not queue.alive


def test_works_without_a_picture_wait_for_no_other():
    seen, entered, go, later = [], threading.Event(), threading.Event(), threading.Event()
    queue = batcher(seen, entered=entered, go=go)

    async def two():
        first = queue.submit(Shape(1), lambda one: one)
        await asyncio.to_thread(entered.wait, 30)
        quick, slow = queue.submit(None, lambda none: "quick"), queue.submit(None, lambda none: later.wait(10))
        go.set()
        try:
            return await first, await asyncio.wait_for(quick, 5), slow.done()
        finally:
            later.set()
            await slow

    assert asyncio.run(two()) == (1, "quick", False)
    queue.close()


def test_a_work_that_fails_fails_alone():
    def encode(pictures):
        if any(picture.shape[0] == 7 and len(picture.shape) == 2 and picture.bad for picture in pictures):
            raise ValueError("bad")
        return ["fine"] * len(pictures)

    def picture(bad: bool) -> Shape:
        made = Shape(7)
        made.bad = bad
        return made

    queue = Batcher(encode, max_batch=3, max_wait_s=5, queue_size=9)

    async def three():
        works = [queue.submit(picture(bad), lambda one: one) for bad in (False, True, False)]
        return await asyncio.gather(*works, return_exceptions=True)

    first, second, third = asyncio.run(three())
    queue.close()
    assert (first, str(second), third) == ("fine", "bad", "fine")


def test_closing_does_what_waits():
    seen: list = []
    queue = batcher(seen, max_wait_s=60)

    async def close():
        works = [queue.submit(Shape(5), lambda one: one) for _ in range(2)]
        await asyncio.to_thread(queue.close)
        with pytest.raises(QueueFull):
            queue.submit(Shape(5), lambda one: one)
        return await asyncio.gather(*works)

    assert asyncio.run(close()) == [5, 5]


def test_a_cache_holds_so_many_bytes_and_forgets_what_was_not_asked_for():
    cache = ByteCache(10, len)
    for key, value in [(b"a", "aaaa"), (b"b", "bbbb")]:
        cache.put(key, value)
    assert cache.get(b"a") == "aaaa"
    cache.put(b"c", "cccc")
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c"), cache.n_bytes) == ("aaaa", None, "cccc", 8)
    cache.put(b"d", "d" * 11)
    assert (cache.get(b"d"), len(cache), cache.hits, cache.misses) == (None, 2, 3, 2)


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

# --- The schema ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_what_comes_is_answered_as_the_schema_says(detector, mode):
    app = create_app(detector, ServerSettings(open_to_all=True))
    asked = []
    for operation in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        every = {"max_examples": 10, "derandomize": True, "database": None, "deadline": None}

        @given(case=operation.ok().as_strategy(generation_mode=mode))
        @settings(**every, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
        def try_it(case):
            response = case.call()
            asked.append(response.status_code)
            case.validate_response(response, checks=CHECKS)

        # A path without parameters cannot be asked wrongly.
        with contextlib.suppress(Unsatisfiable):
            try_it()
    app.state.serving.close()
    assert len(asked) > 40 and 422 in asked
    assert 200 in asked or mode is GenerationMode.NEGATIVE


# --- The command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--host", "0.0.0.0"], "other machines can reach 0.0.0.0"),
        (["--token", "short"], "at least 8 characters"),
        (["--token", "12345678", "--token-file", "x"], "not from both"),
        (["--token-file", "/nowhere/token"], "/nowhere/token: cannot read the token"),
        (["--timeout-s", "0"], "timeout_s must be a number, at least"),
        (["--port", "70000"], "port must lie in 0 to 65535"),
        (["--queue", "4"], "queue_size (4) must be more than max_images"),
        (["--replicas", "2"], "--replicas needs --engine ray"),
        (["--engine", "ray", "--replicas", "2"], "say --no-demo"),
        (["--engine", "ray", "--replicas", "2", "--no-demo", "--index", "a.lance"], "share an archive"),
        (["--index", "nowhere.lance", "--no-demo"], "nowhere.lance"),
        (["--engine", "ray", "--no-demo", "--index", "nowhere.lance"], "nowhere.lance"),
        (["--engine", "ray", "--no-demo", "--model", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_a_server_that_makes_no_sense_does_not_start(owl_swin, model_file, arguments, sentence, monkeypatch):  # noqa: F811
    monkeypatch.delenv("OWL_SWIN_TOKEN", raising=False)
    run: Run = owl_swin("serve", "--model", model_file, "--port", 0, *arguments)
    assert_one_sentence(Run(run.code, run.out, re.sub(r"^owl-swin: loading .*\n", "", run.err)), sentence)


def test_a_port_that_is_taken_is_said(owl_swin, model_file):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run: Run = owl_swin("serve", "--model", model_file, "--no-demo", "--port", port)
        assert_one_sentence(run, f"cannot listen on 127.0.0.1, port {port}")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_whatever_asks_the_server_to_end_lets_it_finish_what_it_took(detector, name):
    """A terminal that closes ended it in the middle of a request."""
    chosen = ServerSettings(port=0)
    server = make_server(create_app(detector, chosen), chosen)
    with server.capture_signals():
        signal.raise_signal(getattr(signal, name))
    assert server.serving.draining


def test_one_time_is_given_to_what_runs_and_who_asks_again_ends_it(detector, monkeypatch):
    async def nothing(*_):
        return None

    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr(uvicorn.Server, "shutdown", nothing)
    chosen = ServerSettings(port=0, stop_timeout_s=30)
    server = make_server(create_app(detector, chosen), chosen)
    with server.capture_signals():
        signal.raise_signal(signal.SIGTERM)
        server._draining_since -= 25
        asyncio.run(server.shutdown())
        assert 3 <= server.config.timeout_graceful_shutdown <= 5
        signal.raise_signal(signal.SIGTERM)
        assert server.force_exit and not ended
        signal.raise_signal(signal.SIGTERM)
    assert ended == [128 + signal.SIGTERM]


def test_a_server_under_nohup_stays_when_the_terminal_closes(detector):
    chosen = ServerSettings(port=0)
    server = make_server(create_app(detector, chosen), chosen)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with server.capture_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not server.serving.draining


def test_under_load_no_answer_is_wrong_or_lost_and_sigterm_ends_with_code_0(model_file):
    result = benchmark_serving(str(model_file), clients=20, seconds=1.0, pictures=128, queue_size=48, device="cpu")
    parts = {name: result[name] for name in ("served", "beside_hostile", "overload", "recovered", "sigterm")}
    for name, part in parts.items():
        assert part["answered"] > 0, name
        assert (part["wrong"], part["failed"], part["lost"], part["refused_without_retry_after"]) == (0, 0, 0, 0), name
    assert result["boxes_per_answer"] > 5
    assert (parts["served"]["refused"], parts["recovered"]["refused"]) == (0, 0)
    assert parts["overload"]["refused"] > 0
    assert parts["sigterm"]["refused"] == 20 and parts["sigterm"]["exit_code"] == 0


# --- The demo ---------------------------------------------------------------------------------------------


def test_the_pages_of_the_demo_stand_beside_the_api(detector):
    app = create_app(detector, demo=build_demo)
    page = ask(app, "GET", "/")
    assert page.status_code == 200 and "gradio" in page.text
    assert ask(app, "GET", "/v1/nope").json()["code"] == "not_found"
    assert ask(app, "DELETE", "/v1/detect").json()["code"] == "method_not_allowed"
    assert detect(app, images=[{"content": b64(PICTURE)}], queries=["cat"]).status_code == 200
    assert ask(app, "GET", "/", headers={"Host": "evil.example"}).status_code == 403
    app.state.serving.close()
