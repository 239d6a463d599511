"""With Ray: an archive encoded by its workers, and the server as one of the applications of a cluster.

Ray and a replica take many seconds to start, so one of each serves all that is shown here.
"""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import httpx
import pytest
from archives import counts, fill, held
from http_client import b64
from picture_files import encode, noise

from owl_swin import Detector, RegionIndex
from owl_swin.errors import ConfigError
from owl_swin.formats import to_record
from owl_swin.server import cluster
from owl_swin.server.cluster import Recipe, make_deployment
from owl_swin.server.settings import ServerSettings

PICTURE = encode(noise(60, 90))


@pytest.fixture(scope="module")
def own_ray():
    """A Ray of this process's own, as the server begins one where none runs; other processes may join it."""
    import ray

    handlers = [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)]
    with cluster._on_ray(False) as own:
        assert own
        assert [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)] == handlers
        yield ray.get_runtime_context().gcs_address
    assert not ray.is_initialized()


def test_workers_encode_as_this_process_does(tmp_path, detector, own_ray):
    from owl_swin.index.cluster import ray_engine

    folder = fill(tmp_path / "photos")
    (folder / "broken.jpg").write_bytes(b"no")
    with (
        RegionIndex.open(tmp_path / "here.lance", detector, create=True) as here,
        RegionIndex.open(tmp_path / "ray.lance", detector, create=True) as there,
    ):
        assert counts(here.add_folder(folder)) == (6, 0, 0, 0, 1)
        report = there.add_folder(folder, engine=ray_engine(detector, 20, workers=1))
        assert counts(report) == (6, 0, 0, 0, 1)
        assert "not a picture" in report.skipped[0][1]
        assert held(there) == held(here)
        theirs, ours = there.search("x", limit=9), here.search("x", limit=9)
        assert [m.region for m in ours] == [m.region for m in theirs]
        assert [m.score for m in ours] == pytest.approx([m.score for m in theirs], abs=1e-4)


def test_the_command_serves_on_a_ray_that_others_use(own_ray, model_file):
    """It picks a port, answers as the Python call does, logs to stderr, and takes away nothing but itself."""
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Other:
        def __call__(self) -> str:
            return "still here"

    arguments = ["--device", "cpu", "--engine", "ray", "--port", "0", "--no-demo", "--access-log", "--max-batch", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "owl_swin", "serve", "--model", str(model_file), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RAY_ADDRESS": own_ray, "OWL_SWIN_TOKEN": "open-sesame"},
    )  # fmt: skip
    lines: list[str] = []
    listening, logged = threading.Event(), threading.Event()

    def read():
        for line in process.stderr:
            lines.append(line)
            if "listening on" in line:
                listening.set()
            if "/v1/model" in line:
                logged.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert listening.wait(120), lines
        (line,) = [line for line in lines if "listening on" in line]
        url = line.split()[3]
        assert not url.endswith(":0")
        client = httpx.Client(base_url=url, headers={"Authorization": "Bearer open-sesame"}, timeout=30)
        assert client.get("/v1/model").json()["name"] == "tiny_for_tests"
        assert logged.wait(30), lines
        expected = to_record("p", Detector.from_pretrained(model_file, device="cpu").detect(PICTURE, ["cat"]))
        assert len(expected["detections"]) > 0
        body = {"images": [{"content": b64(PICTURE), "name": "p"}], "queries": ["cat"]}
        for _ in range(4):
            assert client.post("/v1/detect", json=body).json() == {"results": [expected]}
        refused = client.post("/v1/detect", json=body, headers={"Authorization": "Bearer wrong"})
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert client.post("/v1/detect", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
        other = serve.run(Other.bind(), name="other", route_prefix="/other")
        assert sorted(serve.status().applications) == ["other", "owl_swin"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "owl-swin" not in process.stdout.read()  # Ray itself may write there
        assert list(serve.status().applications) == ["other"]
        assert other.remote().result() == "still here"
    finally:
        process.kill()
        process.wait()
        serve.shutdown()


def test_a_ray_of_its_own_ends_with_the_server(monkeypatch, model_file):
    """Where no other application could be, Serve is shut down as a whole: said by what is called."""
    from contextlib import contextmanager

    from ray import serve

    called = []

    @contextmanager
    def alone(log_to_driver):
        yield True

    monkeypatch.setattr(cluster, "_on_ray", alone)
    monkeypatch.setattr(cluster, "_start_serve", lambda *_: "127.0.0.1:1")
    monkeypatch.setattr(serve, "run", lambda *_, **__: cluster.signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(serve, "shutdown", lambda: called.append("shutdown"))
    monkeypatch.setattr(serve, "delete", lambda name: called.append(name))
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGTERM, signal.SIGINT)}
    try:
        cluster.serve_on_ray(Recipe(str(model_file), "cpu"), replicas=1)
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
    assert called == ["shutdown"]


@pytest.mark.parametrize(
    "options, allowed", [({}, False), ({"token": "open-sesame"}, True), ({"open_to_all": True}, True)]
)
def test_a_serve_that_others_reach_answers_nobody_without_a_token(monkeypatch, options, allowed):
    client = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0", port=8000))
    monkeypatch.setattr("ray.serve.context._get_global_client", lambda **_: client)
    if allowed:
        assert cluster._start_serve(ServerSettings(**options), False) == "0.0.0.0:8000"
    else:
        with pytest.raises(ConfigError, match=r"answers on 0\.0\.0\.0, which other machines can reach"):
            cluster._start_serve(ServerSettings(**options), False)


def test_replicas_that_share_nothing_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        make_deployment(Recipe(), replicas=0)
