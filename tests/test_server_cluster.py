"""The server on Ray: replicas that answer as one process does, and a cluster that others use too."""

import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
from http_client import b64
from picture_files import encode, noise

from owl_swin.detector import Detector
from owl_swin.errors import ConfigError
from owl_swin.formats import to_record
from owl_swin.server import cluster
from owl_swin.server.cluster import Recipe, make_deployment, serve_on_ray
from owl_swin.server.settings import ServerSettings

PICTURE = encode(noise(60, 90))


def test_a_replica_on_ray_answers_what_the_python_call_answers(local_ray, model_file):
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    recipe = Recipe(str(model_file), "cpu", settings=ServerSettings(token="open-sesame", max_batch=1))
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(make_deployment(recipe, replicas=1, cpus=0.5), name="owl_swin", route_prefix="/")
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": "Bearer open-sesame"}, timeout=30
        )
        expected = to_record("p", Detector.from_pretrained(model_file, device="cpu").detect(PICTURE, ["cat"]))
        body = {"images": [{"content": b64(PICTURE), "name": "p"}], "queries": ["cat"]}
        assert len(expected["detections"]) > 0
        for _ in range(4):
            assert client.post("/v1/detect", json=body).json() == {"results": [expected]}
        refused = client.post("/v1/detect", json=body, headers={"Authorization": "Bearer wrong"})
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert client.post("/v1/detect", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    finally:
        serve.shutdown()


def test_replicas_that_share_nothing_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        make_deployment(Recipe(), replicas=0)


def test_of_a_ray_that_others_use_only_this_application_is_deleted(local_ray, model_file, monkeypatch):
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Other:
        def __call__(self) -> str:
            return "still here"

    seen = []

    class Told(threading.Event):  # SIGTERM, as soon as it is waited for
        def wait(self, timeout=None):
            seen.append(dict(serve.status().applications))
            return True

    monkeypatch.setattr(cluster.threading, "Event", Told)
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGTERM, signal.SIGINT)}
    try:
        other = serve.run(Other.bind(), name="other", route_prefix="/other")
        serve_on_ray(Recipe(str(model_file), "cpu"), replicas=1)
        assert [sorted(one) for one in seen] == [["other", "owl_swin"]]
        assert list(serve.status().applications) == ["other"]
        assert other.remote().result() == "still here"
        assert local_ray.is_initialized()
    finally:
        monkeypatch.undo()
        serve.shutdown()
        for sig, handler in before.items():
            signal.signal(sig, handler)


def test_the_command_on_ray_picks_a_port_logs_to_stderr_and_ends_with_code_0(model_file):
    arguments = ["--model", model_file, "--engine", "ray", "--port", "0", "--no-demo", "--access-log"]
    environment = {name: value for name, value in os.environ.items() if name != "OWL_SWIN_TOKEN"}
    process = subprocess.Popen(
        [sys.executable, "-m", "owl_swin", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
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
        assert httpx.get(f"{url}/v1/model", timeout=30).json()["name"] == "tiny_for_tests"
        assert logged.wait(30), lines
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "owl-swin" not in process.stdout.read()  # Ray itself may write there
    finally:
        process.kill()
        process.wait()
