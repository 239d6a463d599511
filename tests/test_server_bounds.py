"""Work has bounds: values of a body, pixels of a request and in flight, time; and requests take turns."""

import asyncio
import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from http_client import ask, b64, detect, read_answer, running
from picture_files import encode, noise, turned
from PIL import ExifTags, Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from owl_swin.detector import Detector
from owl_swin.errors import QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.image import open_image
from owl_swin.server import pictures, receiving
from owl_swin.server.app import create_app
from owl_swin.server.batching import Batcher
from owl_swin.server.pictures import check_picture, content_key, read_exemplar, read_picture
from owl_swin.server.problems import Problem
from owl_swin.server.readers import SMALL_PIXELS, Readers
from owl_swin.server.reading import parse
from owl_swin.server.run import MOST_LINES
from owl_swin.server.schemas import DetectIn
from owl_swin.server.settings import ServerSettings
from owl_swin.server.structure import WINDOW, check_n_values
from owl_swin.server.turns import Lane

PICTURE = encode(noise(60, 90))

# --- Values of a body ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, n",
    [
        (b"", 0),
        (b'"a,b:[{"', 0),
        (b"{}", 1),
        (b'{"a": [1, 2, {"b": ","}]}', 7),
        (rb'["a\",[", "\\", ","]', 3),
        (rb'["\\\\\"[,", 1]', 2),
        (b"[" * 5000, 5000),
    ],
)
def test_values_are_counted_outside_of_strings_only(content, n):
    for pad in (0, WINDOW - 3, WINDOW - 2, WINDOW - 1, WINDOW):  # wherever the windows meet
        for filler in (b" ", b'"' + b"," * 7 + b'"', rb'"\\\""'):
            padded = (filler * (pad // len(filler))).ljust(pad) + content
            check_n_values(padded, n)
            if n:
                with pytest.raises(Problem, match=f"at most {n - 1} values"):
                    check_n_values(padded, n - 1)


MB = 2**20


def flood(n_bytes: int, head: str, item: str, tail: str) -> bytes:
    return (head + ",".join([item] * ((n_bytes - len(head) - len(tail)) // (len(item) + 1))) + tail).encode()


FLOODS = {
    "numbers as queries": ('{"images": [], "queries": [', "1", "]}"),
    "numbers as pictures": ('{"images": [', "1", "]}"),
    "empty pictures": ('{"images": [', "{}", "]}"),
    "empty queries": ('{"queries": [', "{}", "]}"),
    "lists in lists": ('{"queries": [', "[[[]]]", "]}"),
    "unknown keys": ("{", '"k":1', "}"),
    "unknown keys of a query": ('{"queries": [{', '"k":1', "}]}"),
    "an unknown list": ('{"unknown": [', "null", "]}"),
    "numbers as texts": ('{"queries": [{"texts": [', "1", "]}]}"),
    "numbers as negatives": ('{"queries": [{"texts": ["a"], "negatives": [', "1", "]}]}"),
    "numbers as exemplars": ('{"queries": [{"exemplars": [', "1", "]}]}"),
    "corners of a box": ('{"queries": [{"exemplars": [{"image": {"content": ""}, "box": [', "1", "]}]}]}"),
    "thresholds": ('{"threshold": [', '"a"', "]}"),
    "empty strings": ('{"queries": [', '""', "]}"),
    "strings of commas": ('{"queries": [1, ', '"' + "," * 900 + '"', "]}"),
    "escaped quotes": ('{"queries": [1, "', '\\"', '"]}'),
}


@pytest.fixture(scope="module")
def server(detector):
    with running(detector, max_body_bytes=4 * MB) as server:
        yield server


@pytest.mark.parametrize("path, n_bytes", [("/v1/search", 16 * 1024), ("/v1/detect", 4 * MB - 1000)])
def test_bodies_of_many_values_are_refused(server, path, n_bytes):
    with httpx.Client(base_url=server.url, timeout=30, headers={"Content-Type": "application/json"}) as client:
        for kind, parts in FLOODS.items():
            answer = client.post(path, content=flood(n_bytes, *parts))
            assert (answer.status_code in (413, 422)) and answer.json()["code"] in CODES, (kind, answer.text[:500])
            assert len(answer.text) < 5000


@pytest.mark.parametrize("kind", FLOODS)
def test_of_too_many_values_nothing_is_read(kind, monkeypatch):
    def read(content):
        raise AssertionError("the body was read")

    monkeypatch.setattr(DetectIn, "model_validate_json", read)
    content = flood(4 * MB - 1000, *FLOODS[kind])
    if kind in ("strings of commas", "escaped quotes"):  # few values, and long ones
        with pytest.raises(AssertionError, match="was read"):
            parse(DetectIn, content, ServerSettings().max_json_values)
    else:
        with pytest.raises(Problem, match="has at most"):
            parse(DetectIn, content, ServerSettings().max_json_values)


@pytest.mark.parametrize("close", [False, True])
def test_an_answer_before_the_end_of_a_body_reaches_its_client(server, close):
    request = urllib.request.Request(f"{server.url}/v1/detect", data=b"x" * 20 * MB)  # which says "Connection: close"
    if close:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        assert caught.value.code == 413 and json.load(caught.value)["code"] == "body_too_large"
        return
    with httpx.Client(base_url=server.url, timeout=30) as client:
        assert client.post("/v1/detect", content=b"x" * 20 * MB).json()["code"] == "body_too_large"
        assert client.get("/healthz").status_code == 200


def test_a_model_that_has_stopped_is_told_apart_from_a_busy_one(detector):
    app = create_app(detector)
    app.state.serving.batcher.close()
    answer = ask(app, "GET", "/healthz")
    assert (answer.status_code, answer.json()["code"]) == (503, "model_stopped")
    app.state.serving.close()


def test_health_is_answered_while_a_large_body_is_read(server, monkeypatch):
    begun, answered = threading.Event(), threading.Event()

    def held(*arguments):
        begun.set()
        assert answered.wait(30), "nobody is answered while a body is read"
        return parse(*arguments)

    monkeypatch.setattr(receiving, "parse", held)
    content, headers = flood(MB, *FLOODS["numbers as queries"]), {"Content-Type": "application/json"}
    with ThreadPoolExecutor(1) as pool:
        post = pool.submit(httpx.post, f"{server.url}/v1/detect", content=content, headers=headers, timeout=60)
        assert begun.wait(30)
        assert httpx.get(f"{server.url}/healthz", timeout=20).status_code == 200
        answered.set()
        assert post.result().status_code == 413


HEAD = b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("first", [b"", b"10\r\n" + b" " * 16 + b"\r\n"])
def test_a_body_in_chunks_of_one_byte_is_refused_before_they_are_taken_apart(server, first, monkeypatch):
    taken_apart, real = [], H11Protocol.data_received

    def take_apart(protocol, data):
        taken_apart.append(data.count(b"\r\n1\r\n"))
        real(protocol, data)

    monkeypatch.setattr(H11Protocol, "data_received", take_apart)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        if first:
            connection.sendall(CHUNKED + first)
            time.sleep(0.1)
        sent = (b"" if first else CHUNKED) + b"1\r\n \r\n" * 100_000
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(sent)
        status, problem = read_answer(connection)
        assert (status, problem.get("code")) in ((400, "invalid_http"), (0, None))  # or it was closed while sending
        assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200
    assert sum(taken_apart) <= MOST_LINES


def test_a_body_in_chunks_of_a_hundred_bytes_is_read(server):
    body = b'{"images": [], "queries": [' + b" " * 200_000 + b'"a"]}'
    chunks = b"".join(b"64\r\n" + body[i : i + 100].ljust(100) + b"\r\n" for i in range(0, len(body), 100))
    status, problem = server.send(CHUNKED + chunks + b"0\r\n\r\n")
    assert (status, problem["code"]) == (422, "invalid_request")


CODES = ("body_too_complex", "invalid_request", "invalid_query", "too_many_queries")


def test_a_request_at_every_limit_is_not_too_complex(detector):
    app = create_app(detector, ServerSettings())
    queries = [{"name": f"n{i}", "texts": [f"t{i}, [{{"], "weight": 0.5} for i in range(1500)]
    body = {"images": [{"content": b64(PICTURE), "name": "a"}], "queries": queries, "threshold": [1.0] * 1500}
    answer = detect(app, **body)
    app.state.serving.close()
    assert answer.status_code == 200, answer.text[:500]


# --- Turns ---------------------------------------------------------------------------------------------------------


def test_a_batch_does_not_stand_before_a_single_picture_in_the_readers():
    readers, done, entered, go = Readers(1, 10**9), [], threading.Event(), threading.Event()

    async def all_of_them():
        batch, single = Lane(), Lane()
        first = asyncio.create_task(readers.run(batch, 10**6, lambda: (entered.set(), go.wait(30))))
        await asyncio.to_thread(entered.wait, 30)
        rest = [asyncio.create_task(readers.run(batch, 10**6, lambda i=i: done.append(i))) for i in range(1, 16)]
        await asyncio.sleep(0)
        late = asyncio.create_task(readers.run(single, 10**6, lambda: done.append("single")))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, *rest, late)

    asyncio.run(all_of_them())
    readers.close()
    assert done == ["single", *range(1, 16)]


def test_a_batch_does_not_stand_before_a_single_picture_in_the_model():
    batches, entered, go = [], threading.Event(), threading.Event()

    class Shape:
        shape = (1, 1)

        def __init__(self, name):
            self.name = name

    def encode(pictures):
        batches.append([one.name for one in pictures])
        entered.set()
        assert go.wait(30)
        return pictures

    batcher = Batcher(encode, max_batch=2, max_wait_s=0.0, queue_size=32)

    async def all_of_them():
        batch = Lane()
        works = [batcher.submit(Shape(0), id, batch)]
        await asyncio.to_thread(entered.wait, 30)
        works += [batcher.submit(Shape(i), id, batch) for i in range(1, 6)]
        works += [batcher.submit(Shape("single"), id, Lane())]
        go.set()
        await asyncio.gather(*works)

    asyncio.run(all_of_them())
    batcher.close()
    assert batches == [[0], ["single", 1], [2, 3], [4, 5]]


def test_large_pictures_leave_a_reader_free_and_stay_below_their_bound():
    large = SMALL_PIXELS + 1
    readers, running_now, most, lock = Readers(4, 2 * large), [0], [0], threading.Lock()
    go, small_done = threading.Event(), threading.Event()

    def decode():
        with lock:
            running_now[0] += 1
            most[0] = max(most[0], running_now[0])
        assert go.wait(30)
        with lock:
            running_now[0] -= 1

    async def all_of_them():
        decodes = [asyncio.create_task(readers.run(Lane(), large, decode)) for _ in range(6)]
        await asyncio.sleep(0)
        await readers.run(Lane(), SMALL_PIXELS, small_done.set)
        dropped = decodes.pop()
        dropped.cancel()
        go.set()
        await asyncio.gather(*decodes)

    asyncio.run(all_of_them())
    readers.close()
    assert small_done.is_set()
    assert most[0] == 2


def test_what_a_reader_fails_with_reaches_who_asked():
    readers = Readers(1, 1)

    def fail():
        raise KeyError("a")

    with pytest.raises(KeyError, match="a"):
        asyncio.run(readers.run(Lane(), 0, fail))
    assert asyncio.run(readers.run(Lane(), 0, lambda: 7)) == 7
    readers.close()


# --- Pixels --------------------------------------------------------------------------------------------------------


def test_pictures_and_exemplars_of_a_request_have_a_bound_together(detector):
    app = create_app(detector, ServerSettings(max_request_pixels=3 * 60 * 90))
    image = {"content": b64(PICTURE)}
    assert detect(app, images=[image] * 3, queries=["a"]).status_code == 200
    exemplars = [{"exemplars": [{"image": {"content": b64(encode(noise(60, 90, seed)))}}]} for seed in (1, 2)]
    fresh = {"content": b64(encode(noise(60, 90, 3)))}
    answers = [
        detect(app, images=[{"content": b64(encode(noise(60, 90, seed)))} for seed in range(4, 8)]),
        detect(app, images=[fresh, {"content": b64(encode(noise(60, 90, 9)))}], queries=exemplars),
        ask(app, "POST", "/v1/embed", json={"queries": exemplars * 2}),
    ]
    app.state.serving.close()
    assert [(one.status_code, one.json()["code"]) for one in answers] == [(422, "too_many_pixels")] * 3
    assert app.state.serving.waiting == 0


@pytest.mark.parametrize("form, n_pixels", [("PNG", 1600 * 1200), ("JPEG", 1600 * 1200 // 4)])
def test_a_jpeg_costs_less_memory_than_other_pictures(form, n_pixels):
    cost = check_picture(encode(noise(1200, 1600), form), "x", max_pixels=10**7)
    assert (cost.pixels, cost.decoded) == (1600 * 1200, n_pixels)


def test_a_large_jpeg_is_decoded_small_and_answers_nearly_as_the_direct_call(detector, monkeypatch):
    smooth = noise(240, 160, seed=2).resize((1600, 2400), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encode(smooth.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    opened = []

    def remember(image):
        opened.append(image.size)
        return open_image(image)

    monkeypatch.setattr(pictures, "open_image", remember)
    picture = read_picture(detector, content, "x", max_pixels=10**7, key=content_key(content))
    assert opened == [(2400 // 8, 1600 // 8)]
    assert picture.prepared.frames[0].image_hw == (2400, 1600)
    ours, theirs = (detector.detect(one, ["a"], threshold=0.0) for one in (picture.prepared, content))
    assert float((ours.scores[:20] - theirs.scores[:20]).abs().max()) < 0.02


def test_a_wide_jpeg_is_decoded_small_too(detector):
    content = encode(noise(320, 6400), "JPEG")
    picture = read_picture(detector, content, "x", max_pixels=10**7, key=b"")
    assert picture.prepared.frames[0].image_hw == (320, 6400)
    (found,) = detector.detect(picture.prepared, threshold=0.0, nms_iou=None, top_k=1)
    assert 0 <= found.box_xyxy[0] <= found.box_xyxy[2] <= 6400


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(detector, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    content = encode(noise(60, 90, 5), "TIFF", exif=exif)
    picture = read_picture(detector, content, "x", max_pixels=10**7, key=b"")
    expected = detector.detect(content, ["cat"], threshold=0.0, nms_iou=None, top_k=3)
    assert picture.prepared.frames[0].image_hw == expected.image_hw == ((90, 60) if orientation > 4 else (60, 90))
    found = detector.detect(picture.prepared, ["cat"], threshold=0.0, nms_iou=None, top_k=3)
    assert torch.allclose(found.boxes, expected.boxes, atol=1e-2)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("box", [(10, 20, 40, 60), (0, 0, 90, 60), (-50, 30.5, 20.25, 100), (80, 50, 90, 60)])
def test_an_exemplar_cut_by_a_reader_is_the_same_query(detector, box, orientation):
    content = turned(noise(60, 90, 5), orientation)
    picture, inside = read_exemplar(content, "x", box, image_size=96, max_pixels=10**6)
    ours, theirs = (
        detector.encode_queries([Exemplar(picture, inside)]),
        detector.encode_queries([Exemplar(content, box)]),
    )
    assert float((ours.query_embeds - theirs.query_embeds).abs().max()) < 1e-5


def test_of_a_huge_exemplar_little_is_kept():
    content = encode(noise(2000, 2000))
    picture, box = read_exemplar(content, "x", (100, 100, 1900, 1900), image_size=96, max_pixels=10**7)
    assert max(picture.size) <= 300 and 200 < box[2] - box[0] < 300
    with pytest.raises(QueryError, match="covers no pixel of the picture, which is 2000x2000"):
        read_exemplar(content, "x", (3000, 3000, 4000, 4000), image_size=96, max_pixels=10**7)


# --- Time ----------------------------------------------------------------------------------------------------------


class Stuck(Detector):
    """Encodes nothing until it is let go."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.go, self.n_encoded = threading.Event(), 0

    def encode_images(self, images, **options):
        assert self.go.wait(30)
        self.n_encoded += len(images)
        return super().encode_images(images, **options)


def test_beyond_its_time_a_request_is_answered_504_and_its_work_is_dropped(tiny_model):
    stuck = Stuck(tiny_model, device="cpu")
    app = create_app(stuck, ServerSettings(timeout_s=0.3, max_batch=1, model_threads=1))
    images = [{"content": b64(encode(noise(60, 90, seed)))} for seed in range(5)]
    answer = detect(app, images=images)
    assert (answer.status_code, answer.json()["code"]) == (504, "timeout")
    assert answer.headers["content-type"] == "application/problem+json"
    stuck.go.set()
    app.state.serving.close()
    assert stuck.n_encoded <= 1  # what ran already
    assert (app.state.serving.waiting, app.state.serving.held_bytes) == (0, 0)
