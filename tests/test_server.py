"""The HTTP API gives what the Python call gives, in order, and remembers only what may be remembered."""

import asyncio
import base64
import json
import re
import threading
from dataclasses import replace

import httpx
import pytest
import torch
from http_client import ask, b64, detect
from picture_files import encode, noise, turned
from PIL import Image

from owl_swin.bench.serving import same_answer
from owl_swin.detector import Detector
from owl_swin.errors import ConfigError
from owl_swin.exemplar import Exemplar
from owl_swin.formats import to_record
from owl_swin.frame import Frame
from owl_swin.queries import Query
from owl_swin.server.app import create_app
from owl_swin.server.pictures import content_key, read_picture
from owl_swin.server.settings import ServerSettings

CAT, DOG = encode(noise(60, 90)), encode(noise(300, 200, seed=1), "JPEG")
ALL = {"threshold": 0.6}


@pytest.fixture(scope="module")
def app(detector):
    # One picture a pass, so that answers equal the direct call's to the bit: a pass of several rounds differently.
    app = create_app(detector, ServerSettings(max_batch=1))
    yield app
    app.state.serving.close()


def records(detector, files: dict[str, bytes], queries, **options) -> list[dict]:
    """What the direct call says, one picture after the other."""
    return [to_record(name, detector.detect(file, queries, **{**ALL, **options})) for name, file in files.items()]


# --- Detection -----------------------------------------------------------------------------------------------------


def test_a_form_of_pictures_and_texts_is_answered_as_the_python_call_is(app, detector):
    files = {"cat.png": CAT, "dog.jpg": DOG, "turned.png": turned(noise(50, 70, 3), 6)}
    answer = ask(
        app,
        "POST",
        "/v1/detect",
        files=[("images", (name, file)) for name, file in files.items()],
        data={"query": ["cat", "dog"], "threshold": "0.6"},
    )
    assert answer.status_code == 200
    assert answer.json() == {"results": records(detector, files, ["cat", "dog"])}
    assert sum(len(one["detections"]) for one in answer.json()["results"]) > 20


def test_json_with_base64_is_answered_as_the_python_call_is(app, detector):
    mug = Query(
        "my mug",
        texts=["a mug", "a cup"],
        exemplars=[Exemplar(DOG, (10, 20, 110, 200)), Exemplar(CAT)],
        negatives=["a plate", Exemplar(CAT, (0, 0, 30, 30))],
        weight=0.7,
    )
    told = {
        "name": "my mug",
        "texts": ["a mug", "a cup"],
        "exemplars": [{"image": {"content": b64(DOG)}, "box": [10, 20, 110, 200]}, {"image": {"content": b64(CAT)}}],
        "negatives": ["a plate", {"image": {"content": b64(CAT)}, "box": [0, 0, 30, 30]}],
        "weight": 0.7,
    }
    options = {"threshold": [0.01, 0.5], "nms_iou": 0.9, "objectness": 0.001, "top_k": 40}
    answer = detect(app, images=[{"content": b64(CAT), "name": "c"}], queries=[told, "dog"], **options)
    assert answer.status_code == 200
    assert answer.json()["results"] == records(detector, {"c": CAT}, [mug, "dog"], **options)
    assert {row["label"] for row in answer.json()["results"][0]["detections"]} == {"my mug", "dog"}


def test_a_form_may_hold_json_that_names_uploaded_files(app, detector):
    told = {"queries": [{"exemplars": [{"image": {"file": "../../mug.png"}}], "name": "mug"}], **ALL}
    parts = [
        ("request", (None, json.dumps(told), "application/json")),
        ("images", ("dog.jpg", DOG)),
        ("files", ("../../mug.png", CAT)),
    ]
    answer = ask(app, "POST", "/v1/detect", files=parts)
    assert answer.json()["results"] == records(detector, {"dog.jpg": DOG}, [Exemplar(CAT, name="mug")])


def test_a_data_url_is_read_as_its_content(app, detector):
    answer = detect(app, images=[{"content": f"data:image/png;base64,{b64(CAT)}"}], queries=["cat"], **ALL)
    assert answer.json()["results"] == records(detector, {"images[0]": CAT}, ["cat"])


def test_without_queries_everything_that_looks_like_a_thing_is_found(app, detector):
    answer = detect(app, images=[{"content": b64(CAT), "name": "c"}], threshold=0.1, nms_iou=None)
    assert answer.json()["results"] == records(detector, {"c": CAT}, None, threshold=0.1, nms_iou=None)


def test_nothing_found_is_an_empty_list(app):
    answer = detect(app, images=[{"content": b64(CAT)}], queries=["cat"], threshold=1.0)
    assert answer.json() == {"results": [{"image": "images[0]", "width": 90, "height": 60, "detections": []}]}


@pytest.mark.parametrize("image_size", [64, 96, 100])
def test_a_picture_shrunk_while_it_waits_gives_the_same_to_the_bit(tiny_model, image_size):
    detector = Detector(tiny_model, device="cpu", image_size=image_size)
    for hw in [(300, 200), (31, 977), (1, 5), (96, 96)]:
        file = encode(noise(*hw))
        picture = read_picture(detector, file, "x", max_pixels=10**6, key=content_key(file))
        assert picture.prepared.frames == (Frame.fit(hw, image_size),)
        found, expected = (detector.detect(one, ["cat"], **ALL) for one in (picture.prepared, file))
        assert torch.equal(found.boxes, expected.boxes) and torch.equal(found.scores, expected.scores)


def test_requests_that_come_together_share_a_batch_and_keep_their_own_answers(detector):
    app = create_app(detector, ServerSettings(max_batch=8, max_wait_s=5.0))
    names = [f"{i}.png" for i in range(8)]
    files = [encode(noise(60, 90, seed=i)) for i in range(8)]

    async def together():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            asked = [
                {"images": [{"content": b64(file), "name": name}], "queries": [f"thing {i}"], **ALL}
                for i, (name, file) in enumerate(zip(names, files, strict=True))
            ]
            return await asyncio.gather(*(client.post("/v1/detect", json=one) for one in asked))

    answers = asyncio.run(together())
    page = ask(app, "GET", "/metrics").text
    app.state.serving.close()
    assert 'owl_swin_batch_size_bucket{le="4.0"} 0.0' in page
    assert 'owl_swin_batch_size_bucket{le="8.0"} 1.0' in page
    for i, answer in enumerate(answers):
        (expected,) = records(detector, {names[i]: files[i]}, [f"thing {i}"])
        assert same_answer(answer.json()["results"][0], expected, 0.6)
        assert {row["label"] for row in answer.json()["results"][0]["detections"]} == {f"thing {i}"}


def test_an_answer_is_the_same_but_for_what_a_batch_rounds():
    row = {"label": "a", "score": 0.5, "box": {"xmin": 1.0, "ymin": 2.0, "xmax": 3.0, "ymax": 4.0}}
    record = {"image": "i", "width": 9, "height": 9, "detections": [row, {**row, "score": 0.4}]}

    def changed(*rows):
        return {**record, "detections": list(rows)}

    assert same_answer(changed({**row, "score": 0.400001}, {**row, "score": 0.499999}), record, 0.1)
    assert same_answer(changed(row), record, 0.399999)
    assert not same_answer(changed(row), record, 0.1)
    assert not same_answer(changed(row, {**row, "score": 0.4}, {**row, "score": 0.3}), record, 0.1)
    assert not same_answer(changed(row, {**row, "score": 0.4, "label": "b"}), record, 0.1)
    assert not same_answer(changed(row, {**row, "score": 0.4, "box": {**row["box"], "xmax": 3.1}}), record, 0.1)
    assert not same_answer({**record, "image": "j"}, record, 0.1)


# --- Queries to keep -----------------------------------------------------------------------------------------------


def test_embedded_queries_are_a_file_that_every_door_reads(app, detector, tmp_path):
    told = {"queries": ["cat", {"texts": ["dog"], "negatives": ["wolf"]}]}
    answer = ask(app, "POST", "/v1/embed", json=told)
    assert answer.json()["names"] == ["cat", "dog"]
    assert answer.json()["fingerprint"] == detector.fingerprint
    path = tmp_path / "kept.safetensors"
    path.write_bytes(base64.b64decode(answer.json()["queries"]))
    queries = detector.load_queries(path)
    saved = {"saved": {"content": answer.json()["queries"]}}
    image = {"content": b64(CAT), "name": "c"}
    found = detect(app, images=[image], queries=[saved], **ALL).json()["results"]
    assert found == records(detector, {"c": CAT}, queries)
    found = detect(app, images=[image], queries=["bird", saved, "cow"], **ALL).json()["results"]
    around = detector.encode_queries(["bird"]) + queries + detector.encode_queries(["cow"])
    assert found == records(detector, {"c": CAT}, around)
    file = ask(app, "POST", "/v1/embed", json=told, headers={"Accept": "application/octet-stream"})
    path.write_bytes(file.content)
    assert torch.equal(detector.load_queries(path).query_embeds, queries.query_embeds)


def test_queries_of_another_model_are_refused(app, detector, tmp_path):
    path = tmp_path / "other.safetensors"
    replace(detector.encode_queries(["cat"]), fingerprint="0" * 64).save(path)
    saved = {"saved": {"content": b64(path.read_bytes())}}
    answer = detect(app, images=[{"content": b64(CAT)}], queries=[saved])
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_query")
    assert answer.json()["detail"].startswith("queries[0].saved: these queries were made by another model")


# --- Caches --------------------------------------------------------------------------------------------------------


def test_pictures_and_queries_asked_for_again_are_not_encoded_again(tiny_model):
    counting = CountingDetector(tiny_model, device="cpu")
    app = create_app(counting)
    for name in ("first", "second"):
        answer = detect(app, images=[{"content": b64(CAT), "name": name}], queries=["cat"], **ALL)
        assert answer.json()["results"] == records(Detector(tiny_model, device="cpu"), {name: CAT}, ["cat"])
    page = ask(app, "GET", "/metrics").text
    app.state.serving.close()
    assert (counting.pictures, counting.texts) == (1, 1)
    assert 'owl_swin_cache_lookups_total{cache="images",found="yes"} 1.0' in page


class CountingDetector(Detector):
    pictures = texts = 0

    def encode_images(self, images, **options):
        self.pictures += len(images)
        return super().encode_images(images, **options)

    def encode_queries(self, queries):
        self.texts += len(queries)
        return super().encode_queries(queries)


# --- The door ------------------------------------------------------------------------------------------------------


def test_other_machines_are_let_in_with_a_token_only():
    with pytest.raises(ConfigError, match="other machines can reach"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", token="12345678").token
    assert ServerSettings(host="0.0.0.0", open_to_all=True).open_to_all
    with pytest.raises(ConfigError, match="at least 8 characters"):
        ServerSettings(token="short")
    with pytest.raises(ConfigError, match="must not begin or end with a blank"):
        ServerSettings(token="open-sesame ")
    with pytest.raises(ConfigError, match="max_pixels must be at most 89478485"):
        ServerSettings(max_pixels=200_000_000)
    for host in ("https://e.com", "e.com/a", "e.com:99999", ""):
        with pytest.raises(ConfigError, match="is HOST or HOST:PORT"):
            ServerSettings(url_hosts=(host,))
    assert ServerSettings(url_hosts=("e.com:443", "Pictures.example", "10.0.0.1:80", "::1")).url_hosts


@pytest.fixture(scope="module")
def locked(detector):
    app = create_app(detector, ServerSettings(token="open-sesame"))
    yield app
    app.state.serving.close()


@pytest.mark.parametrize(
    "header, status",
    [
        (None, 401),
        ("Bearer open-sesame", 200),
        ("bearer open-sesame", 200),
        ("Bearer open-sesam", 401),
        ("Bearer open-sesame2", 401),
        ("Bearer", 401),
        ("open-sesame", 401),
        ("Basic " + b64(b"me:open-sesame"), 200),
        ("Basic " + b64(b"open-sesame:me"), 401),
        ("Basic !!", 401),
    ],
)
def test_with_a_token_only_its_bearer_is_answered(locked, header, status):
    answer = ask(locked, "GET", "/v1/model", headers={"Authorization": header} if header else {})
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["code"] == "unauthorized"
        assert answer.headers["www-authenticate"].startswith("Basic")


def test_probes_need_no_token_and_everything_else_does(locked):
    paths = ["/healthz", "/readyz", "/v1/model", "/metrics", "/docs", "/openapi.json", "/v1/nope", "/"]
    assert [ask(locked, "GET", path).status_code for path in paths] == [200, 200, *[401] * 6]


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_cannot_reach_a_server_without_a_token(app, headers, status):
    answer = ask(app, "GET", "/v1/model", headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


# --- Pages ---------------------------------------------------------------------------------------------------------


def test_the_documentation_shows_every_path_and_loads_nothing(app):
    page = ask(app, "GET", "/docs")
    paths = ask(app, "GET", "/openapi.json").json()["paths"]
    assert len(paths) == 12
    for path in paths:
        assert path in page.text
    assert "Find things in pictures" in page.text and "<code>code</code>" in page.text and ">None" not in page.text
    assert "<script" not in page.text and "src=" not in page.text and "url(" not in page.text
    assert not re.findall(r"href=['\"](?!#|openapi.json)", page.text)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/model", "/docs"])
def test_what_answers_get_answers_head(app, path):
    assert ask(app, "HEAD", path).status_code == 200


def test_every_form_field_is_documented(app):
    paths = ask(app, "GET", "/openapi.json").json()["paths"]
    form = paths["/v1/detect"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert form.keys() == {
        "request",
        "images",
        "query",
        "threshold",
        "masks",
        "nms_iou",
        "box_voting",
        "rivals",
        "nms_across",
        "objectness",
        "top_k",
        "tile",
        "overlap",
        "files",
    }
    assert (form["tile"]["minimum"], form["tile"]["maximum"], form["overlap"]["maximum"]) == (32, 4096, 0.9)
    assert form["top_k"]["minimum"] == 1 and form["threshold"]["maximum"] == 1


def test_two_queries_of_one_name_are_told_apart_by_their_index(app):
    queries = [{"name": "mug", "texts": ["a red mug"]}, {"name": "mug", "texts": ["a blue cup"]}]
    answer = detect(app, images=[{"content": b64(CAT)}], queries=queries, threshold=[0.0, 0.0], nms_iou=None)
    rows = answer.json()["results"][0]["detections"]
    assert {(row["query"], row["label"]) for row in rows} == {(0, "mug"), (1, "mug")}


def test_the_examples_of_the_documentation_are_answered(app):
    schemas = ask(app, "GET", "/openapi.json").json()["components"]["schemas"]
    for path in ("detect", "similarity", "classify", "embed"):
        name = f"{path.capitalize()}In"
        for example in schemas[name]["examples"]:
            answer = ask(app, "POST", f"/v1/{path}", json=example)
            if example.get("masks"):  # of which this model has none
                assert (answer.status_code, "masks" in answer.json()["detail"]) == (422, True), example
            else:
                assert answer.status_code == 200, example


def test_the_model_says_which_it_is_and_what_it_takes(app, detector):
    told = ask(app, "GET", "/v1/model").json()
    assert (told["name"], told["fingerprint"]) == ("tiny_for_tests", detector.fingerprint)
    assert (told["image_size"], told["dimensions"], told["archive"]) == (96, 16, None)
    assert told["limits"]["max_images"] == 16


# --- A queue that is full, and a server that stops -----------------------------------------------------------------


class StuckDetector(Detector):
    """Encodes nothing until it is let go."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.entered, self.go = threading.Event(), threading.Event()

    def encode_images(self, images, **options):
        self.entered.set()
        assert self.go.wait(30)
        return super().encode_images(images, **options)


def test_beyond_the_bound_requests_are_refused_at_once_and_answered_again_later(tiny_model):
    stuck = StuckDetector(tiny_model, device="cpu")
    app = create_app(stuck, ServerSettings(queue_size=4, max_images=2, max_batch=1, max_wait_s=0))

    async def many():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:

            def asked(seed):
                image = {"content": b64(encode(noise(60, 90, seed))), "name": "x"}
                return client.post("/v1/detect", json={"images": [image], **ALL})

            first = [asyncio.create_task(asked(seed)) for seed in range(2)]  # two works each: the bound
            await asyncio.to_thread(stuck.entered.wait, 30)
            while app.state.serving.waiting < 4:
                await asyncio.sleep(0.01)
            refused = await asyncio.gather(*(asked(seed) for seed in range(5)))
            stuck.go.set()
            return await asyncio.gather(*first), refused, await asked(9)

    first, refused, later = asyncio.run(many())
    app.state.serving.close()
    assert [one.status_code for one in (*first, later)] == [200] * 3
    for one in refused:
        assert (one.status_code, one.json()["code"]) == (503, "busy")
        assert 1 <= int(one.headers["retry-after"]) <= 60


def test_a_server_that_stops_finishes_what_runs_and_refuses_what_is_new(tiny_model):
    stuck = StuckDetector(tiny_model, device="cpu")
    app = create_app(stuck)
    body = {"images": [{"content": b64(CAT), "name": "c"}], "queries": ["cat"], **ALL}

    async def stopping():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            running = asyncio.create_task(client.post("/v1/detect", json=body))
            await asyncio.to_thread(stuck.entered.wait, 30)
            app.state.serving.draining = True
            refused = await client.post("/v1/detect", json=body), await client.get("/readyz")
            health = await client.get("/healthz")
            stuck.go.set()
            return await running, *refused, health

    ran, refused, ready, health = asyncio.run(stopping())
    app.state.serving.close()
    assert ran.json()["results"] == records(Detector(tiny_model, device="cpu"), {"c": CAT}, ["cat"])
    assert [one.json()["code"] for one in (refused, ready)] == ["shutting_down"] * 2
    assert [one.status_code for one in (refused, ready, health)] == [503, 503, 200]


def test_a_failure_of_the_model_is_one_request_s_and_shows_no_inside(tiny_model, caplog):
    class Failing(Detector):
        def encode_images(self, images, **options):
            if any(image.pixels[0][:, 0, 0].tolist() == [255, 0, 0] for image in images):
                raise RuntimeError("secret /etc/path")
            return super().encode_images(images, **options)

    app = create_app(Failing(tiny_model, device="cpu"), ServerSettings(max_wait_s=1.0, max_batch=2))
    red = encode(Image.new("RGB", (90, 60), "red"))

    async def both():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            asked = ({"images": [{"content": b64(file)}]} for file in (red, CAT))
            return await asyncio.gather(*(client.post("/v1/detect", json=one) for one in asked))

    failed, fine = asyncio.run(both())
    app.state.serving.close()
    assert (failed.status_code, failed.json()["code"], fine.status_code) == (500, "internal", 200)
    assert "secret" not in failed.text and "Traceback" not in failed.text
    assert failed.json()["request_id"] in caplog.text and "secret" in caplog.text
