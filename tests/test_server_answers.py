"""In which forms the API answers: JSON, lines as they are done, or a picture; and what classify and similarity say."""

import io
import json
import threading
import time

import httpx
import numpy as np
import pytest
import torch
from http_client import ask, b64, running
from owl_checkpoints import save_clip_tokenizer, save_owl
from picture_files import encode, noise, turned
from PIL import Image

from owl_swin.detector import Detector
from owl_swin.exemplar import Exemplar
from owl_swin.formats import to_record
from owl_swin.queries import Query
from owl_swin.render import draw_detections, draw_heat_map
from owl_swin.server.app import create_app
from owl_swin.server.negotiation import BYTES, JSON, LINES, PNG, choose
from owl_swin.server.problems import Problem
from owl_swin.server.settings import ServerSettings

CAT, DOG = encode(noise(60, 90)), encode(noise(300, 200, seed=1), "JPEG")
ALL = {"threshold": 0.6}


@pytest.fixture(scope="module")
def app(detector):
    app = create_app(detector, ServerSettings(max_batch=1, max_request_pixels=10**6, url_hosts=("pictures.example",)))
    yield app
    app.state.serving.close()


def asked(app, path: str, accept: str = JSON, **body) -> httpx.Response:
    return ask(app, "POST", f"/v1/{path}", json=body, headers={"Accept": accept})


def lines(answer: httpx.Response) -> list[dict]:
    assert (answer.status_code, answer.headers["content-type"]) == (200, LINES), answer.text
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


def pictures(*contents: bytes) -> list[dict]:
    return [{"content": b64(content), "name": f"{i}.png"} for i, content in enumerate(contents)]


# --- The form ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accept, chosen",
    [
        ([], JSON),
        ([""], JSON),
        (["*/*"], JSON),
        (["application/*"], JSON),
        (["image/png"], PNG),
        (["IMAGE/PNG"], PNG),
        (["image/*"], PNG),
        (["image/png, */*"], PNG),
        (["image/png;q=0.5, application/json"], JSON),
        (["image/png;q=0.5, application/json;q=0.1"], PNG),
        (["application/json;q=0, */*"], LINES),
        (["text/html", "application/x-ndjson"], LINES),
        (["application/x-ndjson;charset=utf-8"], LINES),
        (["nonsense, image/png;q=x, application/json;q=2"], JSON),
        (["text/html"], None),
        (["*/*;q=0"], None),
        (["application/json;q=0"], None),
        (["image/webp, text/*;q=0.3"], None),
    ],
)
def test_the_form_that_a_client_likes_best_is_chosen(accept, chosen):
    offered = (JSON, LINES, PNG)
    if chosen is None:
        with pytest.raises(Problem, match="this path answers application/json, application/x-ndjson, image/png"):
            choose(accept, offered)
    else:
        assert choose(accept, offered) == chosen


@pytest.mark.parametrize(
    "path, accept",
    [
        ("detect", "image/webp"),
        ("classify", PNG),
        ("similarity", BYTES),
        ("embed", LINES),
        ("search", PNG),
        ("images", LINES),
    ],
)
def test_what_is_not_offered_is_406_before_anything_is_read(app, path, accept):
    answer = ask(app, "POST", f"/v1/{path}", content=b"not even JSON", headers={"Accept": accept})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    assert answer.headers["content-type"] == "application/problem+json"


# --- A picture -----------------------------------------------------------------------------------------------------


def image_of(answer: httpx.Response) -> Image.Image:
    assert (answer.status_code, answer.headers["content-type"]) == (200, PNG), answer.text
    return Image.open(io.BytesIO(answer.content))


@pytest.mark.parametrize("content", [CAT, turned(noise(50, 70, 3), 6)])
def test_boxes_are_drawn_as_the_python_call_draws_them(app, detector, content):
    for _ in range(2):  # the second time the picture is not encoded again, but drawn on
        drawn = image_of(asked(app, "detect", PNG, images=pictures(content), queries=["cat"], **ALL))
        expected = draw_detections(content, detector.detect(content, ["cat"], **ALL))
        assert np.array_equal(drawn, expected)


def test_on_a_huge_picture_boxes_are_drawn_on_a_smaller_copy(detector):
    wide = encode(Image.new("RGB", (5000, 40), "white"))
    app = create_app(detector)
    assert image_of(asked(app, "detect", PNG, images=pictures(wide), threshold=0.0, nms_iou=None)).size == (2048, 16)
    app.state.serving.close()


def test_a_heat_map_is_drawn_as_the_python_call_draws_it(app, detector):
    for queries, title in ((["a cat"], "a cat"), (None, "object")):
        body = {"images": pictures(CAT)} | ({"queries": queries} if queries else {})
        drawn = image_of(asked(app, "similarity", PNG, **body))
        assert np.array_equal(drawn, draw_heat_map(CAT, detector.similarity(CAT, queries)[0], title=title))


def test_a_form_gets_a_picture_too(app):
    answer = ask(app, "POST", "/v1/detect", files={"images": CAT}, data={"query": "cat"}, headers={"Accept": PNG})
    assert image_of(answer).size == (90, 60)


def test_of_several_pictures_or_queries_none_is_drawn(app):
    for path, body in [("detect", {"images": pictures(CAT, DOG)}), ("similarity", {"images": pictures(CAT, DOG)})]:
        answer = asked(app, path, PNG, **body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    answer = asked(app, "similarity", PNG, images=pictures(CAT), queries=["a", "b"])
    assert (answer.status_code, answer.json()["code"]) == (422, "too_many_queries")


# --- Lines ---------------------------------------------------------------------------------------------------------


def test_a_line_a_picture_says_what_the_whole_answer_says(app, detector):
    files = [CAT, DOG, turned(noise(50, 70, 3), 6)]
    rows = lines(asked(app, "detect", LINES, images=pictures(*files), queries=["cat", "dog"], **ALL))
    for index, row in enumerate(sorted(rows, key=lambda row: row["index"])):
        expected = to_record(f"{index}.png", detector.detect(files[index], ["cat", "dog"], **ALL))
        assert row == {"index": index, **expected}
    for path in ("similarity", "classify"):
        body = {"images": pictures(*files), "queries": ["cat", "dog"]}
        whole = asked(app, path, **body).json()["results"]
        rows = sorted(lines(asked(app, path, LINES, **body)), key=lambda row: row["index"])
        assert rows == [{"index": i, **one} for i, one in enumerate(whole)]


def test_what_is_wrong_with_one_picture_stands_in_its_line(app):
    large = encode(Image.new("L", (1001, 1000)))
    images = [*pictures(CAT, CAT[:80], b"no picture", large), {"url": "http://evil.example/a.png"}, {"file": "b.png"}]
    rows = sorted(lines(asked(app, "detect", LINES, images=images, queries=["cat"])), key=lambda row: row["index"])
    codes = [row.get("error", {}).get("code") for row in rows]
    assert codes == [None, "invalid_image", "invalid_image", "too_many_pixels", "url_not_allowed", "invalid_request"]
    assert [row["image"] for row in rows[:5]] == [*(f"{i}.png" for i in range(4)), "http://evil.example/a.png"]
    assert {row["error"]["request_id"] for row in rows[1:]} != {""} and rows[1]["error"]["status"] == 422
    assert (app.state.serving.waiting, app.state.serving.held_bytes) == (0, 0)


@pytest.mark.parametrize(
    "body, status, code",
    [
        ({"images": []}, 422, "invalid_request"),
        ({"images": pictures(CAT), "queries": []}, 422, "invalid_query"),
        ({"images": pictures(CAT), "queries": ["a"], "threshold": [0.1, 0.2]}, 422, "invalid_query"),
        ({"images": pictures(CAT), "queries": [{"exemplars": [{"image": {"content": ""}}]}]}, 422, "invalid_image"),
        ({"images": pictures(*[CAT] * 17)}, 422, "too_many_images"),
    ],
)
def test_what_is_wrong_with_the_whole_request_is_the_whole_answer(app, body, status, code):
    answer = asked(app, "detect", LINES, **body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (app.state.serving.waiting, app.state.serving.held_bytes) == (0, 0)


class HeldDetector(Detector):
    """Encodes one picture after another, and each only when it may."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.may, self.encoded = threading.Semaphore(0), 0

    def encode_images(self, images, **options):
        assert self.may.acquire(timeout=30)
        self.encoded += len(images)
        return super().encode_images(images, **options)


def test_lines_come_as_pictures_are_done_and_a_client_that_goes_ends_the_work(tiny_model):
    held = HeldDetector(tiny_model, device="cpu")
    body = {"images": pictures(*(encode(noise(60, 90, seed)) for seed in range(5))), "queries": ["cat"]}
    with running(held, max_batch=1, model_threads=1) as server:
        serving, before = server.server.serving, held.encoded
        with httpx.stream(
            "POST", f"{server.url}/v1/detect", json=body, headers={"Accept": LINES}, timeout=30
        ) as answer:
            rows = answer.iter_lines()
            for n in (1, 2):
                held.may.release()
                assert json.loads(next(rows))["image"].endswith(".png")
                assert held.encoded - before == n
        ended = time.monotonic() + 20
        while serving.waiting and time.monotonic() < ended:
            time.sleep(0.02)
        assert serving.waiting == 0
        for _ in range(9):
            held.may.release()
        assert httpx.post(f"{server.url}/v1/detect", json={"images": pictures(CAT)}, timeout=30).status_code == 200
        # What the model had begun is ended, the rest is not begun.
        assert held.encoded - before <= 4


def test_pictures_that_are_not_done_in_time_are_so_said_to_be(tiny_model):
    held = HeldDetector(tiny_model, device="cpu")
    app = create_app(held, ServerSettings(max_batch=1, model_threads=1, timeout_s=1.5))
    held.may.release()
    rows = lines(asked(app, "detect", LINES, images=pictures(CAT, DOG), queries=["cat"]))
    for _ in range(9):
        held.may.release()
    app.state.serving.close()
    assert len(rows) == 2 and "detections" in rows[0] and rows[1]["error"]["code"] == "timeout"


def test_a_mistake_of_ours_in_one_picture_is_its_line_and_goes_to_the_log(detector, monkeypatch, caplog):
    app = create_app(detector)

    def fail(*arguments, **options):
        raise RuntimeError("secret")

    monkeypatch.setattr("owl_swin.server.tasks.to_record", fail)
    (row,) = lines(asked(app, "detect", LINES, images=pictures(CAT), queries=["cat"]))
    app.state.serving.close()
    assert row["error"]["code"] == "internal" and "secret" not in json.dumps(row)
    assert row["error"]["request_id"] in caplog.text and "secret" in caplog.text


# --- Whole pictures and their parts --------------------------------------------------------------------------------


def test_classes_are_what_the_python_call_says(app, detector):
    names = ["cat", Query("dog", texts=["a dog", "a hound"]), "owl"]
    told = ["cat", {"name": "dog", "texts": ["a dog", "a hound"]}, "owl"]
    answer = asked(app, "classify", images=pictures(CAT, DOG), queries=told)
    assert answer.status_code == 200, answer.text
    for content, result in zip((CAT, DOG), answer.json()["results"], strict=True):
        expected = detector.classify(content, names).ranked()
        assert [row["label"] for row in result["classes"]] == [name for name, _ in expected]
        assert [row["score"] for row in result["classes"]] == pytest.approx([score for _, score in expected], abs=1e-6)
        assert [told[row["query"]] if isinstance(told[row["query"]], str) else "dog" for row in result["classes"]] == [
            name for name, _ in expected
        ]


def test_classes_may_be_shown_and_templates_chosen(app, detector):
    shown = [{"exemplars": [{"image": {"content": b64(CAT)}, "box": [10, 10, 40, 40]}], "name": "cat"}]
    shown += [{"exemplars": [{"image": {"content": b64(DOG)}}], "name": "dog"}]
    expected = detector.classify(CAT, [Exemplar(CAT, (10, 10, 40, 40), "cat"), Exemplar(DOG, name="dog")])
    rows = asked(app, "classify", images=pictures(CAT), queries=shown).json()["results"][0]["classes"]
    assert [(row["label"], row["score"]) for row in rows] == [
        (name, pytest.approx(score, abs=0.02)) for name, score in expected.ranked()
    ]
    expected = detector.classify(CAT, ["cat", "dog"], templates=["one {}"]).ranked()
    rows = asked(app, "classify", images=pictures(CAT), queries=["cat", "dog"], templates=["one {}"]).json()
    assert rows["results"][0]["classes"][0]["score"] == pytest.approx(expected[0][1], abs=1e-6)


@pytest.mark.parametrize(
    "body, code",
    [
        ({}, "invalid_request"),
        ({"queries": []}, "invalid_request"),
        ({"queries": [{"texts": ["a"], "negatives": ["b"]}]}, "invalid_query"),
        ({"queries": ["a", {"exemplars": [{"image": {"content": b64(CAT)}}]}]}, "invalid_query"),
        ({"queries": [{"saved": {"content": ""}}]}, "invalid_request"),
        ({"queries": ["a"], "templates": []}, "invalid_request"),
        ({"queries": ["a"], "templates": ["no place"]}, "invalid_request"),
        ({"queries": ["a"], "templates": ["{}" * 50]}, "invalid_request"),
        ({"queries": [f"{i}" for i in range(301)]}, "too_many_queries"),
    ],
)
def test_what_makes_no_classes_is_refused(app, body, code):
    answer = asked(app, "classify", images=pictures(CAT), **body)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text


def test_maps_are_what_the_python_call_says(app, detector):
    answer = asked(app, "similarity", images=pictures(CAT), queries=["cat", "dog"])
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    assert (result["width"], result["height"]) == (90, 60)
    assert [(one["query"], one["label"]) for one in result["maps"]] == [(0, "cat"), (1, "dog")]
    made = torch.tensor([one["scores"] for one in result["maps"]])
    assert torch.allclose(made, detector.similarity(CAT, ["cat", "dog"]), atol=1e-6)
    (result,) = asked(app, "similarity", images=pictures(CAT)).json()["results"]
    assert torch.allclose(torch.tensor(result["maps"][0]["scores"]), detector.similarity(CAT)[0], atol=1e-6)
    answer = asked(app, "similarity", images=pictures(CAT), queries=[f"{i}" for i in range(17)])
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_boxes_of_two_queries_may_compete(app, detector):
    body = {"images": pictures(CAT), "queries": ["cat", "dog"], "threshold": 0.0, "nms_iou": 0.3, "nms_across": True}
    (result,) = asked(app, "detect", **body).json()["results"]
    found = detector.detect(CAT, ["cat", "dog"], threshold=0.0, nms_iou=0.3, nms_across=True)
    assert result == to_record("0.png", found)
    alone = detector.detect(CAT, ["cat", "dog"], threshold=0.0, nms_iou=0.3)
    assert len(found) < len(alone)


# --- The OWL family ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["owlvit", "owlv2"])
def test_a_folder_of_the_owl_family_answers_in_all_forms(tmp_path, family):
    save_owl(tmp_path, family)
    save_clip_tokenizer(tmp_path)
    owl = Detector.from_pretrained(tmp_path, device="cpu")
    app = create_app(owl, ServerSettings(max_batch=1))
    body = {"images": pictures(CAT), "queries": ["cat", "dog"]}
    found = owl.detect(CAT, ["cat", "dog"], threshold=0.1)
    (row,) = lines(asked(app, "detect", LINES, **body, threshold=0.1))
    assert row == {"index": 0, **to_record("0.png", found)} and len(found)
    assert np.array_equal(image_of(asked(app, "detect", PNG, **body, threshold=0.1)), draw_detections(CAT, found))
    maps = owl.similarity(CAT, ["cat", "dog"])
    drawn = image_of(asked(app, "similarity", PNG, images=pictures(CAT), queries=["cat"]))
    assert np.array_equal(drawn, draw_heat_map(CAT, owl.similarity(CAT, ["cat"])[0], title="cat"))
    (made,) = asked(app, "similarity", **body).json()["results"]
    assert torch.allclose(torch.tensor([one["scores"] for one in made["maps"]]), maps, atol=1e-6)
    answer = asked(app, "classify", **body)
    if family == "owlvit":
        best = owl.classify(CAT, ["cat", "dog"]).ranked()[0]
        row = answer.json()["results"][0]["classes"][0]
        assert (row["label"], row["score"]) == (best[0], pytest.approx(best[1], abs=1e-6))
    else:
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_query")
    assert ask(app, "GET", "/v1/model").json()["version"]
    app.state.serving.close()
