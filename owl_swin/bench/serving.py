"""A server under load, beside the bare model: throughput, latency, wrong answers, memory, overload and the end."""

import asyncio
import contextlib
import io
import itertools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from owl_swin.detector import Detector
from owl_swin.errors import ConfigError, OwlSwinError
from owl_swin.formats import to_record
from owl_swin.types import QueryEmbeddings

QUERIES = ["a person", "a red mug", "a dog", "a car", "a bolt", "a chair", "a tree", "a bottle"]
PICTURE_HW = (240, 320)
# A body of 4 MB that is refused, and was once worth half a minute of the server's time.
HOSTILE_BODY = b'{"images": [], "queries": [' + b"1," * 2_000_000 + b"1]}"
HOSTILE_PAUSE_S = 0.5
# A matrix product of another batch rounds differently: about 1e-7 of a score, which may be the last digit shown.
SCORE_DIGITS, BOX_PX = 2e-5, 0.05


@dataclass
class Load:
    """What a group of clients saw."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    identical: int = 0
    wrong: int = 0
    refused: int = 0
    refused_badly: int = 0  # 503 without Retry-After or without its code
    failed: int = 0  # any other answer
    lost: int = 0  # sent, and the connection ended without an answer

    @property
    def answered(self) -> int:
        """Requests with a result."""
        return len(self.latencies_s)

    @property
    def p99_s(self) -> float:
        """The latency that 99 of 100 requests stay below."""
        return sorted(self.latencies_s)[int(0.99 * self.answered)] if self.latencies_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        ms = sorted(1000 * one for one in self.latencies_s) or [0.0]
        at = {name: round(ms[min(len(ms) - 1, int(share * len(ms)))], 1) for name, share in SHARES.items()}
        counts = {name: getattr(self, name) for name in ("answered", "identical", "wrong", "refused", "failed", "lost")}
        rate = {"images_per_s": round(self.answered / self.seconds, 1) if self.seconds else 0.0}
        return {**rate, "latency_ms": at, **counts, "refused_without_retry_after": self.refused_badly}


SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Case:
    """The body of one request as a form, and the answer that the direct call gives."""

    headers: dict[str, str]
    body: bytes
    answer: dict[str, Any]
    threshold: float


def benchmark_serving(
    model: str = "nano",
    *,
    clients: int = 64,
    seconds: float = 60.0,
    pictures: int = 512,
    max_batch: int = 16,
    queue_size: int = 256,
    device: str = "auto",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Starts ``owl-swin serve`` on loopback and asks it with ``clients`` clients at once, one picture a request.

    Each answer is compared with the direct call. The direct call (files to boxes, in batches) and the bare model
    (pictures in the model's size to boxes) are timed before and after, on the same machine, which clients and server
    share. Pictures are asked for in turn and are more than the cache holds, so that every one is encoded.
    """
    if min(clients, pictures, max_batch) < 1 or seconds <= 0:
        raise ConfigError("clients, pictures, max_batch and seconds must be more than 0")
    detector = Detector.from_pretrained(model, device=device)
    files = [_picture_file(seed) for seed in range(pictures)]
    queries = detector.encode_queries(QUERIES)
    threshold = _threshold(detector, files[:16], queries)
    cases = _cases(detector, files, queries, threshold, max_batch)
    warm_s, side_s = min(2.0, seconds / 4), max(0.5, min(8.0, seconds / 5))
    before = _bare(detector, files, queries, threshold, max_batch, side_s)
    progress(f"direct call {before['direct']:.1f} images/s, bare model {before['model']:.1f}")
    with _server(model, device, max_batch, queue_size) as (process, url):
        turn = itertools.cycle(cases)
        asyncio.run(_load(url, turn, clients, warm_s))
        hits = _cache_hits(url)
        rss: list[int] = []
        main = asyncio.run(_load(url, turn, clients, seconds, lambda: rss.append(_rss_bytes(process.pid))))
        hits = _cache_hits(url) - hits
        progress(f"{clients} clients: {main.to_dict()}")
        beside = asyncio.run(_load_beside_hostile(url, turn, clients, side_s))
        progress(f"{clients} clients beside a hostile one: {beside.to_dict()}")
        overload = asyncio.run(_load(url, turn, 8 * clients, side_s))
        progress(f"{8 * clients} clients: {overload.to_dict()}")
        recovered = asyncio.run(_load(url, turn, clients, warm_s))
        stop = asyncio.run(_stop_under_load(url, turn, clients, process))
        code = process.wait(60)
        progress(f"after SIGTERM: exit code {code}, {stop.to_dict()}")
    after = _bare(detector, files, queries, threshold, max_batch, side_s)
    bare = {name: statistics.mean((before[name], after[name])) for name in before}
    rate = main.answered / main.seconds
    return {
        "protocol": f"{clients} clients on loopback, {seconds:g} s, one {PICTURE_HW[1]}x{PICTURE_HW[0]} JPEG and "
        f"{len(QUERIES)} texts a request, no picture twice while cached; direct call in batches of {max_batch}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {detector.device.type}, "
        f"torch {torch.__version__}",
        "model": {"name": model, "image_size": detector.image_size},
        "direct_images_per_s": round(bare["direct"], 1),
        "model_images_per_s": round(bare["model"], 1),
        "served": main.to_dict(),
        "ratio_to_direct": round(rate / bare["direct"], 3),
        "ratio_to_model": round(rate / bare["model"], 3),
        "boxes_per_answer": round(statistics.mean(len(case.answer["detections"]) for case in cases), 1),
        "picture_cache_hits": hits,
        "rss_mb": _memory(rss),
        "beside_hostile": {
            **beside.to_dict(),
            "p99_ratio": round(beside.p99_s / main.p99_s, 2) if main.answered else 0.0,
        },
        "overload": {"clients": 8 * clients, **overload.to_dict()},
        "recovered": recovered.to_dict(),
        "sigterm": {**stop.to_dict(), "exit_code": code},
    }


def same_answer(got: dict[str, Any], expected: dict[str, Any], threshold: float) -> bool:
    """Whether two records say the same, but for rounding of a batch: then neighbours may have changed places, and a
    box may be missing whose score is that of the threshold."""
    if {**got, "detections": 0} != {**expected, "detections": 0}:
        return False
    left = list(got["detections"])
    for row in expected["detections"]:
        match = next((one for one in left if _same_row(one, row)), None)
        if match is not None:
            left.remove(match)
        elif row["score"] - threshold > SCORE_DIGITS:
            return False
    return all(row["score"] - threshold <= SCORE_DIGITS for row in left)


def _same_row(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (
        one["label"] == other["label"]
        and abs(one["score"] - other["score"]) <= SCORE_DIGITS
        and all(abs(one["box"][corner] - other["box"][corner]) <= BOX_PX for corner in other["box"])
    )


# --- The bare model ---------------------------------------------------------------------------------------------------


def _picture_file(seed: int) -> bytes:
    """A JPEG of coloured blocks, each seed another."""
    height, width = PICTURE_HW
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def _threshold(detector: Detector, files: Sequence[bytes], queries: QueryEmbeddings) -> float:
    """A threshold that about ten boxes of a picture pass, so that there is something to be wrong about."""
    found = detector.detect_batch(files, queries, threshold=0.0)
    return round(statistics.median(float(one.scores[min(9, len(one) - 1)]) for one in found), 3)


def _cases(
    detector: Detector, files: Sequence[bytes], queries: QueryEmbeddings, threshold: float, batch_size: int
) -> list[Case]:
    found = detector.detect_batch(files, queries, threshold=threshold, batch_size=batch_size)
    cases = []
    for number, (file, one) in enumerate(zip(files, found, strict=True)):
        name = f"{number}.jpg"
        fields = {"request": json.dumps({"queries": QUERIES, "threshold": threshold})}
        request = httpx.Request("POST", "http://localhost", data=fields, files={"images": (name, file)})
        headers = {"Content-Type": request.headers["content-type"]}
        cases.append(Case(headers, request.read(), to_record(name, one), threshold))
    return cases


def _bare(
    detector: Detector, files: Sequence[bytes], queries: QueryEmbeddings, threshold: float, batch: int, seconds: float
) -> dict[str, float]:
    """Pictures a second of the direct call, and of the model alone."""
    frames = [(detector.image_size * hw // max(PICTURE_HW) + 16) // 32 * 32 for hw in PICTURE_HW]
    opened = [Image.open(io.BytesIO(file)).convert("RGB").resize((frames[1], frames[0])) for file in files[: 8 * batch]]
    sources: dict[str, Sequence[Any]] = {"direct": files, "model": opened}
    rates = {}
    for name, source in sources.items():
        done, started = 0, time.perf_counter()
        for start in itertools.cycle(range(0, len(source), batch)):
            part = source[start : start + batch]
            detector.detect_batch(part, queries, threshold=threshold, batch_size=batch)
            done += len(part)
            if time.perf_counter() - started > seconds:
                break
        rates[name] = done / (time.perf_counter() - started)
    return rates


# --- The server -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(model: str, device: str, max_batch: int, queue_size: int) -> Iterator[tuple[subprocess.Popen, str]]:
    command = [sys.executable, "-m", "owl_swin", "serve", "--port", "0", "--no-demo", "--cache-mb", "1"]
    command += ["--model", model, "--device", device, "--max-batch", str(max_batch), "--queue", str(queue_size)]
    environment = {name: value for name, value in os.environ.items() if name != "OWL_SWIN_TOKEN"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        line = next((line for line in process.stderr if "loading" not in line), "")
        listening = re.search(r"listening on (http://127\.0\.0\.1:\d+)", line)
        if listening is None:
            raise OwlSwinError(f"the server did not start: {line.strip()}")
        yield process, listening[1]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()


def _cache_hits(url: str) -> int:
    page = httpx.get(f"{url}/metrics", trust_env=False).text
    found = re.search(r'cache_lookups_total\{cache="images",found="yes"\} (\S+)', page)
    return int(float(found[1])) if found else 0


def _rss_bytes(pid: int) -> int:
    """Resident memory of a process, on Linux; elsewhere 0."""
    status = Path(f"/proc/{pid}/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def _memory(rss: Sequence[int]) -> dict[str, float]:
    """Memory in the second quarter of the run and in the last: flat when they are equal."""
    quarter = max(1, len(rss) // 4)
    parts = {"second_quarter": rss[quarter : 2 * quarter] or rss, "last_quarter": rss[-quarter:]}
    means = {name: round(statistics.mean(values) / 2**20, 1) for name, values in parts.items() if values}
    return {**means, "growth": round(means["last_quarter"] - means["second_quarter"], 1)} if len(means) == 2 else means


# --- The clients ------------------------------------------------------------------------------------------------------


async def _load(
    url: str, turn: Iterator[Case], clients: int, seconds: float, every_half_second: Callable[[], None] | None = None
) -> Load:
    """``clients`` connections, each with one request on the way at any time."""
    load, started = Load(), time.perf_counter()
    async with _connections(url, clients) as connections:
        tasks = [asyncio.create_task(_client(connections, turn, load, started + seconds)) for _ in range(clients)]
        while time.perf_counter() < started + seconds:
            await asyncio.sleep(0.5)
            if every_half_second is not None:
                every_half_second()
        await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - started
    return load


async def _stop_under_load(url: str, turn: Iterator[Case], clients: int, process: subprocess.Popen) -> Load:
    """The server gets SIGTERM while all clients ask."""
    load, started = Load(), time.perf_counter()
    async with _connections(url, clients) as connections:
        tasks = [asyncio.create_task(_client(connections, turn, load, started + 30)) for _ in range(clients)]
        await asyncio.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - started
    return load


def _connections(url: str, clients: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    return httpx.AsyncClient(base_url=url, limits=limits, timeout=60, trust_env=False)


async def _client(connections: httpx.AsyncClient, turn: Iterator[Case], load: Load, deadline: float) -> None:
    """Asks until the deadline, or until the server says that it stops."""
    while time.perf_counter() < deadline:
        case, sent = next(turn), time.perf_counter()
        try:
            answer = await connections.post("/v1/detect", content=case.body, headers=case.headers)
        except httpx.TransportError:
            load.lost += 1
            return
        if _count(load, case, answer, time.perf_counter() - sent):
            return
        if answer.status_code == 503:  # as Retry-After says: come again after a second
            await asyncio.sleep(1.0)


def _count(load: Load, case: Case, answer: httpx.Response, seconds: float) -> bool:
    """Books one answer; says whether the server stops."""
    content = answer.json()
    if answer.status_code == 503:
        load.refused += 1
        code = content.get("code")
        load.refused_badly += "retry-after" not in answer.headers or code not in ("busy", "shutting_down")
        return code == "shutting_down"
    if answer.status_code != 200:
        load.failed += 1
        return False
    load.latencies_s.append(seconds)
    (record,) = content["results"]
    if record == case.answer:
        load.identical += 1
    else:
        load.wrong += not same_answer(record, case.answer, case.threshold)
    return False


async def _hostile_client(connections: httpx.AsyncClient, body: bytes, over: asyncio.Event) -> None:
    """Sends the same hostile body again and again, with a pause."""
    headers = {"Content-Type": "application/json"}
    while not over.is_set():
        answer = await connections.post("/v1/detect", content=body, headers=headers)
        if answer.status_code not in (413, 422):
            raise OwlSwinError(f"a hostile body was answered with {answer.status_code}")
        await asyncio.sleep(HOSTILE_PAUSE_S)


async def _load_beside_hostile(url: str, turn: Iterator[Case], clients: int, seconds: float) -> Load:
    """As _load, beside one client that sends HOSTILE_BODY."""
    over = asyncio.Event()
    async with _connections(url, 1) as connections:
        hostile = asyncio.create_task(_hostile_client(connections, HOSTILE_BODY, over))
        load = await _load(url, turn, clients, seconds)
        over.set()
        await hostile
    return load
