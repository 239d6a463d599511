"""/v1/segment: the maps of Detector.segment as JSON, lines, label maps and drawings, within the server's bounds."""

import io
import json

import numpy as np
import pytest
from colour_detector import colour_detector
from http_client import ask, b64
from picture_files import encode, turned
from PIL import Image, ImageDraw

from owl_swin import Exemplar, Tiles
from owl_swin.map_formats import to_label_image, to_segments
from owl_swin.rle import decode_rle
from owl_swin.server import tasks
from owl_swin.server.app import create_app
from owl_swin.server.settings import ServerSettings

NAMES = ["sky", "green", "red"]


def scene(width: int = 300, height: int = 200) -> Image.Image:
    image = Image.new("RGB", (width, height), (0, 0, 255))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height // 2, width, height), fill=(0, 255, 0))
    draw.ellipse((40, 40, 120, 120), fill=(255, 0, 0))
    return image


SCENE = encode(scene())


@pytest.fixture(scope="module")
def colours():
    return colour_detector()


@pytest.fixture(scope="module")
def app(colours):
    app = create_app(colours, ServerSettings(max_request_tiles=40, max_batch=4))
    yield app
    app.state.serving.close()


def segment(app, accept="application/json", **body):
    return ask(app, "POST", "/v1/segment", json=body, headers={"Accept": accept})


def same(answer, found):
    """Whether an answer says what a map says."""
    assert (answer["height"], answer["width"]) == found.image_hw
    expected = [{**one, "label": one["name"]} for one in to_segments(found)]
    for one in expected:
        del one["name"]
    assert answer["areas"] == expected
    return True


@pytest.mark.parametrize(
    "content",
    [SCENE, turned(scene(), 6), encode(scene(1, 900)), encode(scene(), "JPEG")],
    ids=["wide", "turned", "a line", "JPEG"],
)
def test_areas_are_those_of_segment(app, colours, content):
    answer = segment(app, images=[{"content": b64(content)}], queries=NAMES)
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    assert same(result, colours.segment(content, NAMES))
    tiled = segment(app, images=[{"content": b64(content)}], queries=NAMES, tile=120, overlap=0.3)
    assert same(tiled.json()["results"][0], colours.segment(content, NAMES, tiles=Tiles(120, 0.3)))


def test_what_is_shown_has_an_area_too_and_thresholds_are_one_each(app, colours):
    shown = {
        "name": "disc",
        "exemplars": [{"image": {"content": b64(encode(Image.new("RGB", (64, 64), (255, 0, 0))))}}],
    }
    answer = segment(app, images=[{"content": b64(SCENE)}], queries=["sky", shown, "sky"], threshold=[0.99, 0.3, 0.2])
    (result,) = answer.json()["results"]
    asked = ["sky", Exemplar(Image.new("RGB", (64, 64), (255, 0, 0)), None, "disc"), "sky"]
    assert same(result, colours.segment(SCENE, asked, threshold=[0.99, 0.3, 0.2]))
    assert [(one["id"], one["label"]) for one in result["areas"]] == [(0, "sky"), (1, "disc")]


def test_a_form_gives_the_map_and_the_drawing(app, colours):
    fields, files = {"query": NAMES, "threshold": "0.3"}, {"images": ("scene.png", SCENE)}
    found = colours.segment(SCENE, NAMES, threshold=0.3)
    answer = ask(app, "POST", "/v1/segment", data=fields, files=files, headers={"Accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    labels = Image.open(io.BytesIO(answer.content))
    assert labels.mode == "P" and labels.getpalette() == to_label_image(found).getpalette()
    assert (np.asarray(labels) == np.asarray(to_label_image(found))).all()
    answer = ask(app, "POST", "/v1/segment", data=fields, files=files, headers={"Accept": "image/jpeg"})
    drawn = Image.open(io.BytesIO(answer.content))
    assert drawn.format == "JPEG" and drawn.width == 300 and drawn.height > 200  # with its legend
    large = segment(app, "image/jpeg", images=[{"content": b64(encode(scene(3000, 200)))}], queries=NAMES, tile=400)
    assert Image.open(io.BytesIO(large.content)).width == 2048


def test_lines_say_which_picture_is_none(app, colours):
    files = [("images", ("a.png", SCENE)), ("images", ("b.png", b"no"))]
    accept = {"Accept": "application/x-ndjson"}
    text = ask(app, "POST", "/v1/segment", data={"query": NAMES}, files=files, headers=accept).text
    by_index = {line["index"]: line for line in map(json.loads, text.splitlines())}
    assert by_index[1]["error"]["code"] == "invalid_image"
    assert same(by_index[0], colours.segment(SCENE, NAMES))
    first = by_index[0]["areas"][0]
    assert decode_rle(first["segmentation"]).sum() == first["area"]


def test_boxes_and_maps_of_one_picture_are_two_encodings_of_which_each_is_kept(app, colours):
    content = b64(encode(scene(310, 200)))
    network = app.state.serving.detector.model
    before, passes = network.passes, []
    for path in ("/v1/detect", "/v1/segment", "/v1/segment", "/v1/detect"):
        answer = ask(app, "POST", path, json={"images": [{"content": content}], "queries": ["sky"]})
        assert answer.status_code == 200
        passes.append(network.passes - before)
    assert passes == [1, 2, 2, 2]


@pytest.mark.parametrize(
    "body, accept, status, code, said",
    [
        ({"queries": []}, None, 422, "invalid_request", "queries"),
        ({}, None, 422, "invalid_request", "queries"),
        ({"queries": ["sky"], "threshold": [0.1, 0.2]}, None, 422, "invalid_query", "got 2 numbers"),
        ({"queries": ["sky"], "nms_iou": 0.5}, None, 422, "invalid_request", "nms_iou"),
        ({"queries": ["sky"], "overlap": 0.5}, None, 422, "invalid_request", "overlap is for tile"),
        ({"queries": ["sky"], "tile": 32, "overlap": 0.9}, None, 422, "too_many_tiles", "at most 40 a request"),
        ({"queries": ["sky"]}, "text/html", 406, "not_acceptable", "image/jpeg"),
        ({"queries": NAMES}, None, 422, "too_many_queries", "3 names in a picture of 300x200 pixels"),
    ],
)
def test_what_is_wrong_is_one_sentence(app, monkeypatch, body, accept, status, code, said):
    if code == "too_many_queries":
        monkeypatch.setattr(tasks, "MOST_MAP_VALUES", 100_000)
    answer = segment(app, accept or "*/*", images=[{"content": b64(SCENE)}], **body)
    assert (answer.json()["code"], answer.status_code) == (code, status), answer.text
    assert said in answer.text


def test_of_two_pictures_no_picture_is_answered(app):
    answer = segment(app, "image/jpeg", images=[{"content": b64(SCENE)}] * 2, queries=NAMES)
    assert answer.json()["detail"] == "as image/jpeg one picture is answered, got 2; ask for JSON"


def test_a_model_without_masks_says_so(detector):
    app = create_app(detector, ServerSettings())
    try:
        answer = segment(app, images=[{"content": b64(SCENE)}], queries=NAMES)
        assert answer.json()["code"] == "invalid_query" and "makes no masks" in answer.json()["detail"]
        assert ask(app, "GET", "/v1/model").json()["masks"] is False
    finally:
        app.state.serving.close()


def test_the_documentation_says_what_each_form_is(app):
    operation = ask(app, "GET", "/openapi.json").json()["paths"]["/v1/segment"]["post"]
    answered = operation["responses"]["200"]["content"]
    assert sorted(answered) == ["application/json", "application/x-ndjson", "image/jpeg", "image/png"]
    assert answered["application/json"]["schema"]["$ref"].endswith("/SegmentOut")
    fields = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert {"images", "query", "threshold", "tile", "overlap"} <= fields.keys()
    assert "POST /v1/segment" in ask(app, "GET", "/docs").text
